"""Recipes as canonical JSON, and back."""

from __future__ import annotations

import json
from typing import Any

from recycler.digest import canonical_json
from recycler.types import Group, Recipe


def recipe_to_json(recipe: Recipe) -> str:
    return canonical_json(recipe)


def recipe_from_json(text: str) -> Recipe:
    return recipe_from_plain(json.loads(text))


def recipe_from_plain(data: dict[str, Any]) -> Recipe:
    return Recipe(
        method=data["method"],
        members=tuple(data["members"]),
        base=data["base"],
        dtype=data["dtype"],
        seed=data["seed"],
        groups=tuple(Group(**group) for group in data["groups"]),
        weights=tuple(tuple(float(weight) for weight in row) for row in data["weights"]),
        options=tuple(
            (name, tuple(value) if isinstance(value, list) else value)
            for name, value in data["options"]
        ),
    )
