"""What each choice costs by measurement: kernels of sites, casts, what follows them, losses, the optimizer."""
