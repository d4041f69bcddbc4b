"""Tables and numbered migrations, applied once and in order."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    func,
    inspect,
    select,
)

metadata = MetaData()

applied = Table("migrations", metadata, Column("number", Integer, primary_key=True))

facts = Table(
    "facts",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

trials = Table(
    "trials",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("kind", String(32), nullable=False),
    Column("label", Text, nullable=False, default=""),
    Column("state", String(16), nullable=False),
    Column("recipe", Text, nullable=False),
    Column("recipe_digest", String(64), nullable=False, index=True),
    Column("params", Text, nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("failure", Text),
    Column("weights_digest", Text, nullable=False, default=""),
    Column("engine_fingerprint", Text, nullable=False, default=""),
    Column("num_tokens", BigInteger, nullable=False, default=0),
    Column("merge_seconds", Float, nullable=False, default=0.0),
    Column("score_seconds", Float, nullable=False, default=0.0),
    Column("opened_at", Float, nullable=False),
    Column("closed_at", Float),
)

scores = Table(
    "scores",
    metadata,
    Column("trial", Integer, nullable=False),
    Column("role", String(16), nullable=False),
    Column("objective", Text, nullable=False),
    Column("value", Float, nullable=False),
    Column("stderr", Float, nullable=False),
    Column("n", Integer, nullable=False),
    PrimaryKeyConstraint("trial", "role", "objective"),
)

outcomes = Table(  # per-item results of one trial on one split: zlib-compressed JSON
    "outcomes",
    metadata,
    Column("trial", Integer, nullable=False),
    Column("role", String(16), nullable=False),
    Column("payload", LargeBinary, nullable=False),
    PrimaryKeyConstraint("trial", "role"),
)

# one row: who may write to a ledger that several machines see; every taking over raises the token
lease = Table(
    "lease",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("token", Integer, nullable=False),
    Column("holder", Text, nullable=False),
    Column("taken_at", Float, nullable=False),
    Column("renewed_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
)

files = Table(  # the job's bundle, so that it can be resumed from anywhere
    "files",
    metadata,
    Column("name", String(400), primary_key=True),
    Column("content", LargeBinary, nullable=False),
)

by_state = Index(
    "ix_trials_state_cost",
    trials.c.state,
    trials.c.num_tokens,
    trials.c.merge_seconds,
    trials.c.score_seconds,
)  # a summary reads no rows


def m001_initial(connection: Connection) -> None:
    for table in (facts, trials, scores, outcomes):
        table.create(connection, checkfirst=True)


def m002_lease_files_and_summary(connection: Connection) -> None:
    lease.create(connection, checkfirst=True)
    files.create(connection, checkfirst=True)
    connection.execute(
        lease.insert().values(
            id=1, token=0, holder="", taken_at=0.0, renewed_at=0.0, expires_at=0.0
        )
    )
    by_state.create(connection, checkfirst=True)


MIGRATIONS: tuple[Callable[[Connection], None], ...] = (m001_initial, m002_lease_files_and_summary)


def is_current(connection: Connection) -> bool:
    """True when nothing is left to migrate.

    It is asked before any lock is taken, since readers open ledgers too.
    """
    if not inspect(connection).has_table(applied.name):
        return False
    count = connection.execute(select(func.count()).select_from(applied)).scalar_one()
    return count >= len(MIGRATIONS)


def migrate(connection: Connection) -> None:
    """Bring the database to the newest schema, under the lock of `Database.lock_schema`."""
    applied.create(connection, checkfirst=True)
    done = {row.number for row in connection.execute(select(applied))}
    for number, migration in enumerate(MIGRATIONS, start=1):
        if number not in done:
            migration(connection)
            connection.execute(applied.insert().values(number=number))
