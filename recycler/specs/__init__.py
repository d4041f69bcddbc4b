"""Documents that a person writes: job, search space, suite."""
