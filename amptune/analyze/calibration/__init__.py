"""The constants of the GPU at hand, by a micro-benchmark that looks at no model."""
