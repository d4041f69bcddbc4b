"""Merge methods: one plain function each, listed in `registry`."""
