"""The job that a run was started with, as its folder remembers it.

Doors read it to start the job again, export from it or vary it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recycler.errors import UsageError
from recycler.io.atomic import atomic_file, write_atomic
from recycler.io.strict_yaml import YamlDocument
from recycler.location import parse_location
from recycler.specs.job import JobSpec, read_job

STARTED = "started.json"  # in a run folder: the job file and data folders it was last started with
COPY = "job.yaml"  # in a run folder: the job file as it was at the first start


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A job as a run was started with it."""

    job: JobSpec
    document: YamlDocument  # that the job was read from
    folder: Path  # that its relative paths are meant from
    data: tuple[Path, ...]  # data folders that were given besides

    def beside(self, place: str) -> str:
        """A path of the job file as it is meant from anywhere; URLs stay as they are."""
        return str(parse_location(place).beside(self.folder))


def write_started(run_folder: Path, job: Path, data: Sequence[Path]) -> None:
    """Remember what a run is started with, and its first job file.

    A driver killed here leaves each file as it was, or whole.
    """
    if not (run_folder / COPY).exists():
        with atomic_file(run_folder / COPY) as aside:
            shutil.copyfile(job, aside)
    write_atomic(
        run_folder / STARTED,
        json.dumps(
            {"job": str(job.resolve()), "data": [str(Path(folder).resolve()) for folder in data]}
        ),
    )


def read_started(run_folder: Path) -> Started | None:
    """The job that a run was last started with, from its job file or from the run's copy.

    The copy is read where the job file has gone or is no job any more. None for a run that is
    driven elsewhere, or was made by hand.
    """
    try:
        stored = json.loads((run_folder / STARTED).read_text())
        path, data = Path(stored["job"]), tuple(map(Path, stored["data"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    for source in (path, run_folder / COPY):
        try:
            job, document = read_job(source)
        except UsageError:
            continue
        return Started(job=job, document=document, folder=path.parent, data=data)
    return None
