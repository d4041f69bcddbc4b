"""Documents that users write: job, search space, suite."""
