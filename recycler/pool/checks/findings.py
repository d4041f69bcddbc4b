"""One thing that a check of a pool found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from recycler.errors import Problem
from recycler.types import Checkpoint

Level = Literal["warn", "refuse"]
MAX_NAMED = 4  # tensors or keys named one by one; the rest are counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A problem, the check that found it, and whether it stops a merge (`level`).

    `unsafe` says that the checkpoints are at fault, and not the user's choice.
    """

    check: str
    level: Level
    problem: Problem
    unsafe: bool = True


def refuse(
    check: str, checkpoint: Checkpoint, cause: str, remedy: str, *, unsafe: bool = True
) -> Finding:
    """A finding that stops a merge."""
    return Finding(
        check=check, level="refuse", problem=about(checkpoint, cause, remedy), unsafe=unsafe
    )


def warn(check: str, checkpoint: Checkpoint, cause: str, remedy: str) -> Finding:
    """A finding that is only told."""
    return Finding(check=check, level="warn", problem=about(checkpoint, cause, remedy))


def about(checkpoint: Checkpoint, cause: str, remedy: str) -> Problem:
    """A problem of one checkpoint."""
    return Problem(
        thing=f"checkpoint {checkpoint.name!r}",
        cause=cause,
        remedy=remedy,
        where=str(checkpoint.location),
    )


def named(names: Sequence[str], what: str = "tensor") -> str:
    """'3 tensors (a, b, c)', shortened after a few names."""
    plural = "" if len(names) == 1 else "s"
    listed = ", ".join(names[:MAX_NAMED])
    if len(names) > MAX_NAMED:
        listed += f" and {len(names) - MAX_NAMED} more"
    return f"{len(names)} {what}{plural} ({listed})"
