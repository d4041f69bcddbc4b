"""Recipes, failures and outcomes as text, and back."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from recycler.types import Failure, Group, Outcome, Recipe


def recipes_from_json(texts: Sequence[str]) -> list[Recipe]:
    """`recipe_from_json` of many, which share their members and groups; several times as fast."""
    shared: dict[Any, Any] = {}
    recipes = []
    for data in many_from_json(texts):
        members = tuple(data["members"])
        groups = tuple((group["name"], group["match"]) for group in data["groups"])
        if groups not in shared:
            shared[groups] = tuple(Group(name=name, match=match) for name, match in groups)
        recipes.append(
            Recipe(
                method=data["method"],
                members=shared.setdefault(members, members),
                base=data["base"],
                dtype=data["dtype"],
                seed=data["seed"],
                groups=shared[groups],
                weights=tuple([tuple(map(float, row)) for row in data["weights"]]),
                options=tuple(
                    [
                        (name, tuple(value) if isinstance(value, list) else value)
                        for name, value in data["options"]
                    ]
                ),
            )
        )
    return recipes


def many_from_json(texts: Sequence[str]) -> Iterator[Any]:
    """`json.loads` of many short texts, a thousand at a call."""
    for start in range(0, len(texts), 1000):
        yield from json.loads(f"[{','.join(texts[start : start + 1000])}]")


def failure_from_json(text: str | None) -> Failure | None:
    return Failure(**json.loads(text)) if text else None


def outcomes_to_bytes(outcomes: Iterable[Outcome]) -> bytes:
    rows = [
        {
            "item": outcome.item,
            "num_tokens": outcome.num_tokens,
            "output": outcome.output,
            "values": outcome.values,
        }
        for outcome in outcomes
    ]
    return zlib.compress(
        json.dumps(rows, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode(),
        level=6,
    )


def outcomes_from_bytes(payload: bytes) -> tuple[Outcome, ...]:
    rows = json.loads(zlib.decompress(payload))
    return tuple(
        Outcome(
            item=row["item"],
            values=tuple((name, value) for name, value in row["values"]),
            output=row["output"],
            num_tokens=row["num_tokens"],
        )
        for row in rows
    )


def params_from_json(texts: Sequence[str]) -> list[tuple[tuple[str, float], ...]]:
    """Raw parameters of many trials, by name: canonical JSON has them in that order."""
    return [tuple(params.items()) for params in many_from_json(texts)]
