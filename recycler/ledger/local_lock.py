"""The lock of a run folder: one driver at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recycler.errors import Problem, UsageError


@contextmanager
def only_driver(run_folder: Path) -> Iterator[None]:
    """Hold the run's lock; it falls with the process, however that ends.

    Raises UsageError when another driver has it.
    """
    with (run_folder / "driver.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                Problem(
                    thing=f"run {run_folder}",
                    cause="is being driven by another process",
                    remedy="Wait for it, or give another --dir",
                )
            ) from None
        yield
