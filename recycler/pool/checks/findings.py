"""One thing that a check of a pool found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from recycler.errors import Problem
from recycler.types import Checkpoint

MAX_NAMED = 4  # tensors or keys named one by one; the rest are counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A problem, the check that found it, and whether it stops a merge.

    `unsafe`: the checkpoints are at fault, not the choice.
    """

    check: str
    level: Literal["warn", "refuse"]
    problem: Problem
    unsafe: bool = True


def refuse(
    check: str, checkpoint: Checkpoint, cause: str, remedy: str, *, unsafe: bool = True
) -> Finding:
    return Finding(
        check=check, level="refuse", problem=about(checkpoint, cause, remedy), unsafe=unsafe
    )


def warn(check: str, checkpoint: Checkpoint, cause: str, remedy: str) -> Finding:
    return Finding(check=check, level="warn", problem=about(checkpoint, cause, remedy))


def about(checkpoint: Checkpoint, cause: str, remedy: str) -> Problem:
    return Problem(
        thing=f"checkpoint {checkpoint.name!r}",
        cause=cause,
        remedy=remedy,
        where=str(checkpoint.location),
    )


def named(names: Sequence[str], what: str = "tensor") -> str:
    """'3 tensors (a, b, c)', shortened after a few names."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return (
        f"{len(names)} {what}{'s' if len(names) != 1 else ''} "
        f"({', '.join(names[:MAX_NAMED])}{more})"
    )
