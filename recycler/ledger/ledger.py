"""The ledger: open a trial before a worker sees it, close it when its scorecard is here.

SQLAlchemy Core behind one package.

One writer (the driver) and any number of readers. Each write is one transaction, flushed to the
disk before it returns, so a driver killed at any moment leaves trials that are either PENDING or
whole. When a database goes away, calls wait for it; a write whose answer was lost is not done
twice.
"""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, func, select, update
from sqlalchemy.exc import DatabaseError

from recycler.digest import canonical_json, digest
from recycler.errors import NotFoundError, Problem, UnsafeInputError
from recycler.ledger import codec, schema
from recycler.ledger.database import OPEN_SECONDS, Database, retried
from recycler.ledger.facts import ELAPSED_SECONDS, Facts
from recycler.ledger.lease import Holder, Lease, read_holder
from recycler.recipe_json import recipe_to_json
from recycler.types import Failure, Outcome, Recipe, Role, Score, Scorecard, Trial, TrialKind

Value = TypeVar("Value")


@contextmanager
def _no_collection() -> Iterator[None]:
    """Stop garbage collection, which would visit each of a million new objects many times."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


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
        """Where it is, without password."""
        return self._database.shown

    def hold(self) -> None:
        """Become the only driver, until `close`.

        Raises InfrastructureError that names the other one.

        A SQLite file has no lease: its driver holds the lock of the run folder.
        """
        if self._database.is_shared:
            self._lease = Lease(self._database)

    def holder(self) -> Holder | None:
        """Who drives the job; None when nobody does, or for a SQLite file."""
        return read_holder(self._database) if self._database.is_shared else None

    def close(self) -> None:
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
        return self._read(
            lambda connection: connection.execute(
                select(schema.facts.c.value).where(schema.facts.c.key == key)
            ).scalar()
        )

    def set_fact(self, key: str, value: str) -> None:
        """Store the text of a fact in place of the one before."""

        def write(connection: Connection, again: bool) -> None:
            connection.execute(schema.facts.delete().where(schema.facts.c.key == key))
            connection.execute(schema.facts.insert().values(key=key, value=value))

        self._write(write, lazily=key == ELAPSED_SECONDS)

    def keep_files(self, files: Mapping[str, bytes]) -> None:
        """Keep the job's own files, by relative path, in place of those that were kept before."""

        def write(connection: Connection, again: bool) -> None:
            connection.execute(schema.files.delete())
            connection.execute(
                schema.files.insert(),
                [{"name": name, "content": content} for name, content in sorted(files.items())],
            )

        self._write(write)

    def files(self) -> dict[str, bytes]:
        """The job's own files. Raises NotFoundError when none were kept."""
        found = {
            row.name: bytes(row.content)
            for row in self._read(lambda connection: connection.execute(select(schema.files)).all())
        }
        if not found:
            raise NotFoundError(
                Problem(
                    thing=f"ledger {self.place}",
                    cause="keeps no files of its job",
                    remedy="Give the job file",
                )
            )
        return found

    def retry_system_failures(self) -> tuple[int, ...]:
        """FAILED -> PENDING for trials that the system failed; return their numbers.

        For the start of a driver.
        """
        numbers = tuple(number for number, failure in self.failures() if failure.blame == "system")

        def write(connection: Connection, again: bool) -> None:
            connection.execute(
                update(schema.trials)
                .where(schema.trials.c.number.in_(numbers), schema.trials.c.state == "FAILED")
                .values(state="PENDING", failure=None, closed_at=None)
            )

        if numbers:
            self._write(write)
        return numbers

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
            if (
                again
                and connection.execute(
                    select(schema.trials.c.number).where(
                        schema.trials.c.number == number,
                        schema.trials.c.recipe_digest == digest(recipe),
                    )
                ).first()
            ):
                return
            connection.execute(
                schema.trials.insert().values(
                    number=number,
                    kind=kind,
                    label=label,
                    state="PENDING",
                    recipe=recipe_to_json(recipe),
                    recipe_digest=digest(recipe),
                    params=canonical_json(dict(params)),
                    opened_at=self._database.now(connection),
                )
            )

        # the close of any trial makes it outlive a power cut; lost with it, it is proposed again
        self._write(write, lazily=True)

    def close_trial(self, number: int, scorecard: Scorecard) -> None:
        """PENDING -> SCORED, with its scores and outcomes, in one transaction."""

        def write(connection: Connection, again: bool) -> None:
            changed = connection.execute(
                update(schema.trials)
                .where(schema.trials.c.number == number, schema.trials.c.state == "PENDING")
                .values(
                    state="SCORED",
                    weights_digest=scorecard.weights_digest,
                    engine_fingerprint=scorecard.engine_fingerprint,
                    num_tokens=scorecard.num_tokens,
                    merge_seconds=scorecard.merge_seconds,
                    score_seconds=scorecard.score_seconds,
                    closed_at=self._database.now(connection),
                )
            ).rowcount
            if again and changed == 0 and self._is_there(connection, number, scorecard.role):
                return
            assert changed == 1, f"trial {number} is not pending"
            self._insert_scores(connection, number, scorecard)

        self._write(write)

    def fail_trial(self, number: int, failure: Failure) -> None:
        """PENDING -> FAILED."""

        def write(connection: Connection, again: bool) -> None:
            connection.execute(
                update(schema.trials)
                .where(schema.trials.c.number == number)
                .values(
                    state="FAILED",
                    failure=canonical_json(failure),
                    attempts=failure.attempts,
                    closed_at=self._database.now(connection),
                )
            )

        self._write(write)

    def add_holdout(self, number: int, scorecard: Scorecard) -> None:
        """Add holdout scores to a SCORED trial; a second time changes nothing."""

        def write(connection: Connection, again: bool) -> None:
            if not self._is_there(connection, number, "holdout"):
                self._insert_scores(connection, number, scorecard)

        self._write(write)

    def extend_trial(self, number: int, scorecard: Scorecard) -> None:
        """Replace the scores and outcomes of a SCORED trial by those of more items.

        Or by those of its merged weights, where adapters were scored before. `scorecard` holds the
        outcomes of all items; its costs are those of the new ones and are added. The same call
        again changes nothing.
        """

        def write(connection: Connection, again: bool) -> None:
            theirs = {
                table: (table.c.trial == number) & (table.c.role == scorecard.role)
                for table in (schema.scores, schema.outcomes)
            }
            stored = connection.execute(
                select(schema.outcomes.c.payload).where(theirs[schema.outcomes])
            ).scalar_one()
            columns = schema.trials.c
            weights = connection.execute(
                select(columns.weights_digest).where(columns.number == number)
            ).scalar_one()
            if (
                len(codec.outcomes_from_bytes(stored)) >= len(scorecard.outcomes)
                and weights == scorecard.weights_digest
            ):
                return
            for table, own in theirs.items():
                connection.execute(table.delete().where(own))
            self._insert_scores(connection, number, scorecard)
            connection.execute(
                update(schema.trials)
                .where(columns.number == number)
                .values(
                    weights_digest=scorecard.weights_digest,
                    engine_fingerprint=scorecard.engine_fingerprint,
                    num_tokens=columns.num_tokens + scorecard.num_tokens,
                    merge_seconds=columns.merge_seconds + scorecard.merge_seconds,
                    score_seconds=columns.score_seconds + scorecard.score_seconds,
                )
            )

        self._write(write)

    # -------------------------------------------------------------- reading

    def trials(self) -> tuple[Trial, ...]:
        """All trials by number, with their scores; never their outcomes."""
        columns, figures = schema.trials.c, schema.scores.c

        def read(connection: Connection) -> tuple[Sequence[Row[Any]], Sequence[Row[Any]]]:
            rows = connection.execute(
                select(
                    columns.number,
                    columns.kind,
                    columns.label,
                    columns.state,
                    columns.failure,
                    columns.weights_digest,
                    columns.recipe,
                    columns.params,
                ).order_by(columns.number)
            )
            return rows.all(), connection.execute(
                select(
                    figures.trial,
                    figures.role,
                    figures.objective,
                    figures.value,
                    figures.stderr,
                    figures.n,
                ).order_by(figures.trial, figures.role, figures.objective)
            ).all()

        with _no_collection():
            rows, score_rows = self._read(read)
            return _trials_of(rows, score_rows)

    def counts(self) -> dict[str, int]:
        """Number of trials by state; reads no trial."""
        rows = self._read(
            lambda connection: connection.execute(
                select(schema.trials.c.state, func.count()).group_by(schema.trials.c.state)
            ).all()
        )
        counts = {"SCORED": 0, "PENDING": 0, "FAILED": 0}
        for state, number in rows:
            counts[state] = number
        return counts

    def failures(self) -> tuple[tuple[int, Failure], ...]:
        """(number, failure) of the trials that failed."""
        columns = schema.trials.c
        rows = self._read(
            lambda connection: connection.execute(
                select(columns.number, columns.failure)
                .where(columns.state == "FAILED")
                .order_by(columns.number)
            ).all()
        )
        return tuple(
            (number, failure)
            for number, text in rows
            if (failure := codec.failure_from_json(text)) is not None
        )

    def outcomes(self, number: int, role: Role) -> tuple[Outcome, ...]:
        """Per-item results of one trial. Raises NotFoundError when it has none of that role."""
        columns = schema.outcomes.c
        payload = self._read(
            lambda connection: connection.execute(
                select(columns.payload).where(columns.trial == number, columns.role == role)
            ).scalar()
        )
        if payload is None:
            raise NotFoundError(
                Problem(
                    thing=f"trial {number}",
                    cause=f"has no {role} outcomes",
                    remedy="Only scored trials have; holdout is scored for the front when the "
                    "budget is spent",
                )
            )
        return codec.outcomes_from_bytes(payload)

    def scorecard(self, number: int, role: Role) -> Scorecard:
        """The scorecard of a scored trial; its costs are 0, since reading it costs nothing.

        Raises NotFoundError.
        """

        def read(connection: Connection) -> tuple[Row[Any], Sequence[Row[Any]]]:
            return (
                connection.execute(
                    select(schema.trials).where(schema.trials.c.number == number)
                ).one(),
                connection.execute(
                    select(schema.scores)
                    .where(schema.scores.c.trial == number, schema.scores.c.role == role)
                    .order_by(schema.scores.c.objective)
                ).all(),
            )

        row, scores = self._read(read)
        return Scorecard(
            role=role,
            scores=tuple(
                Score(objective=score.objective, value=score.value, stderr=score.stderr, n=score.n)
                for score in scores
            ),
            outcomes=self.outcomes(number, role),
            weights_digest=row.weights_digest,
            engine_fingerprint=row.engine_fingerprint,
        )

    def spent(self) -> tuple[int, float]:
        """(tokens, worker seconds) of all scored trials."""
        columns = schema.trials.c
        tokens, seconds = self._read(
            lambda connection: connection.execute(
                select(
                    func.sum(columns.num_tokens),
                    func.sum(columns.merge_seconds + columns.score_seconds),
                ).where(columns.state == "SCORED")
            ).one()
        )
        return int(tokens or 0), float(seconds or 0.0)

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

    @staticmethod
    def _is_there(connection: Connection, number: int, role: Role) -> bool:
        columns = schema.outcomes.c
        return (
            connection.execute(
                select(columns.trial).where(columns.trial == number, columns.role == role)
            ).first()
            is not None
        )

    @staticmethod
    def _insert_scores(connection: Connection, number: int, scorecard: Scorecard) -> None:
        connection.execute(
            schema.scores.insert(),
            [
                {
                    "trial": number,
                    "role": scorecard.role,
                    "objective": score.objective,
                    "value": score.value,
                    "stderr": score.stderr,
                    "n": score.n,
                }
                for score in scorecard.scores
            ],
        )
        connection.execute(
            schema.outcomes.insert().values(
                trial=number,
                role=scorecard.role,
                payload=codec.outcomes_to_bytes(scorecard.outcomes),
            )
        )


def _trials_of(rows: Sequence[Row[Any]], score_rows: Sequence[Row[Any]]) -> tuple[Trial, ...]:
    """Trials from their rows and those of their scores; quick for many thousands."""
    scores: dict[tuple[int, str], list[Score]] = defaultdict(list)
    for trial, role, objective, value, stderr, n in score_rows:
        score = Score(objective=objective, value=value, stderr=stderr, n=n)
        scores[trial, role].append(score)
    recipes = codec.recipes_from_json([row[6] for row in rows])
    params = codec.params_from_json([row[7] for row in rows])
    trials = []
    for row, recipe, own in zip(rows, recipes, params, strict=True):
        number, kind, label, state, failure, weights_digest, _, _ = row
        trials.append(
            Trial(
                number=number,
                kind=kind,
                label=label,
                state=state,
                recipe=recipe,
                search=tuple(scores.get((number, "search"), ())),
                holdout=tuple(scores.get((number, "holdout"), ())),
                failure=codec.failure_from_json(failure),
                weights_digest=weights_digest,
                params=own,
            )
        )
    return tuple(trials)
