"""What every merge method is: a pure function of one tensor's versions, and the facts a table of
methods needs.
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from recycler.errors import Problem, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorContext:
    """Which tensor is merged: random masks come from (seed, member, tensor name) and from nothing
    else.
    """

    name: str
    members: tuple[str, ...]
    seed: int = 0
    num_layers: int = 0


class MergeFunction(Protocol):
    def __call__(
        self,
        tensors: Sequence[Tensor],
        weights: Sequence[float],
        *,
        base: Tensor | None,
        context: TensorContext,
        out: Tensor,
        **options: Any,
    ) -> None:
        """Write the merge of `tensors` (K of one shape) with `weights` (K) into `out`: float32
        inside, one rounding.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeMethod:
    """One row of the table: the function, whether it needs a base, and its options with their
    defaults.

    `elementwise`: every output element depends on the same element of the inputs alone, so that a
    tensor may be merged in slices. `num_members`: how many members the method takes, when that is
    fixed. `reads_all`: members of weight 0 too. `by_depth`: treats layers by their number, so it
    must know how many there are. `reads_base`: looks at the base's own numbers, and not at deltas
    to it alone.
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
    """Options as keyword arguments:

    `lambda` becomes `lambda_`, since Python keeps that word for itself.
    """
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
    """An option as one number per member: a scalar is meant for all, a sequence must have K entries
    in [low, high].

    Raises UsageError.
    """
    values = (
        tuple(float(entry) for entry in value)
        if isinstance(value, (tuple, list))
        else (float(value),) * num_members
    )
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
