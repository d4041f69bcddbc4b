"""The ledger: open a trial before a worker sees it, close it when its scorecard is here. SQLAlchemy Core behind one file.

One writer (the driver) and any number of readers. Each write is one transaction, flushed to the disk before it returns,
so a driver killed at any moment leaves trials that are either PENDING or whole.
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path

from sqlalchemy import Engine, create_engine, event, func, select, update
from sqlalchemy.exc import DatabaseError

from recycler.digest import canonical_json, digest
from recycler.errors import InfrastructureError, NotFoundError, Problem
from recycler.ledger import codec, schema
from recycler.types import Failure, Outcome, Recipe, Role, Score, Scorecard, Trial, TrialKind


class Ledger:
    """Trials, scores and per-item outcomes of one job, at a SQLAlchemy URL or a SQLite path."""

    def __init__(self, url: str | Path, *, create: bool = True):
        url = str(url)
        if "://" not in url:
            if not create and not Path(url).is_file():
                raise NotFoundError(Problem(thing=f"ledger {url}", cause="no such file", remedy="Give the folder of a run that was started"))
            url = f"sqlite:///{url}"
        self._engine = _connect(url)
        try:
            with self._engine.begin() as connection:
                schema.migrate(connection)
        except DatabaseError as error:
            raise InfrastructureError(Problem(thing=f"ledger {url}", cause=f"cannot be opened ({error.orig})", remedy="Check that it is a recycler ledger and that the disk has room")) from None

    def close(self) -> None:
        self._engine.dispose()

    # -------------------------------------------------------------- facts about the job

    def fact(self, key: str) -> str | None:
        with self._engine.connect() as connection:
            return connection.execute(select(schema.facts.c.value).where(schema.facts.c.key == key)).scalar()

    def set_fact(self, key: str, value: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(schema.facts.delete().where(schema.facts.c.key == key))
            connection.execute(schema.facts.insert().values(key=key, value=value))

    # -------------------------------------------------------------- writing

    def open_trial(self, number: int, kind: TrialKind, recipe: Recipe, *, label: str = "", params: tuple[tuple[str, float], ...] = ()) -> None:
        """Write a PENDING trial. Raises sqlalchemy's IntegrityError when the number is taken."""
        with self._engine.begin() as connection:
            connection.execute(schema.trials.insert().values(
                number=number, kind=kind, label=label, state="PENDING", recipe=codec.recipe_to_json(recipe), recipe_digest=digest(recipe),
                params=canonical_json(dict(params)), opened_at=time.time()))

    def close_trial(self, number: int, scorecard: Scorecard) -> None:
        """PENDING -> SCORED, with its scores and outcomes, in one transaction."""
        with self._engine.begin() as connection:
            changed = connection.execute(update(schema.trials).where(schema.trials.c.number == number, schema.trials.c.state == "PENDING").values(
                state="SCORED", weights_digest=scorecard.weights_digest, engine_fingerprint=scorecard.engine_fingerprint, num_tokens=scorecard.num_tokens,
                merge_seconds=scorecard.merge_seconds, score_seconds=scorecard.score_seconds, closed_at=time.time())).rowcount
            assert changed == 1, f"trial {number} is not pending"
            self._insert_scores(connection, number, scorecard)

    def fail_trial(self, number: int, failure: Failure) -> None:
        """PENDING -> FAILED."""
        with self._engine.begin() as connection:
            connection.execute(update(schema.trials).where(schema.trials.c.number == number).values(
                state="FAILED", failure=canonical_json(failure), attempts=failure.attempts, closed_at=time.time()))

    def add_holdout(self, number: int, scorecard: Scorecard) -> None:
        """Add holdout scores to a SCORED trial; a second time changes nothing."""
        with self._engine.begin() as connection:
            there = connection.execute(select(schema.outcomes.c.trial).where(schema.outcomes.c.trial == number, schema.outcomes.c.role == "holdout")).first()
            if there is None:
                self._insert_scores(connection, number, scorecard)

    @staticmethod
    def _insert_scores(connection, number: int, scorecard: Scorecard) -> None:
        connection.execute(schema.scores.insert(), [
            {"trial": number, "role": scorecard.role, "objective": score.objective, "value": score.value, "stderr": score.stderr, "n": score.n}
            for score in scorecard.scores])
        connection.execute(schema.outcomes.insert().values(trial=number, role=scorecard.role, payload=codec.outcomes_to_bytes(scorecard.outcomes)))

    # -------------------------------------------------------------- reading

    def trials(self) -> tuple[Trial, ...]:
        """All trials by number, with their scores."""
        with self._engine.connect() as connection:
            rows = connection.execute(select(schema.trials).order_by(schema.trials.c.number)).all()
            score_rows = connection.execute(select(schema.scores).order_by(schema.scores.c.trial, schema.scores.c.objective)).all()
        scores: dict[tuple[int, str], list[Score]] = defaultdict(list)
        for row in score_rows:
            scores[row.trial, row.role].append(Score(objective=row.objective, value=row.value, stderr=row.stderr, n=row.n))
        return tuple(
            Trial(number=row.number, kind=row.kind, label=row.label, state=row.state, recipe=codec.recipe_from_json(row.recipe),
                  search=tuple(scores[row.number, "search"]), holdout=tuple(scores[row.number, "holdout"]), failure=codec.failure_from_json(row.failure),
                  weights_digest=row.weights_digest, params=codec.params_from_json(row.params))
            for row in rows)

    def outcomes(self, number: int, role: Role) -> tuple[Outcome, ...]:
        """Per-item results of one trial. Raises NotFoundError when it has none of that role."""
        with self._engine.connect() as connection:
            payload = connection.execute(select(schema.outcomes.c.payload).where(schema.outcomes.c.trial == number, schema.outcomes.c.role == role)).scalar()
        if payload is None:
            raise NotFoundError(Problem(thing=f"trial {number}", cause=f"has no {role} outcomes", remedy="Only scored trials have; holdout is scored for the front when the budget is spent"))
        return codec.outcomes_from_bytes(payload)

    def scorecard(self, number: int, role: Role) -> Scorecard:
        """What was written for a scored trial; its costs are 0, since giving it again costs nothing. Raises NotFoundError."""
        with self._engine.connect() as connection:
            row = connection.execute(select(schema.trials).where(schema.trials.c.number == number)).one()
            scores = connection.execute(select(schema.scores).where(schema.scores.c.trial == number, schema.scores.c.role == role).order_by(schema.scores.c.objective)).all()
        return Scorecard(role=role, scores=tuple(Score(objective=score.objective, value=score.value, stderr=score.stderr, n=score.n) for score in scores),
                         outcomes=self.outcomes(number, role), weights_digest=row.weights_digest, engine_fingerprint=row.engine_fingerprint)

    def spent(self) -> tuple[int, float]:
        """(tokens, worker seconds) of all scored trials."""
        columns = schema.trials.c
        with self._engine.connect() as connection:
            tokens, seconds = connection.execute(select(func.sum(columns.num_tokens), func.sum(columns.merge_seconds + columns.score_seconds)).where(columns.state == "SCORED")).one()
        return int(tokens or 0), float(seconds or 0.0)


def _connect(url: str) -> Engine:
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        @event.listens_for(engine, "connect")
        def _pragmas(connection, _record) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA busy_timeout=30000")
    return engine
