"""Statements that change a ledger, each within one transaction of the caller.

`again` is True where an earlier attempt may have been committed although its answer was lost; the
statement then changes nothing that stands there already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import ColumnElement, Connection, select, update

from recycler.digest import canonical_json, digest
from recycler.ledger import codec, schema
from recycler.recipe_json import recipe_to_json
from recycler.types import Failure, Recipe, Role, Scorecard, TrialKind


def put_fact(connection: Connection, key: str, value: str) -> None:
    """Store the text of a fact in place of the one before."""
    connection.execute(schema.facts.delete().where(schema.facts.c.key == key))
    connection.execute(schema.facts.insert().values(key=key, value=value))


def put_files(connection: Connection, files: Mapping[str, bytes]) -> None:
    """Store files by relative path in place of those before."""
    rows = [{"name": name, "content": content} for name, content in sorted(files.items())]
    connection.execute(schema.files.delete())
    connection.execute(schema.files.insert(), rows)


def insert_trial(
    connection: Connection,
    number: int,
    kind: TrialKind,
    recipe: Recipe,
    *,
    label: str,
    params: tuple[tuple[str, float], ...],
    now: float,
    again: bool,
) -> None:
    """Insert a PENDING trial. Raises sqlalchemy's IntegrityError when the number is taken."""
    columns = schema.trials.c
    same = (columns.number == number) & (columns.recipe_digest == digest(recipe))
    if again and connection.execute(select(columns.number).where(same)).first():
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
            opened_at=now,
        )
    )


def score_trial(
    connection: Connection, number: int, scorecard: Scorecard, *, now: float, again: bool
) -> None:
    """PENDING -> SCORED, with scores and outcomes."""
    columns = schema.trials.c
    changed = connection.execute(
        update(schema.trials)
        .where(columns.number == number, columns.state == "PENDING")
        .values(
            state="SCORED",
            weights_digest=scorecard.weights_digest,
            engine_fingerprint=scorecard.engine_fingerprint,
            num_tokens=scorecard.num_tokens,
            merge_seconds=scorecard.merge_seconds,
            score_seconds=scorecard.score_seconds,
            closed_at=now,
        )
    ).rowcount
    if again and changed == 0 and has_outcomes(connection, number, scorecard.role):
        return
    assert changed == 1, f"trial {number} is not pending"
    insert_scores(connection, number, scorecard)


def fail_trial(connection: Connection, number: int, failure: Failure, *, now: float) -> None:
    """PENDING -> FAILED."""
    connection.execute(
        update(schema.trials)
        .where(schema.trials.c.number == number)
        .values(
            state="FAILED",
            failure=canonical_json(failure),
            attempts=failure.attempts,
            closed_at=now,
        )
    )


def reopen_trials(connection: Connection, numbers: Iterable[int]) -> None:
    """FAILED -> PENDING."""
    connection.execute(
        update(schema.trials)
        .where(schema.trials.c.number.in_(numbers), schema.trials.c.state == "FAILED")
        .values(state="PENDING", failure=None, closed_at=None)
    )


def extend_trial(connection: Connection, number: int, scorecard: Scorecard) -> None:
    """Replace scores and outcomes of a SCORED trial by those of more items, or merged weights.

    Costs are added. Changes nothing where the scorecard was written before.
    """
    columns = schema.trials.c
    theirs: dict[str, ColumnElement[bool]] = {
        table.name: (table.c.trial == number) & (table.c.role == scorecard.role)
        for table in (schema.scores, schema.outcomes)
    }
    own_outcomes = select(schema.outcomes.c.payload).where(theirs[schema.outcomes.name])
    stored = codec.outcomes_from_bytes(connection.execute(own_outcomes).scalar_one())
    own_weights = select(columns.weights_digest).where(columns.number == number)
    weights = connection.execute(own_weights).scalar_one()
    has_all = len(stored) >= len(scorecard.outcomes)
    if has_all and weights == scorecard.weights_digest:
        return
    for table in (schema.scores, schema.outcomes):
        connection.execute(table.delete().where(theirs[table.name]))
    insert_scores(connection, number, scorecard)
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


def insert_scores(connection: Connection, number: int, scorecard: Scorecard) -> None:
    """Insert the scores and outcomes of one trial on one split."""
    rows = [
        {
            "trial": number,
            "role": scorecard.role,
            "objective": score.objective,
            "value": score.value,
            "stderr": score.stderr,
            "n": score.n,
        }
        for score in scorecard.scores
    ]
    payload = codec.outcomes_to_bytes(scorecard.outcomes)
    connection.execute(schema.scores.insert(), rows)
    connection.execute(
        schema.outcomes.insert().values(trial=number, role=scorecard.role, payload=payload)
    )


def has_outcomes(connection: Connection, number: int, role: Role) -> bool:
    """True when outcomes of a trial on a split were written."""
    columns = schema.outcomes.c
    own = select(columns.trial).where(columns.trial == number, columns.role == role)
    return connection.execute(own).first() is not None
