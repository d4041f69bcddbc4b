"""A lease with a heartbeat and a fencing token: of two drivers for one job exactly one goes on.

All times are by the database's clock. The holder renews the lease three times per term. A driver
that finds it held waits for one renewal: if that comes, the holder is alive and the newcomer says
who it is and goes away; if the term runs out instead, the newcomer takes over with a token one
higher. Each write checks the token in its own transaction, so a driver that was thought dead and
wakes up writes nothing.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import dataclass

from sqlalchemy import Connection, select, update
from sqlalchemy.exc import SQLAlchemyError

from recycler.errors import InfrastructureError, Problem
from recycler.ledger.database import OPEN_SECONDS, Database, retried
from recycler.ledger.schema import lease

DEFAULT_TERM_SECONDS = 30.0
POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The driver of a job, and the time since its last heartbeat, by the database's clock."""

    name: str
    seconds_since_renewal: float
    is_alive: bool


def term_seconds() -> float:
    """RECYCLER_LEASE_SECONDS: after how long without a heartbeat a driver counts as gone."""
    return float(os.environ.get("RECYCLER_LEASE_SECONDS") or DEFAULT_TERM_SECONDS)


def read_holder(database: Database) -> Holder | None:
    """The holder of the lease, also one that died with it; None when it was given back."""

    def read(again: bool) -> Holder | None:
        with database.engine.connect() as connection:
            row = connection.execute(select(lease)).first()
            if row is None or not row.holder:
                return None
            now = database.now(connection)
        return Holder(
            name=row.holder,
            seconds_since_renewal=max(0.0, now - row.renewed_at),
            is_alive=row.expires_at > now,
        )

    return retried(read, database, OPEN_SECONDS)


class Lease:
    """The right to write, from construction until `release`.

    Raises InfrastructureError when a living driver has it.
    """

    def __init__(self, database: Database, *, term: float | None = None):
        self._database, self._term = database, term or term_seconds()
        self.holder = f"process {os.getpid()} on {socket.gethostname()}"
        self.token = self._take()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="recycler-lease")
        self._thread.start()

    def check(self, connection: Connection) -> None:
        """Check within a transaction that writes that the lease is still ours.

        Raises InfrastructureError when another driver took it.
        """
        row = connection.execute(
            select(lease.c.token, lease.c.holder).with_for_update(read=True)
        ).one()
        if row.token != self.token:
            raise InfrastructureError(
                Problem(
                    thing=f"ledger {self._database.shown}",
                    cause=f"was taken over by {row.holder or 'another driver'}",
                    remedy="This driver was thought dead and has stopped; that one goes on",
                )
            )

    def release(self) -> None:
        """Give the lease back, so that the next driver need not wait.

        A database that is away is not waited for.
        """
        self._stop.set()
        self._thread.join(timeout=5)
        try:
            with self._database.engine.begin() as connection:
                connection.execute(
                    update(lease)
                    .where(lease.c.token == self.token)
                    .values(holder="", expires_at=0.0)
                )
        except SQLAlchemyError:
            pass  # it runs out by itself

    # ---------------------------------------------------------------- taking and keeping

    def _take(self) -> int:
        seen: float | None = None
        while True:
            token, holder, renewed, left = retried(self._attempt, self._database, OPEN_SECONDS)
            if token is not None:
                return token
            if seen is not None and renewed != seen:
                raise InfrastructureError(
                    Problem(
                        thing=f"ledger {self._database.shown}",
                        cause=f"is being driven by {holder}",
                        remedy="Wait for it, or stop it first; recycler status shows how far it is",
                    )
                )
            seen = renewed
            time.sleep(min(POLL_SECONDS, max(left, 0.05)))

    def _attempt(self, again: bool) -> tuple[int | None, str, float, float]:
        """Try to take the lease once: (token, holder, its last renewal, seconds left of its term).

        The token is None while another driver has the lease.
        """
        with self._database.engine.begin() as connection:
            row = connection.execute(select(lease).with_for_update()).one()
            now = self._database.now(connection)
            if again and row.holder == self.holder and row.expires_at > now:
                return row.token, row.holder, row.renewed_at, 0.0  # our own, whose answer was lost
            if row.holder and row.expires_at > now:
                return None, row.holder, row.renewed_at, row.expires_at - now
            connection.execute(
                update(lease).values(
                    token=row.token + 1,
                    holder=self.holder,
                    taken_at=now,
                    renewed_at=now,
                    expires_at=now + self._term,
                )
            )
            return row.token + 1, self.holder, now, 0.0

    def _beat(self) -> None:
        while not self._stop.wait(self._term / 3):
            try:
                with self._database.engine.begin() as connection:
                    now = self._database.now(connection)
                    changed = connection.execute(
                        update(lease)
                        .where(lease.c.token == self.token)
                        .values(renewed_at=now, expires_at=now + self._term)
                    ).rowcount
            except SQLAlchemyError:
                # away: the next beat may reach it, and nobody can take over meanwhile either
                continue
            if changed == 0:
                return  # taken over; the next write says so
