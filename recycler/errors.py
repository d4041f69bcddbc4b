"""Errors that a user can cause or meet, and the exit codes they end with.

    RecyclerError            1  failed
    +-- UsageError           2  the job, a flag or a file is wrong: nothing was started
    +-- NotFoundError        3  no such run, trial or suite
    +-- UnsafeInputError     4  a checkpoint or suite is broken or unsafe: nothing was loaded
    +-- InfrastructureError  5  bucket, cluster or engine went away: try again

Each carries `Problem`s, so that all that is wrong is told at once. Anything else that is raised is
our bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A thing, the cause, the remedy; `where` is file:line when it stands in a file."""

    thing: str
    cause: str
    remedy: str
    where: str = ""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.thing}: {self.cause}. {self.remedy}"


class RecyclerError(Exception):
    """Base of all errors that are told without a traceback."""

    exit_code = 1

    def __init__(self, problems: Problem | str | Iterable[Problem]):
        if isinstance(problems, str):
            problems = Problem(thing="recycler", cause=problems, remedy="")
        self.problems: tuple[Problem, ...] = (
            (problems,) if isinstance(problems, Problem) else tuple(problems)
        )
        super().__init__("\n".join(str(problem) for problem in self.problems))


class UsageError(RecyclerError):
    exit_code = 2


class NotFoundError(RecyclerError):
    exit_code = 3


class UnsafeInputError(RecyclerError):
    exit_code = 4


class InfrastructureError(RecyclerError):
    exit_code = 5


def raise_problems(problems: Sequence[Problem], kind: type[RecyclerError] = UsageError) -> None:
    """Raise one error that lists every problem; do nothing when there is none."""
    if problems:
        raise kind(problems)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'Did you mean X?' for a near miss, else the list of known words."""
    known = sorted(known)
    close = get_close_matches(word, known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}."
