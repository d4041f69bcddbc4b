"""SimplexGP: Gaussian processes on weights that sum to one."""
