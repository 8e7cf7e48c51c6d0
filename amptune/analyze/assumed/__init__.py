"""What is taken of values before the bounds are worked out: batch, initial weights, and what a recorded step shows."""
