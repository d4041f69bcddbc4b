"""The ledger that a run writes: a file in its folder, or the job's schema in a database."""

from __future__ import annotations

from pathlib import Path

from recycler.errors import Problem, UsageError
from recycler.io.atomic import write_atomic
from recycler.io.redact import without_password
from recycler.ledger import Ledger
from recycler.ledger.place import LEDGER, LEDGER_URL, job_place
from recycler.run.bundle import Bundle


def open_own_ledger(run_folder: Path, url: str | None, bundle: Bundle | None) -> Ledger:
    """Open the ledger of a run, and leave its address in the folder where it is a database.

    Raises UsageError for a database where the folder has a ledger of its own.
    """
    if url is None or bundle is None:
        remembered = run_folder / LEDGER_URL
        if remembered.is_file():
            return Ledger(remembered.read_text().strip())
        return Ledger(run_folder / LEDGER)
    if (run_folder / LEDGER).exists():
        raise UsageError(
            Problem(
                thing=f"run {run_folder}",
                cause=f"has a ledger of its own ({LEDGER})",
                remedy="Leave out --ledger (and RECYCLER_LEDGER), or give another --dir",
            )
        )
    place = job_place(url, bundle.id)
    write_atomic(run_folder / LEDGER_URL, without_password(place) + "\n")
    return Ledger(place)
