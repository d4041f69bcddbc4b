"""Checks of what a job reaches over the network: Ray, a bucket, a ledger's database."""

from __future__ import annotations

import os
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

from recycler.cli.machine_checks import SKEW_SECONDS, TRY_SECONDS, Check
from recycler.errors import RecyclerError
from recycler.pool.storage import bucket as objects


def ray(address: str | None) -> Iterator[Check]:
    """Check that a Ray cluster asks for a token.

    The one at `address`, or one that would be started with this environment.
    """
    token = _ray_token()
    if not address or not address.startswith(("http://", "https://")):
        mode = os.environ.get("RAY_AUTH_MODE") == "token"
        yield Check(
            name="ray",
            level="ok" if mode or not address else "warn",
            found="RAY_AUTH_MODE=token"
            if mode
            else "local clusters only: RAY_AUTH_MODE is not token",
            remedy="Set RAY_AUTH_MODE=token before ray start, and give the dashboard's http:// "
            "address here to have it tried",
        )
        return
    try:
        open_status, _ = _asked(address, None)
    except OSError as error:
        yield Check(
            name="ray",
            level="fail",
            found=f"{address} cannot be reached ({getattr(error, 'reason', error)})",
            remedy="Check the address (the dashboard's, often port 8265) and that the head is up",
        )
        return
    if open_status == 200:
        yield Check(
            name="ray",
            level="fail",
            found=f"{address} takes jobs from anybody, without a token",
            remedy="Start it with RAY_AUTH_MODE=token: who reaches it can run anything on it",
        )
        return
    status, date = _asked(address, token) if token else (open_status, None)
    remedy = (
        "Set RAY_AUTH_TOKEN to the cluster's token"
        if not token
        else "The token is another cluster's: set RAY_AUTH_TOKEN anew"
    )
    yield Check(
        name="ray",
        level="ok" if status == 200 else "fail",
        found=f"{address} asks for a token"
        + (
            " and takes ours"
            if status == 200
            else f" and answers {status} to {'ours' if token else 'none'}"
        ),
        remedy=remedy,
    )
    if date is not None:
        skew = abs(time.time() - date)
        yield Check(
            name="clock of the head",
            level="ok" if skew < SKEW_SECONDS else "warn",
            found=f"{skew:.0f} s from ours",
            remedy="Let both be kept by a time service",
        )


def _asked(address: str, token: str | None) -> tuple[int, float | None]:
    """(status, the server's time in seconds since 1970) of the jobs list. Raises OSError."""
    request = urllib.request.Request(
        f"{address.rstrip('/')}/api/jobs/",
        headers={"Authorization": f"Bearer {token}"} if token else {},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TRY_SECONDS) as answer:
            status, date = answer.status, answer.headers.get("Date")
    except urllib.error.HTTPError as error:
        status, date = error.code, error.headers.get("Date")
    return status, parsedate_to_datetime(date).timestamp() if date else None


def _ray_token() -> str | None:
    """The token that Ray would send:

    RAY_AUTH_TOKEN, the file of RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token.
    """
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"]
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path.read_text().strip() if path.is_file() else None


def bucket(url: str) -> Iterator[Check]:
    """Check that a bucket lists, writes conditionally, reads ranges of a version, removes.

    Exports and leases need these.
    """
    probe, raw = (
        f"{objects.trimmed(url)}/.recycler-doctor-{secrets.token_hex(8)}",
        secrets.token_bytes(64),
    )
    try:
        found, below = objects.list_prefix(url)
        yield Check(
            name="bucket read",
            level="ok",
            found=f"{url}: {len(found)} objects, {len(below)} folders",
        )
        if not objects.write_new(probe, raw):
            yield Check(
                name="bucket write",
                level="fail",
                found=f"{url} says that a new name is taken",
                remedy="Try again; if it goes on, the server's conditional writes are broken",
            )
            return
        try:
            again = objects.write_new(probe, secrets.token_bytes(64))
            yield Check(
                name="conditional write",
                level="fail" if again else "ok",
                found="a second writer overwrites the first"
                if again
                else "of two writers one is refused",
                remedy="The server ignores If-None-Match: use one that knows it, or two drivers "
                "can spoil an export",
            )
            whole = objects.read(probe)
            part = objects.read(probe, 16, 32, etag=whole.etag)
            good = part.raw == (raw[16:32] if not again else whole.raw[16:32])
            yield Check(
                name="bucket range",
                level="ok" if good else "fail",
                found="a range of one version comes back" if good else "a range comes back changed",
                remedy="A proxy in between spoils ranged reads",
            )
        finally:
            objects.remove(probe)
    except RecyclerError as error:
        problem = error.problems[0]
        yield Check(
            name="bucket",
            level="fail",
            found=f"{problem.thing}: {problem.cause}",
            remedy=problem.remedy,
        )


def ledger(url: str) -> Iterator[Check]:
    """Check that the database of ledgers answers."""
    # loads sqlalchemy
    from recycler.io.redact import redacted
    from recycler.ledger.database import job_ids

    try:
        yield Check(name="ledger", level="ok", found=f"{redacted(url)}: {len(job_ids(url))} jobs")
    except RecyclerError as error:
        problem = error.problems[0]
        yield Check(
            name="ledger",
            level="fail",
            found=redacted(f"{problem.thing}: {problem.cause}"),
            remedy=problem.remedy,
        )
