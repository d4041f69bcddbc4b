"""Deltas as vectors: profiles, Gram matrices, inner products."""
