"""Options of a method in a recipe: one value for the merge, one for each member, or one for each
group of tensors.

`density` holds for every tensor; `density@mlp` holds for those of the group `mlp`, and goes before
it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from recycler.errors import did_you_mean
from recycler.types import OptionValue

DTYPES = ("bfloat16", "float16", "float32", "float64")  # of a recipe's output
PER_MEMBER = frozenset(
    {"density", "gamma", "epsilon"}
)  # options that may be a list of one number a member
Options = tuple[tuple[str, OptionValue], ...]


@lru_cache(maxsize=65536)
def options_of(options: Options, group: str) -> Mapping[str, OptionValue]:
    """The options that hold for the tensors of a group, by their bare names."""
    bare = {name: value for name, value in options if "@" not in name}
    own = {
        name.partition("@")[0]: value for name, value in options if name.partition("@")[2] == group
    }
    return bare | own


def option_complaints(
    options: Options, known: Mapping[str, Any], groups: Sequence[str], num_members: int
) -> Iterator[tuple[str, str, str]]:
    """(option, cause, remedy) for every option that the method does not know, or whose value it
    cannot take.

    `known` maps a method's options to their defaults, which tell the kind of value.
    """
    for name, value in options:
        bare, at, group = name.partition("@")
        if bare not in known:
            yield name, "unknown", did_you_mean(bare, known) if known else "It has no options"
        elif at and group not in groups:
            yield (
                name,
                f"is for the group {group!r}, which the recipe does not have",
                did_you_mean(group, groups),
            )
        elif isinstance(value, tuple):
            if bare not in PER_MEMBER:
                yield name, "is a list, and holds for all members", "Give one value"
            elif len(value) != num_members or not all(map(_is_number, value)):
                yield (
                    name,
                    f"is not one number for each of {num_members} members",
                    "Give one number, or one per member",
                )
        elif not _fits(value, known[bare]):
            yield name, f"is {value!r}", f"Give a {_kind(known[bare])}"


def _fits(value: Any, default: Any) -> bool:
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(
        default, int
    ):  # a count: rounding it would run another merge than the one that is written
        return _is_number(value) and value >= 0 and float(value).is_integer()
    return isinstance(value, str) if isinstance(default, str) else _is_number(value)


def _kind(default: Any) -> str:
    return (
        "truth value"
        if isinstance(default, bool)
        else "word"
        if isinstance(default, str)
        else "whole number from 0 on"
        if isinstance(default, int)
        else "finite number"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
