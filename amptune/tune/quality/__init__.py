"""Whether a candidate trains as well as FP32: the reference, its noise, losses, gradients, rounding errors."""
