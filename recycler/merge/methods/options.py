"""Options of a method in a recipe: one value for the merge, for each member, or for each group.

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
PER_MEMBER = frozenset({"density", "gamma", "epsilon"})  # may be a list of one number per member
Options = tuple[tuple[str, OptionValue], ...]


@lru_cache(maxsize=65536)
def options_of(options: Options, group: str) -> Mapping[str, OptionValue]:
    """The options that hold for the tensors of a group, by their bare names."""
    for_all: dict[str, OptionValue] = {}
    for_group: dict[str, OptionValue] = {}
    for name, value in options:
        bare, at, own_group = name.partition("@")
        if not at:
            for_all[name] = value
        if own_group == group:
            for_group[bare] = value
    return for_all | for_group


def option_complaints(
    options: Options, known: Mapping[str, Any], groups: Sequence[str], num_members: int
) -> Iterator[tuple[str, str, str]]:
    """(option, cause, remedy) for every option that is unknown, or whose value does not fit.

    `known` maps a method's options to their defaults, which tell the kind of value.
    """
    for name, value in options:
        bare, at, group = name.partition("@")
        if bare not in known:
            yield name, "unknown", did_you_mean(bare, known) if known else "It has no options"
        elif at and group not in groups:
            cause = f"is for the group {group!r}, which the recipe does not have"
            yield name, cause, did_you_mean(group, groups) if groups else "It has no groups"
        elif isinstance(value, tuple):
            if bare not in PER_MEMBER:
                yield name, "is a list, and holds for all members", "Give one value"
            elif len(value) != num_members or not all(map(_is_number, value)):
                cause = f"is not one number for each of {num_members} members"
                yield name, cause, "Give one number, or one per member"
        elif not _fits(value, known[bare]):
            yield name, f"is {value!r}", f"Give a {_kind(known[bare])}"


def _fits(value: Any, default: Any) -> bool:
    """True when a value is of its default's kind."""
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int):
        # a count: rounding it would run another merge than the one that is written
        return _is_number(value) and value >= 0 and float(value).is_integer()
    if isinstance(default, str):
        return isinstance(value, str)
    return _is_number(value)


def _kind(default: Any) -> str:
    """The words for a default's kind of value."""
    if isinstance(default, bool):  # before int, which bool is too
        return "truth value"
    if isinstance(default, str):
        return "word"
    if isinstance(default, int):
        return "whole number from 0 on"
    return "finite number"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
