"""Pools of checkpoints: opened by their headers, checked, measured, packed."""
