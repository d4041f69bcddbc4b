"""Objectives as mathematics: Pareto fronts, statistics, costs."""
