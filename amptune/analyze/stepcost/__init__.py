"""What a step takes by prediction: the kernels of each op, timed on any GPU, and the memory that is kept."""
