"""Scoring: tasks, frozen items, scorers, outcomes."""
