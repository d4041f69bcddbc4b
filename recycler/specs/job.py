"""Job files: strict, documented, and refused as a whole when any part is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from recycler.errors import Problem, UsageError, raise_problems
from recycler.io.strict_yaml import YamlDocument, load_yaml, parse_model
from recycler.location import parse_location
from recycler.types import EngineName, Objective, SamplerName

# base or best, a sign, an amount; matches "" too: a floor is not empty
FLOOR = re.compile(r"(?:(base|best)\s*)?(?:([+-])?\s*(\d+(?:\.\d+)?(?:e-?\d+)?))?", re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Strict(BaseModel):
    """Frozen; unknown keys are refused; no silent conversion from one type to another."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Number = Annotated[float, Field(strict=False, allow_inf_nan=False)]
Place = Annotated[
    str, Field(min_length=1)
]  # a path, a glob, a URL or a shipped name; an empty path would mean the job file's own folder


class PoolSpec(Strict):
    """Where the checkpoints are.

    `pool: runs/*` and `pool: [a, b]` are short for `pool: {members: [...]}`.
    """

    members: list[Place] = Field(min_length=1)
    """Folders, globs of folders, or folders that hold checkpoint folders; relative to the job file.
    """
    base: Place | None = None
    """The checkpoint that the members were trained from.

    With it, weights act on deltas and their sum is searched too.
    """
    duplicates: Literal["refuse", "allow"] = "refuse"
    """What to do about members with identical weights."""
    without: list[Place] = []
    """Members to leave out, by name.

    With the whole pool's run under `earlier`, what it found without them counts at no cost.
    """


class ObjectiveSpec(Strict):
    """One figure to optimise: a metric of a suite, or of one task of it."""

    suite: Place
    task: str | None = None
    metric: str
    direction: Literal["maximize", "minimize"]
    floor: Number | str | None = None
    """The worst value a shipped merge may have: a number, or `base - 0.01`, `best - 0.02` (`+`
    where less is better).
    """

    @field_validator("floor")
    @classmethod
    def _floor(cls, value: float | str | None) -> float | str | None:
        if isinstance(value, str):
            found = FLOOR.fullmatch(value.strip())
            if not value.strip() or not found or (found[1] and found[3] and not found[2]):
                raise ValueError("is neither a number nor base or best, plus or minus a number")
        return value

    def objective(self) -> Objective:
        floor = (
            None
            if self.floor is None
            else self.floor.strip()
            if isinstance(self.floor, str)
            else f"{self.floor:.12g}"
        )
        return Objective(
            suite=self.suite,
            task=self.task,
            metric=self.metric,
            direction=self.direction,
            floor=floor,
        )


class CostSpec(Strict):
    """A cost of merges, minimised: exact, known from the recipe, without items."""

    cost: Literal["members", "distance"]
    """members: how many have a weight other than 0. distance: |merge - base| / |base| over all
    tensors, for linear merges of a pool with a base.
    """
    direction: Literal["minimize"] = "minimize"
    floor: Number | None = None
    """The most that a shipped merge may cost: a number of members, or a distance."""
    bound_only: bool = False
    """Nothing is gained below `floor`: merges that keep it are not told apart by this cost."""

    @field_validator("floor")
    @classmethod
    def _possible(cls, value: float | None, info: ValidationInfo) -> float | None:
        if (
            value is not None
            and info.data.get("cost") == "members"
            and (value < 1 or value != int(value))
        ):
            raise ValueError("is no number of members, from 1 on")
        if value is not None and value <= 0:
            raise ValueError("is not above 0: the base itself lies at 0, and no merge nearer")
        return value

    @field_validator("bound_only")
    @classmethod
    def _bound(cls, value: bool, info: ValidationInfo) -> bool:
        if value and "floor" in info.data and info.data["floor"] is None:
            raise ValueError("needs floor:, the bound")
        return value

    def objective(self) -> Objective:
        return Objective(
            suite="",
            metric=self.cost,
            direction=self.direction,
            floor=None if self.floor is None else f"{self.floor:.12g}",
            bound_only=self.bound_only,
        )


def _kind_of(entry: Any) -> str:
    """The tag of an entry of `objectives`: a cost is what names one."""
    return (
        "<CostSpec>"
        if isinstance(entry, CostSpec) or isinstance(entry, dict) and "cost" in entry
        else "<ObjectiveSpec>"
    )


AnyObjective = Annotated[
    Annotated[ObjectiveSpec, Tag("<ObjectiveSpec>")] | Annotated[CostSpec, Tag("<CostSpec>")],
    Discriminator(_kind_of),
]


class EngineSpec(Strict):
    """The engine that runs the merges.

    `engine: vllm` is short for `engine: {name: vllm}`.
    """

    name: EngineName | None = None
    """Default: vllm where it and a GPU are present, else transformers."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Type of the live and of the exported weights."""
    max_model_len: int | None = Field(default=None, ge=8)
    """Longest prompt plus answer, in tokens. Default: what the suites need."""
    tensor_parallel: int = Field(default=1, ge=1, le=64)
    """GPUs of one machine that each vllm engine spreads the model over, for models that one GPU
    cannot hold.
    """
    workers: int = Field(default=1, ge=1, le=1024)
    """Engines in parallel: one on each `tensor_parallel` GPUs, or one a share of the CPU cores."""
    lora_batch: int = Field(default=1, ge=1, le=64)
    """Linear merges of a pool of folded LoRA adapters that each vllm engine scores in one batch,
    unmerged. Finalists are merged and scored again.
    """
    adapters: Place | None = None
    """Folder that holds the adapter of each member under the member's name; relative to the job
    file. For `lora_batch`.
    """

    @field_validator("tensor_parallel")
    @classmethod
    def _only_vllm_is_parallel(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and info.data.get("name", "vllm") != "vllm":
            raise ValueError(
                "above 1 needs engine.name: vllm; transformers runs a model on one device"
            )
        return value

    @field_validator("adapters")
    @classmethod
    def _adapters_lie_on_a_disk(cls, value: str | None) -> str | None:
        if value and parse_location(value).is_url:
            raise ValueError(
                "must be a folder on a disk of the machines that score; copy the adapters there, "
                "they are not read from a bucket or hub"
            )
        return value

    @model_serializer(mode="wrap")
    def _without_default_ranks(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave keys at their defaults out of the digest.

        Ledgers from before there were these keys know the job's digest without them.
        """
        found = write(self)
        return {
            key: value
            for key, value in found.items()
            if (key, value) not in (("tensor_parallel", 1), ("lora_batch", 1), ("adapters", None))
        }


class FidelitySpec(Strict):
    """Number of items that a proposed merge is scored on.

    Members, base and soups are always scored on all search items, and so are finalists.
    """

    items_per_task: int | None = Field(default=None, ge=50)
    """Search items of each task that a merge is scored on, drawn for each merge anew; default: all.

    Fewer than 50 make standard errors a fiction.
    """


class BudgetSpec(Strict):
    """When to stop: at the first limit that is reached. Baselines are scored besides `trials`."""

    trials: int = Field(ge=1, le=1_000_000)
    """Merges that the sampler proposes."""
    wall_clock: str | None = None
    """Such as 90s, 30m, 12h, 2d; counted over all sittings of the job."""
    tokens: int | None = Field(default=None, ge=1)
    """Generated plus teacher-forced tokens."""
    plateau: int | None = Field(default=None, ge=5)
    """Stop when so many merges in a row raised the posterior hypervolume by less than 1 % (after
    twice as many at least).
    """
    least_gain: Number | None = Field(default=None, gt=0, lt=1)
    """Stop when the next 20 merges are expected to add less than this share of the front's
    hypervolume (looked at every 10, after 20).
    """

    @field_validator("wall_clock")
    @classmethod
    def _duration(cls, value: str | None) -> str | None:
        if value is not None and not _DURATION.fullmatch(value.strip()):
            raise ValueError("is not a duration such as 90s, 30m, 12h or 2d")
        return value

    @property
    def wall_seconds(self) -> float | None:
        found = None if self.wall_clock is None else _DURATION.fullmatch(self.wall_clock.strip())
        if found is None:
            return None
        amount, unit = found.groups()
        return float(amount) * _SECONDS[unit]


class JobSpec(Strict):
    """One recycling job: pool, method, space, suites, objectives, engine, budget, sampler, seed."""

    version: Literal[1]
    name: str = Field(default="job", pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    """Lower case letters, digits, dots and dashes."""
    pool: PoolSpec
    method: str = "linear"
    """One of recycler.merge.methods.registry.MERGE_METHODS."""
    space: Place = "search_spaces/global.yaml"
    """A search space: a path relative to the job file, or one that ships with recycler."""
    suites: list[Place] = Field(min_length=1)
    """Names from eval_suites/, paths relative to the job file, or lm_eval:TASK."""
    objectives: list[AnyObjective] = Field(min_length=2, max_length=8)
    """Two or more: figures of suites, and costs."""
    engine: EngineSpec = EngineSpec()
    fidelity: FidelitySpec = FidelitySpec()
    budget: BudgetSpec
    sampler: SamplerName = "simplex_gp"
    seed: int = Field(default=0, ge=0, lt=2**31)
    earlier: list[Place] = []
    """Runs whose trials on the same members and items count here too: run folders, or URL?job=ID of
    a database.
    """
    allow_benchmark_tests: bool = False
    """Search on published test sets all the same; refused otherwise, since such a score can be
    compared with nobody's.
    """

    @model_validator(mode="before")
    @classmethod
    def _expand_short_forms(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        if isinstance(data.get("pool"), str):
            data["pool"] = {"members": [data["pool"]]}
        elif isinstance(data.get("pool"), list):
            data["pool"] = {"members": data["pool"]}
        if isinstance(data.get("engine"), str):
            data["engine"] = {"name": data["engine"]}
        return data

    @field_validator("objectives")
    @classmethod
    def _worth_a_front(cls, value: list[AnyObjective]) -> list[AnyObjective]:
        if sum(not (isinstance(spec, CostSpec) and spec.bound_only) for spec in value) < 2:
            raise ValueError("are fewer than two beside bounds; a front needs two")
        if all(isinstance(spec, CostSpec) for spec in value):
            raise ValueError(
                "are costs alone, and the cheapest merge is no merge; add a metric of a suite"
            )
        return value

    @property
    def searched_objectives(self) -> tuple[Objective, ...]:
        return tuple(spec.objective() for spec in self.objectives)


def read_job(path: Path | YamlDocument) -> tuple[JobSpec, YamlDocument]:
    """Read a job file, or a document that was read already, and return both.

    The document knows the line of every key. Raises UsageError with every problem.
    """
    document = load_yaml(path)
    job = parse_model(JobSpec, document)
    problems = []
    names = [objective.name for objective in job.searched_objectives]
    suites = {Path(suite.removeprefix("lm_eval:")).stem for suite in job.suites}
    for index, (spec, name) in enumerate(zip(job.objectives, names, strict=True)):
        where = document.where(("objectives", index))
        if names.index(name) != index:
            problems.append(
                Problem(
                    thing=f"objective {name!r}",
                    cause="stands twice",
                    remedy="Keep one of them",
                    where=where,
                )
            )
        if isinstance(spec, ObjectiveSpec) and spec.suite not in suites:
            problems.append(
                Problem(
                    thing=f"objective {name!r}",
                    cause=f"its suite {spec.suite!r} is not under suites:",
                    remedy=f"Add {spec.suite} to suites:",
                    where=where,
                )
            )
    raise_problems(problems, UsageError)
    return job, document
