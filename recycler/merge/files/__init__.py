"""Recipes as files: recycler's own YAML and mergekit's."""
