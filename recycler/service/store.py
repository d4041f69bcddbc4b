"""A root folder of run folders, read through their ledgers; a snapshot is read again only when its ledger has changed."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from recycler import pareto
from recycler.errors import NotFoundError, Problem
from recycler.ledger import Ledger
from recycler.report import Front, front_document, knee, read_front, read_smoothed
from recycler.run import LEDGER, read_facts, read_status
from recycler.search.baselines import maximized
from recycler.types import Objective, Outcome, Pool, Role, Smoothed, Trial

ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
EXPORTS = "exports"
Signature = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Run:
    """One run folder under the root, by id."""

    id: str
    folder: Path
    source: Path  # the job file that was submitted here; a run started by hand has none

    @property
    def submitted(self) -> bool:
        return self.source.is_file()

    @property
    def signature(self) -> Signature:
        """Changes with every write to the ledger: (mtime, size) of its file and of its write-ahead log."""
        found = []
        for name in (LEDGER, f"{LEDGER}-wal"):
            try:
                stat = (self.folder / name).stat()
                found.append((stat.st_mtime_ns, stat.st_size))
            except FileNotFoundError:
                found.append((0, -1))
        return tuple(found)


class Snapshot:
    """What a ledger said at one moment, and what is read off it, each at most once."""

    def __init__(self, signature: Signature, trials: tuple[Trial, ...], objectives: tuple[Objective, ...], pool: Pool, dtype: str, status: dict[str, Any], smoothed: Smoothed):
        self.signature, self.trials, self.objectives, self.pool, self.dtype, self.status, self.smoothed = signature, trials, objectives, pool, dtype, status, smoothed
        self._lock = threading.RLock()
        self._made: dict[str, Any] = {}

    @cached_property
    def by_number(self) -> dict[int, Trial]:
        return {trial.number: trial for trial in self.trials}

    @cached_property
    def front(self) -> Front:
        """Raises NotFoundError before the first member is scored."""
        return read_front(self.trials, self.objectives, self.pool, self.dtype, smoothed=self.smoothed)

    @cached_property
    def volumes(self) -> list[dict[str, float]]:
        """The hypervolume after each trial that raised it, by number, above the corner of the front document; empty before one."""
        if not any(trial.kind == "member" and trial.state == "SCORED" for trial in self.trials):
            return []
        values = maximized(self.front.trials, self.objectives)
        corner = pareto.as_maximized([self.front.reference], [objective.direction for objective in self.objectives])[0]
        curve, best = [], values[:0]
        for trial, row in zip(self.front.trials, values, strict=True):
            if not (best >= row).all(axis=1).any():
                best = np.vstack([best[~(best <= row).all(axis=1)], row])
                curve.append({"trial": trial.number, "hypervolume": pareto.hypervolume(best, corner)})
        return curve

    @cached_property
    def knee(self) -> int | None:
        """Number of the front's knee; None before the first member is scored."""
        return knee(self.front).number if any(trial.kind == "member" and trial.state == "SCORED" for trial in self.trials) else None

    @property
    def probability(self) -> dict[int, float]:
        """Chance of each scored trial to be non-dominated, by number."""
        return self.once("probability", lambda: self.front.probability)

    def front_document(self) -> dict[str, Any]:
        """The document of `recycler front --json`."""
        return self.once("front", lambda: front_document(self.front))

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once for this snapshot: costly for thousands of trials, so one thread makes it for all."""
        with self._lock:
            if name not in self._made:
                self._made[name] = make()
            return self._made[name]

    def trial(self, number: int) -> Trial:
        """Raises NotFoundError."""
        if number not in self.by_number:
            raise NotFoundError(Problem(thing=f"trial {number}", cause="not in this run", remedy=f"It has {len(self.trials)} trials"))
        return self.by_number[number]


class Store:
    """Every run folder directly under `root`. Ids are folder names; a link that leads out of the root is not a run."""

    def __init__(self, root: Path):
        self.root = root.resolve()
        self._cached: dict[str, Snapshot] = {}
        self._lock = threading.Lock()

    def ids(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir() if ID.fullmatch(path.name) and self._is_run(path))

    def run(self, run_id: str) -> Run:
        """Raises NotFoundError for an id that is no run of this root."""
        folder = self.root / run_id
        if not ID.fullmatch(run_id) or not self._is_run(folder):
            raise NotFoundError(Problem(thing=f"job {run_id[:80]!r}", cause="unknown", remedy="GET /api/v1/jobs lists them"))
        return Run(run_id, folder, self.source(run_id))

    def source(self, run_id: str) -> Path:
        """Where the job file of a submission lies: beside its run folder, so that its paths are relative to the root."""
        return self.root / f"{run_id}.job.yaml"

    def snapshot(self, run: Run) -> Snapshot:
        """Raises NotFoundError when the run has no ledger yet, InfrastructureError when it cannot be read."""
        with self._lock:
            signature, cached = run.signature, self._cached.get(run.id)
            if cached is None or cached.signature != signature:
                cached = self._cached[run.id] = _read(run, signature)
            return cached

    def outcomes(self, run: Run, number: int, role: Role) -> tuple[Outcome, ...]:
        """Raises NotFoundError."""
        self.snapshot(run).trial(number)
        ledger = Ledger(run.folder / LEDGER, create=False)
        try:
            return ledger.outcomes(number, role)
        finally:
            ledger.close()

    def _is_run(self, folder: Path) -> bool:
        known = (folder / LEDGER).is_file() or self.source(folder.name).is_file()
        return known and folder.is_dir() and folder.resolve().parent == self.root


def _read(run: Run, signature: Signature) -> Snapshot:
    ledger = Ledger(run.folder / LEDGER, create=False)
    try:
        objectives, pool, dtype = read_facts(ledger)
        return Snapshot(signature, ledger.trials(), objectives, pool, dtype, read_status(ledger), read_smoothed(ledger))
    finally:
        ledger.close()
