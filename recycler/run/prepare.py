"""From a job file to everything that a run needs, or to one error that lists all that is wrong.

    job file -> method and costs -> pool -> its members' weights -> space -> suites -> warnings

Nothing heavy is started here. The checks themselves stand in `job_checks` and `lora_batch`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ParamSpec, TypeVar

from recycler.engines import parallel_problems
from recycler.errors import (
    Problem,
    RecyclerError,
    UnsafeInputError,
    UsageError,
    did_you_mean,
    raise_problems,
)
from recycler.io.shipped import shipped_file
from recycler.io.strict_yaml import YamlDocument
from recycler.location import HubLocation, parse_location
from recycler.merge.methods.registry import MERGE_METHODS
from recycler.objectives.costs import benchmarks
from recycler.pool.catalog import open_pool
from recycler.pool.checks.preflight import check_pool
from recycler.pool.storage.files import local_folder
from recycler.run import job_checks
from recycler.run.lora_batch import lora_batch_warnings
from recycler.run.prepared import PreparedJob
from recycler.scoring.suite_file import suite_path
from recycler.scoring.tasks import build_suite, load_tokenizer
from recycler.specs.job import JobSpec, read_job
from recycler.specs.published_sets import check_search_guard
from recycler.specs.resolve import resolve
from recycler.specs.space import SearchSpace, read_space
from recycler.specs.splits import alike_warnings, check_across_suites, few_problems_warnings
from recycler.specs.suite import EvalSuite, read_suite
from recycler.types import Checkpoint, Pool

Given = ParamSpec("Given")
Value = TypeVar("Value")


@dataclass(slots=True)
class Collector:
    """Runs steps and keeps their problems, so that the user hears of all of them at once."""

    problems: list[Problem] = field(default_factory=list)
    kind: type[RecyclerError] = UsageError

    def step(
        self, function: Callable[Given, Value], *args: Given.args, **kwargs: Given.kwargs
    ) -> Value | None:
        """The value of a function; None when it raises, and its problems are kept."""
        try:
            return function(*args, **kwargs)
        except RecyclerError as error:
            self.problems += error.problems
            if isinstance(error, UnsafeInputError):
                self.kind = UnsafeInputError
            return None

    def error(self) -> RecyclerError:
        """One error that lists all problems."""
        return self.kind(self.problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFile:
    """A job as it was read, and the data folders that were given besides."""

    job: JobSpec
    document: YamlDocument
    data_folders: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        """The folder that paths of the job are relative to."""
        return Path(self.document.path).parent


def prepare(
    job_path: Path | YamlDocument, *, data_folders: Sequence[Path] = (), look_inside: bool = True
) -> PreparedJob:
    """Read and check a job, from its file or from what was read of it.

    Without `look_inside` the members' weights are left unread and unchecked, which suffices to
    plan. Raises one UsageError or UnsafeInputError that lists every problem of its files.
    """
    job, document = read_job(job_path)
    file = JobFile(job=job, document=document, data_folders=tuple(data_folders))
    collector = Collector()
    collector.problems += job_checks.check_method(job, document)
    collector.problems += job_checks.check_costs(job, document)
    pool = collector.step(_open_pool, file)
    space, pool_warnings = None, list[str]()
    if pool:
        pool_warnings = _check_pool(file, pool, collector, look_inside)
        if job.method in MERGE_METHODS:
            space = collector.step(_resolve_space, file, pool)
    suites = collector.step(_build_suites, file, pool)
    if collector.problems or pool is None or space is None or suites is None:
        raise collector.error()
    prepared = PreparedJob(job=job, document=document, pool=pool, space=space, suites=suites)
    prepared.max_model_len()  # raises for items that no engine could be asked
    warnings = (
        *pool_warnings,
        *alike_warnings(suites),
        *few_problems_warnings(suites),
        *_small_space_warnings(prepared),
        *lora_batch_warnings(prepared, look_inside=look_inside),
    )
    return replace(prepared, warnings=warnings)


# ---------------------------------------------------------------- pool


def _open_pool(file: JobFile) -> Pool:
    """The pool of a job, without the members that it leaves out."""
    job, document = file.job, file.document
    members = [parse_location(entry).beside(file.folder) for entry in job.pool.members]
    base = parse_location(job.pool.base).beside(file.folder) if job.pool.base else None
    try:
        pool = open_pool(members, base)
    except RecyclerError as error:
        has_line = ("pool", "members") in document.lines
        where = document.where(("pool", "members") if has_line else ("pool",))
        problems = [replace(problem, where=problem.where or where) for problem in error.problems]
        raise type(error)(problems) from None
    raise_problems(_left_out_problems(file, pool))
    kept = [member for member in pool.members if member.name not in job.pool.without]
    if len(kept) < 2:
        raise UsageError(
            Problem(
                thing="pool",
                cause=f"holds {len(kept)} checkpoint{'s' * (not kept)}",
                remedy="A merge needs two members or more",
                where=document.where(("pool",)),
            )
        )
    return Pool(members=tuple(map(_pinned, kept)), base=_pinned(pool.base) if pool.base else None)


def _left_out_problems(file: JobFile, pool: Pool) -> list[Problem]:
    """Members that are to be left out and are not in the pool."""
    return [
        Problem(
            thing=f"member {name!r}",
            cause="is to be left out, and not in the pool",
            remedy=did_you_mean(name, pool.names),
            where=file.document.where(("pool", "without", index)),
        )
        for index, name in enumerate(file.job.pool.without)
        if name not in pool.names
    ]


def _pinned(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint of the hub with its commit in place of a name, so that every node takes that."""
    if not isinstance(checkpoint.location, HubLocation):
        return checkpoint
    commit = local_folder(checkpoint).name
    return replace(checkpoint, location=checkpoint.location.at(commit))


def _check_pool(file: JobFile, pool: Pool, collector: Collector, look_inside: bool) -> list[str]:
    """Collect the problems of an open pool; its warnings."""
    job, document, warnings = file.job, file.document, list[str]()
    collector.problems += job_checks.check_number_of_members(job, document, pool)
    if look_inside:
        report = collector.step(check_pool, pool, duplicates=job.pool.duplicates, method=job.method)
        if report:
            warnings = [str(warning) for warning in report.warnings]
    where = document.where(("engine", "tensor_parallel"))
    collector.problems += parallel_problems(pool, job.engine.tensor_parallel, where)
    return warnings


# ---------------------------------------------------------------- space


def _resolve_space(file: JobFile, pool: Pool) -> SearchSpace:
    """The search space over a pool, with no more members in a merge than the job allows."""
    job, document = file.job, file.document
    where = document.where(("space",))
    path = shipped_file("search_spaces", job.space, beside=file.folder, where=where)
    spec, space_document = read_space(path)
    space = resolve(
        spec,
        space_document,
        members=pool.names,
        left_out=job.pool.without,
        num_layers=pool.template.num_layers,
        has_base=pool.base is not None,
        method_options=MERGE_METHODS[job.method].options,
    )
    raise_problems(job_checks.check_distance_in_space(space, job, document))
    grid = job_checks.check_grid(space, job, document)
    raise_problems([*grid, *job_checks.check_signs(space, job, document)])
    raise_problems(job_checks.check_max_members(space, job, document))
    _, number = job_checks.max_members(job)
    if number is None:
        return space
    return replace(space, max_nonzero=min(number, space.max_nonzero or number))


def _small_space_warnings(prepared: PreparedJob) -> list[str]:
    """A warning where the space holds no more merges than the budget has trials."""
    number = prepared.space.num_points
    if number is None or number > prepared.job.budget.trials:
        return []
    return [
        f"{prepared.document.where(('space',))}: the space holds {number} "
        f"merge{'s' * (number > 1)}: the search ends when all of them are tried"
    ]


# ---------------------------------------------------------------- suites


def _build_suites(file: JobFile, pool: Pool | None) -> tuple[EvalSuite, ...]:
    """The suites of a job; without a pool they are read and compared, and none is built."""
    job, document, collector = file.job, file.document, Collector()
    paths = []
    for index, name in enumerate(job.suites):
        where = document.where(("suites", index))
        paths.append(
            collector.step(
                suite_path, name, beside=file.folder, data_folders=file.data_folders, where=where
            )
        )
    found = [path for path in paths if path]
    specs = {}
    for path in found:
        read = collector.step(read_suite, path)
        if read:
            specs[path.stem] = read[0]
    collector.problems += job_checks.check_objectives(job, document, specs)
    sound = [path for path in found if path.stem in specs]
    built = _build_each(sound, file, pool, collector) if pool is not None else []
    collector.step(check_across_suites, built)
    scored = benchmarks(job.searched_objectives)
    collector.step(check_search_guard, built, job.allow_benchmark_tests, scored)
    if collector.problems:
        raise collector.error()
    return tuple(built)


def _build_each(
    paths: Sequence[Path], file: JobFile, pool: Pool, collector: Collector
) -> list[EvalSuite]:
    """The suites that can be built; none without a tokenizer."""
    tokenizer = collector.step(load_tokenizer, local_folder(pool.template))
    if tokenizer is None:
        return []
    folders = [*file.data_folders, file.folder]
    built = [collector.step(build_suite, path, tokenizer, data_folders=folders) for path in paths]
    return [suite for suite in built if suite is not None]
