"""A run: prepare, search, score the finalists on the holdout items."""
