"""From a job file to everything a run needs, or to one error that lists all that is wrong.

Nothing heavy is started here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from recycler.digest import digest
from recycler.engines import default_engine_name, parallel_problems
from recycler.errors import (
    Problem,
    RecyclerError,
    UnsafeInputError,
    UsageError,
    did_you_mean,
    raise_problems,
)
from recycler.io.shipped import shipped_file
from recycler.io.strict_yaml import KeyPath, YamlDocument
from recycler.merge.methods.problems import MethodWords, method_problems
from recycler.merge.methods.registry import MERGE_METHODS
from recycler.objectives.costs import benchmarks
from recycler.pool.catalog import open_pool
from recycler.pool.checks.preflight import check_pool
from recycler.pool.storage.files import local_folder
from recycler.pool.storage.location import remote_url
from recycler.scoring.lmeval.suite import suite_path
from recycler.scoring.tasks import build_suite, load_tokenizer, objective_metrics
from recycler.specs.job import CostSpec, JobSpec, read_job
from recycler.specs.space import NO_WEIGHT, SearchSpace, reachable_sums, read_space, resolve
from recycler.specs.suite import (
    EvalSuite,
    alike_warnings,
    check_across_suites,
    check_search_guard,
    context_length,
    few_problems_warnings,
    read_suite,
)
from recycler.types import Checkpoint, Item, Objective, Pool

Value = TypeVar("Value")
JOB_WORDS = MethodWords(
    no_base="the pool has no base",
    add_base="Add base: under pool:",
    members="members, the pool has",
    change_members="Use another method, or a pool of those two",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedJob:
    """A job that was found sound: every file read, every name resolved."""

    job: JobSpec
    document: YamlDocument
    pool: Pool
    space: SearchSpace
    suites: tuple[EvalSuite, ...]
    warnings: tuple[str, ...] = ()

    @property
    def objectives(self) -> tuple[Objective, ...]:
        return self.job.searched_objectives

    @property
    def benchmarks(self) -> tuple[Objective, ...]:
        """The objectives that have items: all but the costs."""
        return benchmarks(self.objectives)

    @property
    def adapters(self) -> Path:
        """The folder of the members' LoRA adapters, where the job names one."""
        return (Path(self.document.path).parent / (self.job.engine.adapters or "")).absolute()

    @property
    def items(self) -> tuple[Item, ...]:
        return tuple(item for suite in self.suites for item in suite.items)

    @property
    def engine_name(self) -> str:
        """The engine of the job, or the one that this machine would take."""
        return self.job.engine.name or default_engine_name()

    @property
    def digests(self) -> dict[str, str]:
        """Digests by name of everything that must not change between two sessions of a run."""
        pool = {
            checkpoint.name: [
                (tensor.name, tensor.dtype, tensor.shape) for tensor in checkpoint.tensors.values()
            ]
            for checkpoint in self.pool.checkpoints
        }
        identity = self.job.model_dump(
            exclude={"budget": True, "engine": {"workers"}, "earlier": True, "pool": {"without"}}
        )  # who is left out is told by the pool
        return {
            "job": digest(identity),
            "pool": digest(pool),
            "space": digest(self.space),
            **{f"suite {suite.name}": suite.digest for suite in self.suites},
            **object_versions(self.pool),
        }

    def max_model_len(self) -> int:
        """Longest prompt plus answer that the engine must take, in tokens.

        Raises UsageError for items that cannot fit.
        """
        return context_length(
            self.items,
            positions=self.pool.template.positions,
            wanted=self.job.engine.max_model_len,
            where=self.document.where(("engine",)),
        )


def object_versions(pool: Pool) -> dict[str, str]:
    """Etag of every object in a bucket that holds weights of the pool, and a digest of every config
    there, by URL.
    """
    weights = {
        f"object {tensor.file}": tensor.etag
        for checkpoint in pool.checkpoints
        for tensor in checkpoint.tensors.values()
        if tensor.etag
    }
    configs = {
        f"object {checkpoint.location}/config.json": digest(checkpoint.config)
        for checkpoint in pool.checkpoints
        if remote_url(checkpoint.location)
    }
    return weights | configs


class _Collector:
    """Runs steps and keeps their problems, so that a person hears of all of them at once."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.kind: type[RecyclerError] = UsageError

    def step(self, function: Callable[..., Value], *args: Any, **kwargs: Any) -> Value | None:
        try:
            return function(*args, **kwargs)
        except RecyclerError as error:
            self.problems += error.problems
            self.kind = UnsafeInputError if isinstance(error, UnsafeInputError) else self.kind
            return None

    def finish(self) -> None:
        if self.problems:
            raise self.kind(self.problems)


def prepare(
    job_path: Path | YamlDocument, *, data_folders: Sequence[Path] = (), look_inside: bool = True
) -> PreparedJob:
    """Read and check a job, from its file or from what was read of it.

    Raises one UsageError or UnsafeInputError that lists every problem of its files.

    Without `look_inside` the members' weights are left unread and unchecked, which suffices to
    plan.
    """
    job, document = read_job(job_path)
    folder = Path(document.path).parent
    collector = _Collector()

    def where_of_method(key_path: KeyPath) -> str:
        return document.where(("pool",) if key_path == ("base",) else ("method",))

    collector.problems += method_problems(
        job.method, JOB_WORDS, has_base=job.pool.base is not None, where=where_of_method
    )
    collector.problems += _cost_problems(job, document)
    pool = collector.step(_open_pool, job, folder, document)
    if pool and job.method in MERGE_METHODS:
        collector.problems += method_problems(
            job.method, JOB_WORDS, num_members=len(pool.members), where=where_of_method
        )
    report = (
        collector.step(check_pool, pool, duplicates=job.pool.duplicates, method=job.method)
        if pool and look_inside
        else None
    )
    if pool:
        collector.problems += parallel_problems(
            pool, job.engine.tensor_parallel, document.where(("engine", "tensor_parallel"))
        )
    space = (
        collector.step(_resolve_space, job, folder, document, pool)
        if pool and job.method in MERGE_METHODS
        else None
    )
    suites = collector.step(_build_suites, job, folder, document, pool, data_folders)
    collector.finish()
    prepared = PreparedJob(
        job=job,
        document=document,
        pool=pool,
        space=space,
        suites=suites,
        warnings=(
            *map(str, getattr(report, "warnings", ())),
            *alike_warnings(suites),
            *few_problems_warnings(suites),
        ),
    )
    prepared.max_model_len()
    if space.num_points is not None and space.num_points <= job.budget.trials:
        prepared = replace(
            prepared,
            warnings=(
                *prepared.warnings,
                f"{document.where(('space',))}: the space holds {space.num_points} "
                f"merge{'s' * (space.num_points > 1)}: the search ends when all of them are tried",
            ),
        )
    if job.engine.lora_batch > 1:
        return replace(
            prepared, warnings=(*prepared.warnings, *_check_lora_batch(prepared, look_inside))
        )
    idle = (
        [
            f"{document.where(('engine', 'adapters'))}: engine.adapters is not used, since "
            "engine.lora_batch is 1: every merge is merged"
        ]
        if job.engine.adapters
        else []
    )
    return replace(prepared, warnings=(*prepared.warnings, *idle))


def _check_lora_batch(prepared: PreparedJob, look_inside: bool) -> list[str]:
    """Raise UsageError or UnsafeInputError unless every proposal of the job is a sum of its
    members' adapters, and its engine can hold several; gives warnings.

    Members in a bucket are compared with their adapters where they are read whole, by each engine
    as it starts.
    """
    from recycler.engines.vllm.lora import check_folded, read_adapters  # loads safetensors

    job, where = prepared.job, prepared.document.where(("engine", "lora_batch"))
    refused = [
        ("needs engine: vllm", (job.engine.name or default_engine_name()) != "vllm"),
        (f"is for linear merges, not {job.method!r}", job.method != "linear"),
        (
            "is for plain sums, and the space searches "
            f"{', '.join(name for name, *_ in prepared.space.options)}",
            bool(prepared.space.options),
        ),
        ("needs engine.adapters", job.engine.adapters is None),
    ]
    raise_problems(
        [
            Problem(
                thing="engine.lora_batch",
                cause=cause,
                remedy="Mend that, or leave lora_batch out",
                where=where,
            )
            for cause, wrong in refused
            if wrong
        ]
    )
    try:
        adapters = read_adapters(prepared.pool, prepared.adapters)
        if look_inside and not any(
            remote_url(checkpoint.location) for checkpoint in prepared.pool.checkpoints
        ):
            check_folded(prepared.pool, adapters)
    except RecyclerError as error:
        raise type(error)(
            [
                Problem(
                    thing=problem.thing,
                    cause=problem.cause,
                    remedy=problem.remedy,
                    where=problem.where or where,
                )
                for problem in error.problems
            ]
        ) from None
    rounded = {tensor.dtype for tensor in prepared.pool.template.tensors.values()} & {"BF16", "F16"}
    return (
        [
            f"{where}: the members were folded into {min(rounded)}, which loses part of each "
            "adapter: merges score worse than the adapters that the search sees. Fold them into "
            "a float32 base (docs/methods.md)"
        ]
        if rounded
        else []
    )


def _open_pool(job: JobSpec, folder: Path, document: YamlDocument) -> Pool:
    def beside(entry: str) -> str:
        return entry if "://" in entry or Path(entry).is_absolute() else str(folder / entry)

    try:
        pool = open_pool(
            [beside(entry) for entry in job.pool.members],
            beside(job.pool.base) if job.pool.base else None,
        )
    except RecyclerError as error:
        where = (
            document.where(("pool", "members"))
            if ("pool", "members") in document.lines
            else document.where(("pool",))
        )
        raise type(error)(
            [
                Problem(
                    thing=problem.thing,
                    cause=problem.cause,
                    remedy=problem.remedy,
                    where=problem.where or where,
                )
                for problem in error.problems
            ]
        ) from None
    unknown = [
        (index, name) for index, name in enumerate(job.pool.without) if name not in pool.names
    ]
    raise_problems(
        [
            Problem(
                thing=f"member {name!r}",
                cause="is to be left out, and not in the pool",
                remedy=did_you_mean(name, pool.names),
                where=document.where(("pool", "without", index)),
            )
            for index, name in unknown
        ]
    )
    pool = Pool(
        members=tuple(
            _pinned(member) for member in pool.members if member.name not in job.pool.without
        ),
        base=_pinned(pool.base) if pool.base else None,
    )
    if len(pool.members) < 2:
        raise UsageError(
            Problem(
                thing="pool",
                cause=f"holds {len(pool.members)} checkpoint{'s' * (not pool.members)}",
                remedy="A merge needs two members or more",
                where=document.where(("pool",)),
            )
        )
    return pool


def _pinned(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint of the hub with the commit that its name stood for in its place, so that every
    node takes that one.
    """
    if not checkpoint.location.startswith("hf://"):
        return checkpoint
    commit = local_folder(checkpoint).name
    return replace(
        checkpoint, location=f"{checkpoint.location.partition('@')[0].rstrip('/')}@{commit}"
    )


def _resolve_space(job: JobSpec, folder: Path, document: YamlDocument, pool: Pool) -> SearchSpace:
    spec, space_document = read_space(
        shipped_file("search_spaces", job.space, beside=folder, where=document.where(("space",)))
    )
    space = resolve(
        spec,
        space_document,
        members=pool.names,
        left_out=job.pool.without,
        num_layers=pool.template.num_layers,
        has_base=pool.base is not None,
        method_options=MERGE_METHODS[job.method].options,
    )
    distance = next(
        (
            index
            for index, spec in enumerate(job.objectives)
            if isinstance(spec, CostSpec) and spec.cost == "distance"
        ),
        None,
    )
    if distance is not None and space.options:
        raise UsageError(
            Problem(
                thing="cost distance",
                cause="cannot be told from the weights alone while the space searches "
                f"{space.options[0][0]}",
                remedy="Take that option out of the space, or leave the cost out",
                where=document.where(("objectives", distance)),
            )
        )
    raise_problems(
        [*_grid_problems(space, job, document), *_sign_problems(space, job, document)], UsageError
    )
    return _within_members(space, job, document)


def _sign_problems(space: SearchSpace, job: JobSpec, document: YamlDocument) -> list[Problem]:
    """Weights below 0 that the space lets free and the job's sampler never proposes: half of the
    space would go unseen.
    """
    below = [
        name
        for name, low, high in zip(space.members, space.low, space.high, strict=True)
        if low < 0.0 and low < high
    ]
    if not below or job.sampler in ("simplex_gp", "grid"):
        return []
    return [
        Problem(
            thing=f"sampler {job.sampler}",
            cause="proposes shares of a sum, none of them below 0, and the space allows that of "
            f"{', '.join(below)}",
            where=document.where(("sampler",)),
            remedy="Use sampler: simplex_gp, or raise those bounds to 0; a weight that is fixed may "
            "be negative with any sampler",
        )
    ]


def _grid_problems(space: SearchSpace, job: JobSpec, document: YamlDocument) -> list[Problem]:
    """Why the job's space is no line that a grid could be laid on."""
    if job.sampler != "grid":
        return []
    other, number = "use another sampler", len(space.members)
    wrong = [
        (
            number != 2,
            f"goes along the line between two members, and the pool has {number}",
            f"Name two under pool.members or leave the others out by pool.without, or {other}",
        ),
        (
            len(space.groups) != 1,
            f"has one row of weights, and the space has {len(space.groups)} groups",
            f"Write groups: global, or {other}",
        ),
        (
            space.total[0] < space.total[1],
            f"needs a fixed sum, and the space searches it in [{space.total[0]:g}, "
            f"{space.total[1]:g}]",
            f"Write space: search_spaces/simplex.yaml, or a space with sum: 1, or {other}",
        ),
        (
            bool(space.knobs),
            "moves weights alone, and the space searches "
            f"{', '.join(name for name, _ in space.knobs)}",
            f"Give these one value, such as [0.5, 0.5], or {other}",
        ),
    ]
    return [
        Problem(
            thing="sampler grid", cause=cause, remedy=remedy, where=document.where(("sampler",))
        )
        for is_wrong, cause, remedy in wrong
        if is_wrong
    ]


def _within_members(space: SearchSpace, job: JobSpec, document: YamlDocument) -> SearchSpace:
    """The space without the rows that alone use more members than the job allows.

    Raises UsageError where none is left.
    """
    most = next(
        (
            (index, int(spec.floor))
            for index, spec in enumerate(job.objectives)
            if isinstance(spec, CostSpec) and spec.cost == "members" and spec.floor is not None
        ),
        None,
    )
    if most is None:
        return space
    index, number = most
    must = [
        name
        for name, low, high in zip(space.members, space.low, space.high, strict=True)
        if low > 0.0 or high < 0.0
    ]
    if len(must) > number:
        raise UsageError(
            Problem(
                thing=f"at most {number} members",
                cause="is fewer than the space gives a weight to in every merge "
                f"({', '.join(must)})",
                remedy="Raise floor:, or let those weights be 0",
                where=document.where(("objectives", index, "floor")),
            )
        )
    few = min(number, space.max_nonzero or number)
    least, largest = reachable_sums(space.low, space.high, few)
    if least > space.total[1] + NO_WEIGHT or largest < space.total[0] - NO_WEIGHT:
        raise UsageError(
            Problem(
                thing=f"at most {number} members",
                cause=f"are too few: their weights sum to {least:g} to {largest:g}, and the space "
                f"wants [{space.total[0]:g}, {space.total[1]:g}]",
                remedy="Raise floor:, or widen the space's bounds or sum",
                where=document.where(("objectives", index, "floor")),
            )
        )
    return replace(space, max_nonzero=few)


def _cost_problems(job: JobSpec, document: YamlDocument) -> list[Problem]:
    """Costs that this job's merges do not have, or that nobody can tell from their weights."""
    problems, method = [], MERGE_METHODS.get(job.method)
    for index, spec in enumerate(job.objectives):
        if not isinstance(spec, CostSpec) or method is None:
            continue
        where = document.where(("objectives", index))
        if spec.cost == "members" and method.reads_all:
            problems.append(
                Problem(
                    thing="cost members",
                    cause=f"says nothing of {job.method}, which uses members of weight 0 too",
                    remedy="Leave it out, or use another method",
                    where=where,
                )
            )
        if spec.cost == "distance" and job.pool.base is None:
            problems.append(
                Problem(
                    thing="cost distance",
                    cause="is that from the base, and the pool has none",
                    remedy="Add base: under pool:",
                    where=where,
                )
            )
        if spec.cost == "distance" and job.method != "linear":
            problems.append(
                Problem(
                    thing="cost distance",
                    cause=f"cannot be told from the weights of {job.method}: it is exact for "
                    "linear merges alone",
                    remedy="Use method: linear, or leave it out",
                    where=where,
                )
            )
    return problems


def _build_suites(
    job: JobSpec,
    folder: Path,
    document: YamlDocument,
    pool: Pool | None,
    data_folders: Sequence[Path],
) -> tuple[EvalSuite, ...]:
    collector = _Collector()
    paths = [
        collector.step(
            suite_path,
            name,
            beside=folder,
            data_folders=data_folders,
            where=document.where(("suites", index)),
        )
        for index, name in enumerate(job.suites)
    ]
    specs = {
        path.stem: read[0] for path in paths if path and (read := collector.step(read_suite, path))
    }
    collector.problems += _objective_problems(job, document, specs)
    suites = []
    if pool is not None:
        tokenizer = collector.step(load_tokenizer, local_folder(pool.template))
        suites = [
            collector.step(build_suite, path, tokenizer, data_folders=[*data_folders, folder])
            for path in paths
            if path and path.stem in specs and tokenizer
        ]
    built = tuple(suite for suite in suites if suite is not None)
    collector.step(check_across_suites, built)
    collector.step(
        check_search_guard, built, job.allow_benchmark_tests, benchmarks(job.searched_objectives)
    )
    collector.finish()
    return built


def _objective_problems(
    job: JobSpec, document: YamlDocument, specs: dict[str, Any]
) -> list[Problem]:
    problems = []
    for index, objective in enumerate(job.searched_objectives):
        if objective.is_cost or objective.suite not in specs:
            continue
        metrics = objective_metrics(specs[objective.suite])
        where = document.where(("objectives", index))
        if objective.task is not None and objective.task not in metrics:
            problems.append(
                Problem(
                    thing=f"task {objective.task!r}",
                    cause=f"not in suite {objective.suite!r}",
                    remedy=did_you_mean(objective.task, metrics),
                    where=where,
                )
            )
            continue
        known = {
            metric
            for task, names in metrics.items()
            if objective.task in (None, task)
            for metric in names
        }
        if objective.metric not in known:
            problems.append(
                Problem(
                    thing=f"metric {objective.metric!r}",
                    cause=f"not given by {objective.suite!r}",
                    remedy=did_you_mean(objective.metric, known),
                    where=where,
                )
            )
    return problems
