"""The hand-written files of a job as one small bundle: job file, space, suites, and their data.

A bundle runs anywhere as `recycler run job.yaml --data data`, and its digest is the job's id: the
same files are the same job wherever it is started from. Budget and workers play no part in it, so
that a job may be given more of both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from recycler.digest import digest
from recycler.errors import Problem, UsageError, raise_problems
from recycler.io.shipped import shipped_file
from recycler.io.strict_yaml import YamlDocument, dump_yaml
from recycler.location import parse_location
from recycler.scoring.rows import HUB, data_folders_of, find_data
from recycler.scoring.suite_file import suite_path
from recycler.specs.job import JobSpec, read_job
from recycler.specs.suite import SuiteSpec, read_suite

JOB, DATA = "job.yaml", "data"
MAX_BYTES = 100_000_000  # what Ray takes as a working directory


@dataclass(frozen=True)
class Bundle:
    """Files by relative path.

    `job.yaml` has paths that stay within; suites and space lie where it says, data under `data/`.
    """

    job: JobSpec
    files: dict[str, bytes]

    @cached_property
    def id(self) -> str:
        """The job's id, NAME-DIGEST.

        Keys that are left at their defaults play no part, so a new version's new keys change no id.
        """
        identity = self.job.model_dump(
            exclude_defaults=True,
            exclude={
                "budget": True,
                "engine": {"workers"},
                "suites": True,
                "space": True,
                "earlier": True,
            },
        )
        contents = sorted(
            (PurePosixPath(name).name, hashlib.sha256(raw).hexdigest())
            for name, raw in self.files.items()
            if name != JOB
        )
        return f"{self.job.name[:40]}-{digest([identity, contents])[:10]}"

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.files.values()))

    def write(self, folder: Path) -> None:
        """Write the files below `folder`."""
        for name, raw in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw)


def bundle_job(job_path: Path, *, data_folders: Sequence[Path] = ()) -> Bundle:
    """Collect the files of a job.

    Raises UsageError or NotFoundError for what is missing, clashes or is too large.
    """
    job, document = read_job(job_path)
    folder, files = job_path.parent, dict[str, bytes]()
    space = shipped_file(
        "search_spaces", job.space, beside=folder, where=document.where(("space",))
    )
    suites = [
        suite_path(
            name, beside=folder, data_folders=data_folders, where=document.where(("suites", index))
        )
        for index, name in enumerate(job.suites)
    ]
    space_place = _inside(job.space, "search_spaces", space)
    suite_places = [
        _inside(name, "eval_suites", path) for name, path in zip(job.suites, suites, strict=True)
    ]
    for place, path in zip((space_place, *suite_places), (space, *suites), strict=True):
        _add(files, place, path)
    for path in suites:
        spec, suite_document = read_suite(path)
        folders = data_folders_of(data_folders, folder, path.parent)
        for task, name in _data_names(spec):
            _add(
                files,
                f"{DATA}/{_plain(name, suite_document.where(('tasks', task)))}",
                find_data(name, folders, suite_document.where(("tasks", task))),
            )
    files[JOB] = _job_text(job, document, space_place, suite_places)
    bundle = Bundle(job=job, files=files)
    if bundle.num_bytes > MAX_BYTES:
        raise UsageError(
            Problem(
                thing=str(job_path),
                cause=f"has {bundle.num_bytes:,} bytes of suites and data; {MAX_BYTES:,} is the "
                "limit",
                remedy="Freeze a suite over fewer rows, or keep the data on the nodes "
                "(RECYCLER_DATA)",
            )
        )
    return bundle


def bundle_files(files: dict[str, bytes], folder: Path) -> Bundle:
    """A bundle from the files that another one wrote, by way of an empty folder.

    Raises UsageError when they are no job.
    """
    (folder / JOB).write_bytes(files.get(JOB, b""))
    return Bundle(job=read_job(folder / JOB)[0], files=files)


def check_travels(job: JobSpec) -> None:
    """Check that all checkpoints and earlier runs can be found from another machine.

    Raises UsageError for one that is neither in a bucket or database nor has a full path.
    """
    optional = [job.pool.base, job.engine.adapters]
    entries = [*job.pool.members, *(entry for entry in optional if entry)]
    relative = [
        Problem(
            thing=f"pool entry {entry!r}",
            cause="is relative to this machine's job file",
            remedy="Put the pool into a bucket (s3://...), or give the full path on a disk "
            "that all nodes share",
        )
        for entry in entries
        if not parse_location(entry).is_url and not Path(entry).is_absolute()
    ]
    local_runs = [
        Problem(
            thing=f"earlier run {run!r}",
            cause="is a folder of this machine",
            remedy="Name it as it stands in the database: postgresql://...?job=ID",
        )
        for run in job.earlier
        if "://" not in run
    ]
    raise_problems([*relative, *local_runs])


def _inside(name: str, folder: str, path: Path) -> str:
    """The place of a space or suite in the bundle.

    It is the path of the job file where that stays within, else `folder` and the file's name.
    """
    own = PurePosixPath(name if name.endswith(path.suffix) else f"{name}{path.suffix}")
    return str(own) if not own.is_absolute() and ".." not in own.parts else f"{folder}/{path.name}"


def _plain(name: str, where: str) -> str:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise UsageError(
            Problem(
                thing=f"data file {name!r}",
                cause="does not stay within its folder",
                remedy="Give its name, and its folder with --data",
                where=where,
            )
        )
    return name


def _data_names(spec: SuiteSpec) -> list[tuple[str, str]]:
    """(task, data file) of every file that a suite reads, each once."""
    found: dict[tuple[str, str], None] = {}
    for name, task in spec.tasks.items():
        for source in (
            task.data,
            task.search.data,
            task.holdout.data,
            task.fewshot.data if task.fewshot else None,
        ):
            if source and not source.startswith(HUB):  # the nodes fetch those themselves
                found[name, source] = None
    return list(found)


def _add(files: dict[str, bytes], place: str, path: Path) -> None:
    raw = path.read_bytes()
    if files.setdefault(place, raw) != raw:
        raise UsageError(
            Problem(
                thing=str(path),
                cause=f"would be {place} in the bundle, and another file is that already",
                remedy="Rename one of them",
            )
        )


def _job_text(job: JobSpec, document: YamlDocument, space: str, suites: list[str]) -> bytes:
    """The job file as it was written, or with the places of the bundle where its own differ."""
    names, places = (job.space, *job.suites), (space, *suites)
    pairs = zip(places, names, strict=True)
    if all(place in (name, f"{name}.yaml") for place, name in pairs):
        return Path(document.path).read_bytes()
    return dump_yaml({**document.data, "space": space, "suites": suites}).encode()
