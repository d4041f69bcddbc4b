"""Connections to the ledger's database, and what is tried again when it goes away.

SQLAlchemy and its drivers stay here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError, NoSuchModuleError, OperationalError

from recycler.errors import (
    InfrastructureError,
    NotFoundError,
    Problem,
    UnsafeInputError,
    UsageError,
)
from recycler.io.redact import redacted
from recycler.ledger.place import SCHEMA_PREFIX, is_database, split_place, with_password

OPEN_SECONDS = 20.0  # how long a database may be away when a ledger is opened
PATIENCE_SECONDS = 900.0  # and while a job runs: a restart, a failover
# SQLSTATE: connection, resources, shutdown, serialization, deadlock
_PASSING_STATES = ("08", "53", "57", "40001", "40P01")
_LASTING_WORDS = (
    "authentication failed",
    "does not exist",
    "no pg_hba.conf entry",
    "no password supplied",
    "could not translate host name",
    "Name or service not known",
)
Value = TypeVar("Value")


class Database:
    """One job's tables: an engine, and the schema that they lie in.

    What is committed by `lazy_engine` of a SQLite file outlives the process at once, and a power
    cut from the next commit of `engine` on: enough for what would only be done again.
    """

    def __init__(self, place: str | Path, *, create: bool, patience: float | None = None):
        self.place, self.patience = str(place), patience
        self.engine: Engine
        self.lazy_engine: Engine
        self.shown = redacted(self.place)
        self.is_shared = is_database(place)
        if self.is_shared:
            url, job = split_place(with_password(self.place))
            if job is None:
                raise UsageError(
                    Problem(
                        thing=f"ledger {self.shown}", cause="names no job", remedy="Add ?job=ID"
                    )
                )
            self.schema = f"{SCHEMA_PREFIX}{job}"
            self._bare = server_engine(url, patience)
            self.engine = self.lazy_engine = self._bare.execution_options(
                schema_translate_map={None: self.schema}
            )
            retried(lambda again: self._make_schema(create), self, OPEN_SECONDS)
            return
        if not create and not Path(self.place).is_file():
            raise NotFoundError(
                Problem(
                    thing=f"ledger {self.place}",
                    cause="no such file",
                    remedy="Give the folder of a run that was started",
                )
            )
        self.engine = _sqlite(self.place, synchronous="FULL")
        self.lazy_engine = _sqlite(self.place, synchronous="NORMAL")

    def now(self, connection: Connection) -> float:
        """Seconds since 1970 by the clock that all drivers of this ledger share."""
        if not self.is_shared:
            return time.time()
        clock = text("SELECT extract(epoch FROM clock_timestamp())")
        return float(connection.execute(clock).scalar_one())

    def lock_schema(self, connection: Connection) -> None:
        """Until the transaction ends, nobody else makes or changes this job's tables."""
        if self.is_shared:
            connection.execute(
                text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": self.schema}
            )
        else:  # sqlite3 would begin at the first row that is written, after the tables
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    def close(self) -> None:
        self.engine.dispose()
        self.lazy_engine.dispose()

    def _make_schema(self, create: bool) -> None:
        with self._bare.begin() as connection:
            if create:
                self.lock_schema(connection)
            there = connection.execute(
                text("SELECT 1 FROM information_schema.schemata WHERE schema_name = :name"),
                {"name": self.schema},
            ).first()
            if there is None and not create:
                raise NotFoundError(
                    Problem(
                        thing=f"job {self.schema.removeprefix(SCHEMA_PREFIX)!r}",
                        cause=f"not in {self.shown.partition('?')[0]}",
                        remedy="recycler list --ledger URL shows the jobs there",
                    )
                )
            if there is None:
                connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{self.schema}"'))


def job_ids(url: str, *, patience: float | None = None) -> list[str]:
    """Ids of the jobs in a database.

    One that is away is waited for `patience` seconds, OPEN_SECONDS by default. Raises
    InfrastructureError.
    """
    engine = server_engine(split_place(with_password(url))[0], patience)

    def names(again: bool) -> list[str]:
        with engine.connect() as connection:
            rows = connection.execute(
                text(
                    "SELECT schema_name FROM information_schema.schemata WHERE "
                    "starts_with(schema_name, :prefix) ORDER BY 1"
                ),
                {"prefix": SCHEMA_PREFIX},
            )
            return [row[0].removeprefix(SCHEMA_PREFIX) for row in rows]

    try:
        return retried(names, redacted(url), OPEN_SECONDS if patience is None else patience)
    finally:
        engine.dispose()


def server_engine(url: str, patience: float | None = None) -> Engine:
    """An engine over a PostgreSQL server; with `patience` one that hangs is given up soon.

    Raises UsageError when the driver is not installed.
    """
    seconds = 10 if patience is None else max(2, min(10, round(patience)))  # libpq's least is 2
    options = {
        "connect_timeout": seconds,
        "application_name": "recycler",
        "keepalives_idle": 10,
        "tcp_user_timeout": 3_000 * seconds,
    }
    try:
        engine = create_engine(
            url.replace("postgresql://", "postgresql+psycopg://", 1),
            pool_size=4,
            max_overflow=4,
            connect_args=options,
        )
    except (ModuleNotFoundError, NoSuchModuleError):
        raise UsageError(
            Problem(
                thing=f"ledger {redacted(url)}",
                cause="needs psycopg, which is not installed",
                remedy="pip install 'recycler[postgres]'",
            )
        ) from None

    @event.listens_for(engine, "connect")
    def _settings(connection: Any, _record: Any) -> None:
        # a driver that is frozen in mid-transaction must not keep its successor out
        connection.execute("SET idle_in_transaction_session_timeout = '30s'")
        connection.commit()

    return engine


def _sqlite(path: str, *, synchronous: str) -> Engine:
    engine = create_engine(f"sqlite:///{path}")

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute("PRAGMA busy_timeout=30000")

    return engine


def retried(
    act: Callable[[bool], Value], database: Database | str, patience: float = PATIENCE_SECONDS
) -> Value:
    """Call `act(False)`; while the database is away, wait and call `act(True)`.

    True tells `act` that an earlier call may have been committed although its answer was lost.
    Raises InfrastructureError when patience ends.
    """
    shown = database if isinstance(database, str) else database.shown
    if not isinstance(database, str) and database.patience is not None:
        patience = min(patience, database.patience)
    start, pause, again = time.monotonic(), 0.1, False
    while True:
        try:
            return act(again)
        except DBAPIError as error:
            shared = isinstance(database, str) or database.is_shared
            if not isinstance(error, OperationalError) and not error.connection_invalidated:
                if not shared and "malformed" in str(error.orig):
                    raise UnsafeInputError(
                        Problem(
                            thing=f"ledger {shown}",
                            cause=f"is damaged ({error.orig})",
                            remedy="Put a copy in its place",
                        )
                    ) from None
                raise
            if not shared or not _may_pass(error) or time.monotonic() - start > patience:
                remedy = (
                    "Check that the database is up and may be reached"
                    if shared
                    else "Check that it is a recycler ledger and that the disk has room"
                )
                raise InfrastructureError(
                    Problem(
                        thing=f"ledger {shown}",
                        cause="cannot be used "
                        f"({redacted(str(error.orig).strip().splitlines()[0])})",
                        remedy=f"{remedy}; what was acknowledged is kept",
                    )
                ) from None
        time.sleep(pause)
        pause, again = min(2 * pause, 5.0), True


def _may_pass(error: DBAPIError) -> bool:
    state = getattr(error.orig, "sqlstate", None) or ""
    if any(word in str(error.orig) for word in _LASTING_WORDS):
        return False
    return error.connection_invalidated or not state or state.startswith(_PASSING_STATES)
