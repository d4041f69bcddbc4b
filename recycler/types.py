"""Small frozen values that travel between modules. Standard library only.

A *recipe* says how to merge, an *item* says what to ask, a *scorecard* says how it went. None of
them holds a tensor. Shapes: weights are ``(G, K)``: G groups of tensors by K pool members.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from recycler.location import Location

Role = Literal["search", "holdout"]
Direction = Literal["maximize", "minimize"]
TrialState = Literal["PENDING", "SCORED", "FAILED"]
TrialKind = Literal["member", "base", "uniform_soup", "greedy_soup", "merge"]
OptionValue = float | int | bool | str | tuple[float, ...]
# The names that a job file may use; each is a row of a table, and a test holds the two together.
EngineName = Literal["transformers", "vllm"]  # recycler.engines.ENGINES
SamplerName = Literal[  # recycler.search.proposer.SAMPLERS
    "simplex_gp", "tpe", "nsga2", "nsga3", "gp", "random", "grid", "paper"
]


# ---------------------------------------------------------------- checkpoints


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """Place of one tensor: read from a safetensors header, never from the data."""

    name: str
    dtype: str  # safetensors spelling: BF16, F16, F32, I64 ...
    shape: tuple[int, ...]
    file: Location  # the shard that holds it
    start: int  # byte offset in that file
    num_bytes: int
    file_bytes: int = 0  # size of that file when its header was read
    etag: str = ""  # of an object in a bucket: the version of it whose header was read


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One member of a pool (or its base): a Hugging Face folder, known by its headers."""

    name: str
    location: Location
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any]

    @property
    def num_layers(self) -> int:
        return int(self.config.get("num_hidden_layers") or 0)

    @property
    def positions(self) -> int | None:
        """The longest context it was made for, in tokens; None when its config does not say."""
        found = self.config.get("max_position_embeddings")
        return int(found) if found else None

    @property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Checkpoints of one architecture, and the base they were trained from when it is known."""

    members: tuple[Checkpoint, ...]
    base: Checkpoint | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The members, then the base where there is one."""
        return (*self.members, self.base) if self.base else self.members

    @property
    def base_first(self) -> tuple[Checkpoint, ...]:
        """The base where there is one, then the members."""
        return (self.base, *self.members) if self.base else self.members

    @property
    def template(self) -> Checkpoint:
        """The checkpoint whose config, tokenizer and tensor list an export follows."""
        return self.base or self.members[0]

    def find(self, name: str) -> Checkpoint:
        """The checkpoint called `name`. Raises KeyError."""
        for checkpoint in self.checkpoints:
            if checkpoint.name == name:
                return checkpoint
        raise KeyError(name)


# ---------------------------------------------------------------- recipes


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A named set of tensors that share one row of weights."""

    name: str
    match: str = ""  # regular expression that is searched in a tensor's name


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A merge as a plan: printed, hashed, compared and replayed; a few kilobytes, no tensors.

    `weights` is (G, K). A tensor belongs to the first group whose `match` is found in its name; a
    tensor that no group takes is an error, so nothing is merged by accident. With a `base` the
    weights act on deltas to it.
    """

    method: str
    members: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]
    groups: tuple[Group, ...] = (Group(name="all"),)
    base: str | None = None
    options: tuple[tuple[str, OptionValue], ...] = ()
    dtype: str = "bfloat16"
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.groups):
            raise ValueError(
                f"recipe has {len(self.groups)} groups but {len(self.weights)} rows of weights"
            )
        for group, row in zip(self.groups, self.weights, strict=True):
            if len(row) != len(self.members):
                raise ValueError(
                    f"group {group.name!r} has {len(row)} weights for {len(self.members)} members"
                )

    def group_of(self, tensor: str) -> int:
        """Index of the row of weights that `tensor` takes.

        Raises ValueError when no group matches it.
        """
        for index, group in enumerate(self.groups):
            if re.search(group.match, tensor):
                return index
        raise ValueError(
            f"no group of the recipe matches tensor {tensor!r}; add a last group with match: ''"
        )

    def option(self, name: str, default: Any = None) -> Any:
        return dict(self.options).get(name, default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A merge that a proposer asks for: decoded weights and options."""

    number: int
    weights: tuple[tuple[float, ...], ...]
    options: tuple[tuple[str, OptionValue], ...] = ()
    params: tuple[tuple[str, float], ...] = ()  # raw, kept for the proposer's own memory


# ---------------------------------------------------------------- items and engines


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One frozen question. The same item has the same prompt in every trial, subset and split.

    `scorer` names a function of `recycler.scoring.scorers.SCORERS`; `kind` is the engine's part:
    generate greedily from the prompt, or return log-likelihoods of `continuations` after it.
    """

    id: str
    suite: str
    task: str
    role: Role
    kind: Literal["generate", "loglikelihood"]
    scorer: str
    prompt: str
    prompt_ids: tuple[int, ...]
    gold: str  # the right answer; for choices, the index of the right continuation
    continuations: tuple[tuple[int, ...], ...] = ()
    num_bytes: int = 0  # UTF-8 bytes of the gold continuation, for bits per byte
    cluster: str = ""  # items of one problem (its translations, say) are not independent
    max_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    # further input of the scorer, by name: unit tests, an entry point
    detail: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """A prompt to be continued greedily, up to `max_new_tokens` or a stop string."""

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    merge: str = ""  # one of the merges that an engine holds side by side; "" for live weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """Greedy text after a prompt, cut before the first stop string."""

    text: str
    num_tokens: int
    finish: Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoglikelihoodRequest:
    """A continuation whose probability after a context is asked."""

    context_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]
    merge: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loglikelihood:
    """Natural-log probability of a continuation."""

    logprob: float
    token_logprobs: tuple[float, ...]
    is_greedy: bool  # each of its tokens is the most likely one


# ---------------------------------------------------------------- scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """One benchmark figure to be made large or small.

    `name` is SUITE/METRIC, or SUITE:TASK/METRIC for one task of it. A cost has no suite and so no
    items: its `metric` is a name of `recycler.objectives.costs.COSTS`, `name` is cost:METRIC, and
    the recipe alone tells its figure, which has no error.

    `floor` is the worst value a shipped merge may have, in the figure's own direction and unit: a
    number, or one relative to the base or to the best member, such as "base - 0.01". With
    `bound_only` (costs) what lies within it is all the same.
    """

    suite: str
    metric: str
    direction: Direction
    task: str | None = None
    floor: str | None = None
    bound_only: bool = False

    @property
    def is_cost(self) -> bool:
        return not self.suite

    @property
    def name(self) -> str:
        if self.is_cost:
            return f"cost:{self.metric}"
        suite = f"{self.suite}:{self.task}" if self.task else self.suite
        return f"{suite}/{self.metric}"

    @property
    def sign(self) -> float:
        """The factor of its figures that makes more of them better: 1 or -1."""
        return 1.0 if self.direction == "maximize" else -1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A figure, its standard error over clusters of items, and their number; a cost has neither."""

    objective: str
    value: float
    stderr: float
    n: int

    @property
    def is_exact(self) -> bool:
        """True when it comes from no sample of items, as costs do."""
        return self.n == 0 and self.stderr == 0.0

    def text(self, digits: int = 3) -> str:
        """The figure and its standard error in words, to `digits` decimals.

        An exact figure stands alone, to four significant digits.
        """
        if self.is_exact:
            return f"{self.value:.4g}"
        return f"{self.value:.{digits}f} ± {self.stderr:.{digits}f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothed:
    """The model's posterior scores by trial number, given all trials. False without any."""

    scores: Mapping[int, tuple[Score, ...]] = field(default_factory=dict)
    uninformative: tuple[str, ...] = ()  # names of objectives that no weights move beyond noise

    def __bool__(self) -> bool:
        return bool(self.scores)

    def get(self, number: int, otherwise: tuple[Score, ...] = ()) -> tuple[Score, ...]:
        return self.scores.get(number, otherwise)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of one item: one value per metric, and the model's answer."""

    item: str
    values: tuple[tuple[str, float], ...]
    output: str = ""
    num_tokens: int = 0


# the start of a digest where adapters were scored side by side and no weights were merged
UNMERGED = "unmerged:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorecard:
    """The result of one trial on one split, as a worker returns it."""

    role: Role
    scores: tuple[Score, ...]
    outcomes: tuple[Outcome, ...]
    weights_digest: str
    engine_fingerprint: str
    num_tokens: int = 0
    merge_seconds: float = 0.0
    score_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The reason why a trial has no scorecard."""

    blame: Literal["system", "recipe"]  # the system's are retried, the recipe's are final
    reason: str
    attempts: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One row of the ledger, read back.

    PENDING -> SCORED | FAILED. The next driver sets a FAILED trial back to PENDING when the system
    was to blame.
    """

    number: int
    kind: TrialKind
    state: TrialState
    recipe: Recipe
    label: str = ""
    search: tuple[Score, ...] = ()
    holdout: tuple[Score, ...] = ()
    failure: Failure | None = None
    weights_digest: str = ""
    params: tuple[tuple[str, float], ...] = field(default=())

    @property
    def is_unmerged(self) -> bool:
        """True when its scores are of adapters beside the base, so no export can match them."""
        return self.weights_digest.startswith(UNMERGED)

    @property
    def is_proposed(self) -> bool:
        """True when a sampler asked for it: baselines, and merges of earlier runs, have a label."""
        return self.kind == "merge" and not self.label

    def scores(self, role: Role) -> tuple[Score, ...]:
        """Scores on one split; empty before they are there."""
        return self.search if role == "search" else self.holdout

    def score(self, objective: str, role: Role = "search") -> Score:
        """The score of one objective. Raises KeyError where the trial has none."""
        for score in self.scores(role):
            if score.objective == objective:
                return score
        raise KeyError(objective)


def scored_trials(trials: Iterable[Trial]) -> list[Trial]:
    """The trials that were scored, in their order."""
    return [trial for trial in trials if trial.state == "SCORED"]


def scored_members(trials: Iterable[Trial]) -> list[Trial]:
    """The members of the pool that were scored, in their order."""
    return [trial for trial in scored_trials(trials) if trial.kind == "member"]
