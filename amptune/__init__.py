"""Static analyzer and auto-tuner for mixed precision in PyTorch."""

__version__ = "0.1.0"
