"""Merges: recipes run tensor by tensor, from disk to disk or into a live engine."""
