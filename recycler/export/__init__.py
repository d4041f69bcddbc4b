"""From a recipe to a folder that anyone can serve."""
