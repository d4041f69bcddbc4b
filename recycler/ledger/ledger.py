"""The ledger: open a trial before a worker sees it, close it when its scorecard is here.

SQLAlchemy Core behind one package.

One writer (the driver) and any number of readers. Each write is one transaction, flushed to the
disk before it returns, so a driver killed at any moment leaves trials that are either PENDING or
whole. When a database goes away, calls wait for it; a write whose answer was lost is not done
twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DatabaseError

from recycler.errors import NotFoundError, Problem, UnsafeInputError
from recycler.ledger import reading, schema, writing
from recycler.ledger.database import OPEN_SECONDS, Database, retried
from recycler.ledger.facts import ELAPSED_SECONDS, Facts
from recycler.ledger.lease import Holder, Lease, read_holder
from recycler.types import Failure, Outcome, Recipe, Role, Scorecard, Trial, TrialKind

Value = TypeVar("Value")


class Ledger:
    """Trials, scores and per-item outcomes of one job.

    It is a SQLite file, or postgresql://HOST/DATABASE?job=ID. Readers who cannot wait for a
    database that is away give `patience` in seconds. Raises NotFoundError without `create` when
    there is none, InfrastructureError when it cannot be reached, UnsafeInputError when it is
    damaged.
    """

    def __init__(self, place: str | Path, *, create: bool = True, patience: float | None = None):
        self._database = Database(place, create=create, patience=patience)
        self._lease: Lease | None = None
        try:
            retried(self._migrate, self._database, OPEN_SECONDS)
        # what a busy or absent database says is an OperationalError, and has been waited for
        except DatabaseError as error:
            raise UnsafeInputError(
                Problem(
                    thing=f"ledger {self._database.shown}",
                    cause=f"cannot be read ({error.orig})",
                    remedy="It is no recycler ledger, or damaged; put a copy in its place",
                )
            ) from None

    @property
    def place(self) -> str:
        """The ledger's file or URL, without password."""
        return self._database.shown

    def hold(self) -> None:
        """Become the only driver, until `close`.

        A SQLite file has no lease: its driver holds the lock of the run folder. Raises
        InfrastructureError that names the other driver.
        """
        if self._database.is_shared:
            self._lease = Lease(self._database)

    def holder(self) -> Holder | None:
        """The driver of the job; None when there is none, and for a SQLite file."""
        return read_holder(self._database) if self._database.is_shared else None

    def close(self) -> None:
        """Give the lease back and close all connections."""
        if self._lease is not None:
            self._lease.release()
        self._database.close()

    # -------------------------------------------------------------- facts about the job

    @property
    def facts(self) -> Facts:
        """The facts that are kept besides trials, typed."""
        return Facts(self)

    def fact(self, key: str) -> str | None:
        """The stored text of a fact; `facts` knows what it means."""
        return self._read(lambda connection: reading.read_fact(connection, key))

    def set_fact(self, key: str, value: str) -> None:
        """Store the text of a fact in place of the one before."""

        def write(connection: Connection, again: bool) -> None:
            writing.put_fact(connection, key, value)

        self._write(write, lazily=key == ELAPSED_SECONDS)

    def keep_files(self, files: Mapping[str, bytes]) -> None:
        """Keep the job's own files, by relative path, in place of those that were kept before."""
        self._write(lambda connection, again: writing.put_files(connection, files))

    def files(self) -> dict[str, bytes]:
        """The job's own files. Raises NotFoundError when none were kept."""
        found = self._read(reading.read_files)
        if not found:
            raise NotFoundError(
                Problem(
                    thing=f"ledger {self.place}",
                    cause="keeps no files of its job",
                    remedy="Give the job file",
                )
            )
        return found

    # -------------------------------------------------------------- writing

    def open_trial(
        self,
        number: int,
        kind: TrialKind,
        recipe: Recipe,
        *,
        label: str = "",
        params: tuple[tuple[str, float], ...] = (),
    ) -> None:
        """Write a PENDING trial. Raises sqlalchemy's IntegrityError when the number is taken."""

        def write(connection: Connection, again: bool) -> None:
            now = self._database.now(connection)
            writing.insert_trial(
                connection, number, kind, recipe, label=label, params=params, now=now, again=again
            )

        # the close of any trial makes it outlive a power cut; lost with it, it is proposed again
        self._write(write, lazily=True)

    def close_trial(self, number: int, scorecard: Scorecard) -> None:
        """PENDING -> SCORED, with its scores and outcomes, in one transaction."""

        def write(connection: Connection, again: bool) -> None:
            now = self._database.now(connection)
            writing.score_trial(connection, number, scorecard, now=now, again=again)

        self._write(write)

    def fail_trial(self, number: int, failure: Failure) -> None:
        """PENDING -> FAILED."""

        def write(connection: Connection, again: bool) -> None:
            now = self._database.now(connection)
            writing.fail_trial(connection, number, failure, now=now)

        self._write(write)

    def retry_system_failures(self) -> tuple[int, ...]:
        """FAILED -> PENDING for trials that the system failed; return their numbers.

        For the start of a driver.
        """
        numbers = tuple(number for number, failure in self.failures() if failure.blame == "system")
        if numbers:
            self._write(lambda connection, again: writing.reopen_trials(connection, numbers))
        return numbers

    def add_holdout(self, number: int, scorecard: Scorecard) -> None:
        """Add holdout scores to a SCORED trial; a second time changes nothing."""

        def write(connection: Connection, again: bool) -> None:
            if not writing.has_outcomes(connection, number, "holdout"):
                writing.insert_scores(connection, number, scorecard)

        self._write(write)

    def extend_trial(self, number: int, scorecard: Scorecard) -> None:
        """Replace the scores and outcomes of a SCORED trial by those of more items.

        Or by those of its merged weights, where adapters were scored before. `scorecard` holds the
        outcomes of all items; its costs are those of the new ones and are added. The same call
        again changes nothing.
        """
        self._write(lambda connection, again: writing.extend_trial(connection, number, scorecard))

    # -------------------------------------------------------------- reading

    def trials(self) -> tuple[Trial, ...]:
        """All trials by number, with their scores; never their outcomes."""
        with reading.no_collection():
            rows, score_rows = self._read(reading.trial_rows)
            return reading.trials_of(rows, score_rows)

    def counts(self) -> dict[str, int]:
        """Number of trials by state; reads no trial."""
        return self._read(reading.read_counts)

    def failures(self) -> tuple[tuple[int, Failure], ...]:
        """(number, failure) of the trials that failed."""
        return self._read(reading.read_failures)

    def outcomes(self, number: int, role: Role) -> tuple[Outcome, ...]:
        """Per-item results of one trial. Raises NotFoundError when it has none of that role."""
        found = self._read(lambda connection: reading.read_outcomes(connection, number, role))
        if found is None:
            raise NotFoundError(
                Problem(
                    thing=f"trial {number}",
                    cause=f"has no {role} outcomes",
                    remedy="Only scored trials have; holdout is scored for the front when the "
                    "budget is spent",
                )
            )
        return found

    def scorecard(self, number: int, role: Role) -> Scorecard:
        """The scorecard of a scored trial; its costs are 0, since reading it costs nothing.

        Raises NotFoundError.
        """
        outcomes = self.outcomes(number, role)
        return self._read(
            lambda connection: reading.read_scorecard(connection, number, role, outcomes)
        )

    def spent(self) -> tuple[int, float]:
        """(tokens, worker seconds) of all scored trials."""
        return self._read(reading.read_spent)

    # -------------------------------------------------------------- transactions

    def _read(self, act: Callable[[Connection], Value]) -> Value:
        def attempt(again: bool) -> Value:
            with self._database.engine.connect() as connection:
                return act(connection)

        return retried(attempt, self._database)

    def _write(self, act: Callable[[Connection, bool], None], *, lazily: bool = False) -> None:
        engine = self._database.lazy_engine if lazily else self._database.engine

        def attempt(again: bool) -> None:
            with engine.begin() as connection:
                if self._lease is not None:
                    self._lease.check(connection)
                act(connection, again)

        retried(attempt, self._database)

    def _migrate(self, again: bool) -> None:
        with self._database.engine.begin() as connection:
            if schema.is_current(connection):
                return
        with self._database.engine.begin() as connection:
            self._database.lock_schema(connection)
            schema.migrate(connection)
