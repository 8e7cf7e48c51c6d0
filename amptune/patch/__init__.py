"""From a plan to patched source. Never imports torch."""
