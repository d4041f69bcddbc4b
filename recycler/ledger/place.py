"""Places of ledgers: a SQLite file for one run, or a schema for each job of a database.

A job in a database is written URL?job=ID. Passwords come from the environment (PGPASSWORD,
~/.pgpass, or RECYCLER_LEDGER with the password in it); a URL with one is never stored, printed or
put on a command line.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from recycler.errors import NotFoundError, Problem, UsageError
from recycler.io.redact import redacted, without_password

LEDGER = "ledger.sqlite"
LEDGER_URL = "ledger.url"  # in a run folder whose ledger is in a database: where, without password
ENVIRONMENT = "RECYCLER_LEDGER"
JOB_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,53}")  # with the prefix, a PostgreSQL identifier
SCHEMA_PREFIX = "recycler_"
_URL = re.compile(r"(postgres|postgresql)(?:\+psycopg)?:/+(.*)", re.DOTALL)


def is_database(place: str | Path) -> bool:
    """True when a ledger's place is a database's URL rather than a path."""
    return _URL.fullmatch(str(place)) is not None


def job_place(url: str, job_id: str) -> str:
    """The place of one job's ledger in a database.

    Raises UsageError for an id that is no plain word.
    """
    if not JOB_ID.fullmatch(job_id):
        raise UsageError(
            Problem(
                thing=f"job id {job_id[:80]!r}",
                cause="is not a plain word",
                remedy="Lower case letters, digits, dots, dashes; at most 54",
            )
        )
    base, _ = split_place(url)
    return f"{base}{'&' if '?' in base else '?'}job={job_id}"


def split_place(place: str) -> tuple[str, str | None]:
    """(URL of the database, job id or None). Raises UsageError for what is no URL of PostgreSQL."""
    match = _URL.fullmatch(str(place))
    if match is None:
        raise UsageError(
            Problem(
                thing=f"ledger {redacted(str(place))}",
                cause="is not the URL of a database",
                remedy="Write postgresql://USER@HOST/DATABASE",
            )
        )
    address, _, query = match[2].partition("?")
    words = [word for word in query.split("&") if word]
    jobs = [word.removeprefix("job=") for word in words if word.startswith("job=")]
    rest = "&".join(word for word in words if not word.startswith("job="))
    return f"postgresql://{address}{'?' if rest else ''}{rest}", jobs[0] if jobs else None


def find_ledger(run: str | Path) -> str:
    """The place of a run's ledger, for the run as the user names it.

    A run is named by its folder, as URL?job=ID, or by a job's id in the database RECYCLER_LEDGER.
    Raises NotFoundError, and UsageError for a URL without a job.
    """
    text = str(run)
    if is_database(text):
        if split_place(text)[1] is None:
            raise UsageError(
                Problem(
                    thing=f"ledger {redacted(text)}",
                    cause="names no job",
                    remedy="Add ?job=ID; recycler list --ledger URL shows the ids",
                )
            )
        return text
    folder = Path(text)
    if (folder / LEDGER).is_file():
        return str(folder / LEDGER)
    if (folder / LEDGER_URL).is_file():
        return (folder / LEDGER_URL).read_text().strip()
    if JOB_ID.fullmatch(text) and os.environ.get(ENVIRONMENT) and not folder.exists():
        return job_place(os.environ[ENVIRONMENT], text)
    raise NotFoundError(
        Problem(
            thing=f"run {text}",
            cause=f"has no {LEDGER}",
            remedy="Give the folder of a run (recycler run job.yaml --dir RUN), or the id of a job "
            f"in the database that {ENVIRONMENT} names",
        )
    )


def has_password(url: str) -> bool:
    return without_password(url) != url


def with_password(url: str) -> str:
    """The URL with the password of RECYCLER_LEDGER, when both name the same place."""
    known = os.environ.get(ENVIRONMENT, "")
    if not has_password(url) and has_password(known) and _bare(known) == _bare(url):
        base, job = split_place(known)[0], split_place(url)[1]
        return job_place(base, job) if job else base
    return url


def _bare(url: str) -> str:
    return without_password(split_place(url)[0]).partition("?")[0] if is_database(url) else url
