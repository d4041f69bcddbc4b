"""Recipes as canonical JSON, and back."""

from __future__ import annotations

import json
from typing import Any

from recycler.digest import canonical_json
from recycler.types import Group, Recipe


def recipe_to_json(recipe: Recipe) -> str:
    """A recipe as canonical JSON: the same text for equal recipes."""
    return canonical_json(recipe)


def recipe_from_json(text: str) -> Recipe:
    """The recipe of `recipe_to_json`."""
    return recipe_from_plain(json.loads(text))


def recipe_from_plain(data: dict[str, Any]) -> Recipe:
    """A recipe from parsed JSON, whose lists become tuples."""
    options: list[tuple[str, Any]] = []
    for name, value in data["options"]:
        if isinstance(value, list):
            value = tuple(value)
        options.append((name, value))
    return Recipe(
        method=data["method"],
        members=tuple(data["members"]),
        base=data["base"],
        dtype=data["dtype"],
        seed=data["seed"],
        groups=tuple(Group(**group) for group in data["groups"]),
        weights=tuple(tuple(float(weight) for weight in row) for row in data["weights"]),
        options=tuple(options),
    )
