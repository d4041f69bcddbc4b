"""Recipes, failures and outcomes as text, and back."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from typing import Any

from recycler.digest import canonical_json
from recycler.types import Failure, Group, Outcome, Recipe


def recipe_to_json(recipe: Recipe) -> str:
    return canonical_json(recipe)


def recipe_from_json(text: str) -> Recipe:
    return recipe_from_plain(json.loads(text))


def recipe_from_plain(data: dict[str, Any]) -> Recipe:
    return Recipe(
        method=data["method"], members=tuple(data["members"]), base=data["base"], dtype=data["dtype"], seed=data["seed"],
        groups=tuple(Group(**group) for group in data["groups"]), weights=tuple(tuple(float(weight) for weight in row) for row in data["weights"]),
        options=tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in data["options"]))


def failure_from_json(text: str | None) -> Failure | None:
    return Failure(**json.loads(text)) if text else None


def outcomes_to_bytes(outcomes: Iterable[Outcome]) -> bytes:
    return zlib.compress(canonical_json(list(outcomes)).encode(), level=6)


def outcomes_from_bytes(payload: bytes) -> tuple[Outcome, ...]:
    rows = json.loads(zlib.decompress(payload))
    return tuple(Outcome(item=row["item"], values=tuple((name, value) for name, value in row["values"]), output=row["output"], num_tokens=row["num_tokens"]) for row in rows)


def params_from_json(text: str) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(json.loads(text).items()))
