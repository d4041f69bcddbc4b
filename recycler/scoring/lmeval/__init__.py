"""Tasks of lm-eval as suites."""
