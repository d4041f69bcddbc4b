"""Run folders of a root and jobs of a database, read through their ledgers.

A ledger is read again only when it has changed.
"""

from __future__ import annotations

import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from recycler.errors import InfrastructureError, NotFoundError, Problem, UnsafeInputError
from recycler.ledger import Ledger
from recycler.ledger.database import job_ids
from recycler.ledger.place import LEDGER, LEDGER_URL, is_database, job_place, split_place
from recycler.ledger.runs import read_status
from recycler.objectives import pareto
from recycler.results.attribution import SearchModel
from recycler.results.documents import front_document
from recycler.results.front import Front, knee, read_front
from recycler.results.insight import read_surrogate
from recycler.search.baselines import maximized
from recycler.types import Objective, Outcome, Pool, Role, Smoothed, Trial

ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
EXPORTS = "exports"
PATIENCE_SECONDS = 1.0  # how long a reader waits for a database that is away
AWAY_SECONDS = 10.0  # and for how long it is then not asked again
Signature = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """One job by id: its folder under the root, and its ledger's place.

    None before its driver has opened one.
    """

    id: str
    folder: Path
    source: Path  # the job file that was submitted here; a run started by hand has none
    place: str | None

    @property
    def submitted(self) -> bool:
        return self.source.is_file()

    @property
    def is_shared(self) -> bool:
        """True when its ledger is in a database, where drivers of other machines may write it."""
        return self.place is not None and is_database(self.place)

    @property
    def named(self) -> str:
        """Name of this run for commands such as `recycler front`."""
        if self.place is not None and self.is_shared and not self.folder.is_dir():
            return self.place
        return str(self.folder)


class Snapshot:
    """A ledger at one moment, and results that are computed from it at most once each."""

    def __init__(
        self,
        signature: Signature,
        trials: tuple[Trial, ...],
        objectives: tuple[Objective, ...],
        pool: Pool,
        dtype: str,
        status: dict[str, Any],
        smoothed: Smoothed,
    ):
        self.signature, self.status = signature, status
        self.trials, self.objectives, self.smoothed = trials, objectives, smoothed
        self.pool, self.dtype = pool, dtype
        self._lock = threading.RLock()
        self._made: dict[str, Any] = {}

    @cached_property
    def by_number(self) -> dict[int, Trial]:
        return {trial.number: trial for trial in self.trials}

    @property
    def has_front(self) -> bool:
        """True when a member is scored."""
        return any(trial.kind == "member" and trial.state == "SCORED" for trial in self.trials)

    @cached_property
    def front(self) -> Front:
        """Raises NotFoundError before the first member is scored."""
        return read_front(
            self.trials, self.objectives, self.pool, self.dtype, smoothed=self.smoothed
        )

    @cached_property
    def volumes(self) -> list[dict[str, float]]:
        """Hypervolume after each trial that raised it, by number; empty before one.

        Above the reference point of the front document.
        """
        if not self.has_front:
            return []
        values = maximized(self.front.trials, self.objectives)
        reference = pareto.as_maximized(
            [self.front.reference], [objective.direction for objective in self.objectives]
        )[0]
        curve, best = [], values[:0]
        for trial, row in zip(self.front.trials, values, strict=True):
            if not (best >= row).all(axis=1).any():
                best = np.vstack([best[~(best <= row).all(axis=1)], row])
                curve.append(
                    {"trial": trial.number, "hypervolume": pareto.hypervolume(best, reference)}
                )
        return curve

    @cached_property
    def knee(self) -> int | None:
        """Number of the front's knee; None before the first member is scored."""
        return knee(self.front).number if self.has_front else None

    @property
    def probability(self) -> dict[int, float]:
        """Chance of each scored trial to be non-dominated, by number."""
        return self.once("probability", lambda: self.front.probability)

    def front_document(self) -> dict[str, Any]:
        """The document of `recycler front --json`."""
        return self.once("front", lambda: front_document(self.front))

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the value of `make`, computed once for this snapshot.

        It is costly for thousands of trials, so one thread computes it for all.
        """
        with self._lock:
            if name not in self._made:
                self._made[name] = make()
            return self._made[name]

    def trial(self, number: int) -> Trial:
        """Raises NotFoundError."""
        if number not in self.by_number:
            raise NotFoundError(
                Problem(
                    thing=f"trial {number}",
                    cause="not in this run",
                    remedy=f"It has {len(self.trials)} trials",
                )
            )
        return self.by_number[number]


class Store:
    """Run folders directly under `root`, and jobs of a database that have no folder here.

    A link that leads out of the root is not a run. Each run has a lock of its own, so that one
    whose ledger is slow holds up no other; a database that was away is not asked again for
    AWAY_SECONDS, whichever of its jobs is meant.
    """

    def __init__(self, root: Path, ledger_url: str | None = None):
        self.root, self.ledger_url = root.resolve(), ledger_url
        self._cached: dict[str, Snapshot] = {}
        self._open: dict[str, Ledger] = {}  # connections to databases, kept
        # by database: until when it is not asked again, and what it said
        self._away: dict[str, tuple[float, InfrastructureError]] = {}
        self._locks: dict[str, threading.RLock] = defaultdict(threading.RLock)

    def ids(self) -> list[str]:
        folders = {
            path.name
            for path in self.root.iterdir()
            if ID.fullmatch(path.name) and self._is_run(path)
        }
        places = {self._place(self.root / name) for name in folders}
        return sorted(
            folders | {name for name, place in self._jobs().items() if place not in places}
        )

    def run(self, run_id: str) -> Run:
        """Raises NotFoundError for an id that is no run of this root and no job of the database."""
        folder = self.root / run_id
        if ID.fullmatch(run_id):
            if self._is_run(folder):
                return Run(run_id, folder, self.source(run_id), self._place(folder))
            if run_id in (jobs := self._jobs()) and not folder.is_symlink():
                return Run(run_id, folder, self.source(run_id), jobs[run_id])
        raise NotFoundError(
            Problem(
                thing=f"job {run_id[:80]!r}", cause="unknown", remedy="GET /api/v1/jobs lists them"
            )
        )

    def source(self, run_id: str) -> Path:
        """Place of the job file of a submission: beside its run folder.

        Its paths are relative to the root.
        """
        return self.root / f"{run_id}.job.yaml"

    def snapshot(self, run: Run) -> Snapshot:
        """Snapshot of a run, read again only when its ledger has changed.

        Raises NotFoundError when the run has no ledger yet, InfrastructureError when it cannot be
        read.
        """
        with self._locks[run.id], self._ledger(run) as ledger:
            signature, cached = _signature(run, ledger), self._cached.get(run.id)
            if cached is None or cached.signature != signature:
                cached = self._cached[run.id] = _read(ledger, signature)
            return cached

    def outcomes(self, run: Run, number: int, role: Role) -> tuple[Outcome, ...]:
        """Raises NotFoundError."""
        self.snapshot(run).trial(number)
        with self._ledger(run) as ledger:
            return ledger.outcomes(number, role)

    def gram(self, run: Run) -> list[list[float]] | None:
        """Inner products (K, K) of the members' deltas, where the run has measured them."""
        with self._ledger(run) as ledger:
            return ledger.facts.gram

    def surrogate(self, run: Run) -> SearchModel | str:
        """The search's model over the run's trials, or why there is none yet."""
        snapshot = self.snapshot(run)
        with self._ledger(run) as ledger:
            try:
                return read_surrogate(ledger, snapshot.trials, snapshot.objectives)
            except ValueError as error:
                return str(error)

    def driver(self, run: Run) -> str | None:
        """Driver of a job whose ledger is in a database, by its lease; None when there is none."""
        if not run.is_shared:
            return None
        with self._ledger(run) as ledger:
            holder = ledger.holder()
            return holder.name if holder is not None and holder.is_alive else None

    @contextmanager
    def _ledger(self, run: Run) -> Iterator[Ledger]:
        if run.place is None:
            raise NotFoundError(
                Problem(
                    thing=f"job {run.id!r}",
                    cause="has no ledger yet",
                    remedy="Its driver is starting, or ended before it opened one",
                )
            )
        if run.is_shared:
            with self._locks[run.id], self._asking(run.place):
                if run.place not in self._open:
                    self._open[run.place] = Ledger(
                        run.place, create=False, patience=PATIENCE_SECONDS
                    )
            with self._asking(run.place):
                yield self._open[run.place]
            return
        if run.place != str(run.folder / LEDGER):
            raise InfrastructureError(
                Problem(
                    thing=f"job {run.id!r}",
                    cause=f"its {LEDGER_URL} names no database",
                    remedy="Write postgresql://USER@HOST/DATABASE?job=ID there",
                )
            )
        try:
            ledger = Ledger(run.place, create=False)
        except UnsafeInputError as error:  # nothing is wrong with what the browser asked
            raise InfrastructureError(error.problems) from None
        try:
            yield ledger
        finally:
            ledger.close()

    @contextmanager
    def _asking(self, place: str) -> Iterator[None]:
        """Around whatever asks a database: one that was away just now is not waited for again.

        Raises InfrastructureError.
        """
        database = split_place(place)[0]
        until, said = self._away.get(database, (0.0, None))
        if said is not None and time.monotonic() < until:
            raise InfrastructureError(said.problems)
        try:
            yield
        except InfrastructureError as error:
            self._away[database] = time.monotonic() + AWAY_SECONDS, error
            raise
        self._away.pop(database, None)

    def _jobs(self) -> dict[str, str]:
        """{id: place} of the jobs in the database. Raises InfrastructureError."""
        if not self.ledger_url:
            return {}
        with self._asking(self.ledger_url):
            return {
                name: job_place(self.ledger_url, name)
                for name in job_ids(self.ledger_url, patience=PATIENCE_SECONDS)
            }

    def _place(self, folder: Path) -> str | None:
        if (folder / LEDGER).is_file():
            return str(folder / LEDGER)
        if (folder / LEDGER_URL).is_file():
            return (folder / LEDGER_URL).read_text(errors="replace").strip()
        return None

    def _is_run(self, folder: Path) -> bool:
        known = (
            (folder / LEDGER).is_file()
            or (folder / LEDGER_URL).is_file()
            or self.source(folder.name).is_file()
        )
        return known and folder.is_dir() and folder.resolve().parent == self.root


def _signature(run: Run, ledger: Ledger) -> Signature:
    """Changes with every write:

    (mtime, size) of the file and of its write-ahead log; in a database, what drivers count.
    """
    if run.is_shared:
        return (
            *sorted(ledger.counts().items()),
            ledger.facts.elapsed_seconds,
            ledger.facts.finished,
            ledger.spent(),
        )
    found = []
    for name in (LEDGER, f"{LEDGER}-wal"):
        try:
            stat = (run.folder / name).stat()
            found.append((stat.st_mtime_ns, stat.st_size))
        except FileNotFoundError:
            found.append((0, -1))
    return tuple(found)


def _read(ledger: Ledger, signature: Signature) -> Snapshot:
    job = ledger.facts.require_job()
    return Snapshot(
        signature,
        ledger.trials(),
        job.objectives,
        job.pool,
        job.dtype,
        read_status(ledger),
        ledger.facts.smoothed,
    )
