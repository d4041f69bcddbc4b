"""SimplexGP as an Optuna sampler."""
