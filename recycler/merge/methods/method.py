"""The contract of a merge method, and the facts about it that the table of methods needs.

A method is a pure function of one tensor's versions. `docs/methods.md` lists those that exist.
"""

from __future__ import annotations

import keyword
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor

from recycler.errors import Problem, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorContext:
    """The tensor that is merged: random masks come from (seed, member, tensor name) alone."""

    name: str
    members: tuple[str, ...]
    seed: int = 0
    num_layers: int = 0


# method(tensors, weights, *, base, context, out, **options): write the merge of `tensors` (K of
# one shape) with `weights` (K) into `out`, float32 inside and rounded once. Each method declares
# its own options, so no one signature covers them.
MergeFunction: TypeAlias = Callable[..., None]


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeMethod:
    """One row of the table of methods.

    `options`: names with their defaults. `elementwise`: an output element depends on the same
    element of the inputs alone, so a tensor may be merged in slices. `num_members`: the number of
    members, when it is fixed. `reads_all`: members of weight 0 are read too. `by_depth`: layers are
    treated by their number, so their count must be known. `reads_base`: the base's own numbers
    count, and not deltas to it alone.
    """

    function: MergeFunction
    needs_base: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    elementwise: bool = False
    num_members: int | None = None
    reads_all: bool = False
    by_depth: bool = False
    reads_base: bool = False


def as_keywords(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as keyword arguments: `lambda`, a word of Python's own, becomes `lambda_`."""
    return {
        f"{name}_" if keyword.iskeyword(name) else name: value for name, value in options.items()
    }


def per_member(
    name: str,
    value: float | Sequence[float],
    num_members: int,
    *,
    low: float = 0.0,
    high: float = 1.0,
) -> tuple[float, ...]:
    """An option as one number per member; a single number holds for all.

    Raises UsageError when a sequence has not K entries, or an entry lies outside [low, high].
    """
    if isinstance(value, Sequence):
        values = tuple(float(entry) for entry in value)
    else:
        values = (float(value),) * num_members
    if len(values) != num_members:
        raise UsageError(
            Problem(
                thing=f"option {name!r}",
                cause=f"has {len(values)} values for {num_members} members",
                remedy="Give one number, or one per member",
            )
        )
    if not all(low <= entry <= high for entry in values):
        raise UsageError(
            Problem(
                thing=f"option {name!r}",
                cause=f"is {value}, outside [{low:g}, {high:g}]",
                remedy="Choose a value inside",
            )
        )
    return values


def require_members(method: str, tensors: Sequence[Tensor], count: int) -> None:
    """Raise UsageError unless there are exactly `count` members."""
    if len(tensors) != count:
        raise UsageError(
            Problem(
                thing=f"method {method!r}",
                cause=f"merges {count} members, the recipe has {len(tensors)}",
                remedy="Use multislerp, karcher or linear for more",
            )
        )
