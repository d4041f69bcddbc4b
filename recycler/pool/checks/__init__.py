"""Checks of a pool before anything is merged."""
