"""Statements that read a ledger, and values from their rows."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, func, select

from recycler.ledger import codec, schema
from recycler.types import Failure, Outcome, Role, Score, Scorecard, Trial

Rows = Sequence[Sequence[Any]]


def read_fact(connection: Connection, key: str) -> str | None:
    """The text of a fact; None where it was never stored."""
    own = select(schema.facts.c.value).where(schema.facts.c.key == key)
    return connection.execute(own).scalar()


def read_files(connection: Connection) -> dict[str, bytes]:
    """Files of the job by relative path."""
    rows = connection.execute(select(schema.files)).all()
    return {row.name: bytes(row.content) for row in rows}


def trial_rows(connection: Connection) -> tuple[Rows, Rows]:
    """Rows of all trials, and of all their scores."""
    columns, figures = schema.trials.c, schema.scores.c
    trials = select(
        columns.number,
        columns.kind,
        columns.label,
        columns.state,
        columns.failure,
        columns.weights_digest,
        columns.recipe,
        columns.params,
    ).order_by(columns.number)
    scores = select(
        figures.trial,
        figures.role,
        figures.objective,
        figures.value,
        figures.stderr,
        figures.n,
    ).order_by(figures.trial, figures.role, figures.objective)
    return connection.execute(trials).all(), connection.execute(scores).all()


def trials_of(rows: Rows, score_rows: Rows) -> tuple[Trial, ...]:
    """Trials from `trial_rows`; quick for many thousands."""
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


def read_counts(connection: Connection) -> dict[str, int]:
    """Number of trials by state; reads no trial."""
    counts = {"SCORED": 0, "PENDING": 0, "FAILED": 0}
    state = schema.trials.c.state
    for name, number in connection.execute(select(state, func.count()).group_by(state)):
        counts[name] = number
    return counts


def read_failures(connection: Connection) -> tuple[tuple[int, Failure], ...]:
    """(number, failure) of the trials that failed."""
    columns = schema.trials.c
    failed = select(columns.number, columns.failure).where(columns.state == "FAILED")
    found = []
    for number, text in connection.execute(failed.order_by(columns.number)):
        failure = codec.failure_from_json(text)
        if failure is not None:
            found.append((number, failure))
    return tuple(found)


def read_outcomes(connection: Connection, number: int, role: Role) -> tuple[Outcome, ...] | None:
    """Outcomes of one trial on one split; None where it has none."""
    columns = schema.outcomes.c
    own = select(columns.payload).where(columns.trial == number, columns.role == role)
    payload = connection.execute(own).scalar()
    return None if payload is None else codec.outcomes_from_bytes(payload)


def read_scorecard(
    connection: Connection, number: int, role: Role, outcomes: tuple[Outcome, ...]
) -> Scorecard:
    """The scorecard of a scored trial, with costs of 0."""
    figures = schema.scores.c
    row = connection.execute(select(schema.trials).where(schema.trials.c.number == number)).one()
    own = select(schema.scores).where(figures.trial == number, figures.role == role)
    scores = connection.execute(own.order_by(figures.objective)).all()
    return Scorecard(
        role=role,
        scores=tuple(
            Score(objective=score.objective, value=score.value, stderr=score.stderr, n=score.n)
            for score in scores
        ),
        outcomes=outcomes,
        weights_digest=row.weights_digest,
        engine_fingerprint=row.engine_fingerprint,
    )


def read_spent(connection: Connection) -> tuple[int, float]:
    """(tokens, worker seconds) of all scored trials."""
    columns = schema.trials.c
    seconds = func.sum(columns.merge_seconds + columns.score_seconds)
    spent = select(func.sum(columns.num_tokens), seconds).where(columns.state == "SCORED")
    tokens, seconds_spent = connection.execute(spent).one()
    return int(tokens or 0), float(seconds_spent or 0.0)


@contextmanager
def no_collection() -> Iterator[None]:
    """Stop garbage collection, which would visit each of a million new objects many times."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
