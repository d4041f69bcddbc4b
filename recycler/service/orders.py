"""Orders of exports: which trial, in which dtype, to where."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from recycler.errors import Problem, RecyclerError
from recycler.service.processes import Processes
from recycler.types import Recipe, Trial

DTYPES = ("bfloat16", "float16", "float32")
WORD = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
DESTINATION = rf"^{WORD}(/{WORD}){{0,3}}$"
EXPORT_ID = r"^trial-[0-9]{1,8}(-(bfloat16|float16|float32))?(-[0-9a-f]{8})?$"
MAX_PROCESSES = 8


class BusyError(RecyclerError):
    """Something of that name exists or runs already."""


def refuse_too_many(started: Processes) -> None:
    """Raise BusyError while MAX_PROCESSES run."""
    if started.num_alive() >= MAX_PROCESSES:
        raise BusyError(
            Problem(
                thing="service",
                cause=f"{MAX_PROCESSES} jobs and exports run already",
                remedy="Wait for one of them, or stop one",
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One export.

    `dtype` None is that of the scored weights; `destination` lies below the export root, None with
    the run.
    """

    trial: int
    dtype: str | None = None
    destination: str | None = None

    @property
    def id(self) -> str:
        """Name of the export's folder: a word for each part that is not the default."""
        words = [f"trial-{self.trial}"]
        if self.dtype:
            words.append(self.dtype)
        if self.destination:
            words.append(hashlib.sha256(self.destination.encode()).hexdigest()[:8])
        return "-".join(words)

    def recipe(self, trial: Trial) -> Recipe:
        """Recipe of the trial in the ordered dtype."""
        return replace(trial.recipe, dtype=self.dtype or trial.recipe.dtype)
