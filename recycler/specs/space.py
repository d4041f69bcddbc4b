"""Search spaces: which tensors share a weight, which weights are allowed, and what else is
searched.

A space file is written without knowing the pool; `resolve` makes it concrete: G groups of tensors
by K members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from recycler.errors import Problem, UsageError, did_you_mean, raise_problems
from recycler.io.strict_yaml import YamlDocument, load_yaml, parse_model
from recycler.specs.job import Number, Strict
from recycler.types import Group

NO_WEIGHT = 1e-9  # sums are the same when nearer than this
DEFAULT_DELTA_SUM = (
    0.3,
    3.0,
)  # with a base, scale matters as much as proportion (docs/design/weights.md)
MODULE_GROUPS = (
    Group(
        name="embeddings", match=r"(^|\.)(embed_tokens|lm_head|wte|wpe|embed_out|embeddings?)(\.|$)"
    ),
    Group(name="attention", match=r"(^|\.)(self_attn|attn|attention|linear_attn)(\.|$)"),
    Group(name="mlp", match=r"(^|\.)(mlp|feed_forward|block_sparse_moe|ffn)(\.|$)"),
    Group(name="norms", match=""),
)


class MemberSpec(Strict):
    """Limits for one member: a frozen weight, or a range."""

    fixed: Number | None = None
    min: Number | None = None
    max: Number | None = None

    @model_validator(mode="after")
    def _one_of(self) -> MemberSpec:
        if self.fixed is not None and (self.min is not None or self.max is not None):
            raise ValueError("fixed excludes min and max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min is larger than max")
        return self


class LayerBlocks(Strict):
    """One group a block of consecutive layers; embeddings go with the first block, final norm and
    head with the last.
    """

    layer_blocks: int = Field(ge=1, le=256)


class SpaceSpec(Strict):
    """What a person writes in search_spaces/NAME.yaml."""

    version: Literal[1]
    description: str = ""
    groups: Literal["global", "modules"] | LayerBlocks | list[dict[str, str]] = "global"
    """global, modules, {layer_blocks:

    N}, or a list of {name: regex}; the first match takes a tensor.
    """
    sum: Number | list[Number] | None = None
    """Sum of the weights of each group: a number, or [lowest, highest] to search it.

    Default: [0.3, 3] with a base, else 1.
    """
    bounds: list[Number] = Field(default=[0.0, 3.0], min_length=2, max_length=2)
    """Lowest and highest weight of a member."""
    members: dict[str, MemberSpec] = {}
    """Frozen weights and ranges, by member name."""
    max_nonzero: int | None = Field(default=None, ge=1)
    """At most so many members in a merge."""
    options: dict[str, list[Number]] = {}
    """Knobs of the method as [lowest, highest], such as density: [0.2, 1.0]; density@GROUP for the
    tensors of one group.
    """

    @model_validator(mode="after")
    def _ranges(self) -> SpaceSpec:
        ranges = {
            "bounds": self.bounds,
            **{f"options.{name}": value for name, value in self.options.items()},
        }
        if isinstance(self.sum, list):
            ranges["sum"] = self.sum
        for name, value in ranges.items():
            if len(value) != 2 or value[0] > value[1]:
                raise ValueError(f"{name} must be [lowest, highest]")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """A space made concrete.

    Weights are (G, K); `low` and `high` are (K,), equal where a member is frozen.
    """

    groups: tuple[Group, ...]
    members: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    total: tuple[float, float]  # lowest and highest sum of a row
    max_nonzero: int | None = None
    options: tuple[tuple[str, tuple[float, float]], ...] = ()

    @property
    def frozen(self) -> Mapping[str, float]:
        return {
            name: low
            for name, low, high in zip(self.members, self.low, self.high, strict=True)
            if low == high
        }

    @property
    def knobs(self) -> tuple[tuple[str, tuple[float, float]], ...]:
        """The options that are searched; a range of one value is a fixed value, which goes into
        every merge.
        """
        return tuple((name, (low, high)) for name, (low, high) in self.options if low < high)

    @property
    def num_points(self) -> int | None:
        """How many merges there are, where they can be counted."""
        rows = self.rows()
        return None if rows is None or self.knobs else len(rows) ** len(self.groups)

    def rows(self) -> tuple[tuple[float, ...], ...] | None:
        """Every allowed row of weights (K,) where at most one weight is free to move and the sum
        does not let it; None for a continuum.
        """
        free = [
            k for k, (low, high) in enumerate(zip(self.low, self.high, strict=True)) if low < high
        ]
        fixed = [0.0 if k in free else low for k, low in enumerate(self.low)]
        places = (
            len(free)
            if self.max_nonzero is None
            else min(len(free), self.max_nonzero - sum(weight != 0.0 for weight in fixed))
        )
        rest = self.total[0] - sum(fixed)
        if places <= 0 or places == 1 and self.total[0] == self.total[1] and abs(rest) < NO_WEIGHT:
            return (self.project(fixed),)
        if places > 1 or self.total[0] < self.total[1]:
            return None
        must = [k for k in free if self.low[k] > 0.0 or self.high[k] < 0.0] or free
        return tuple(
            self.project([rest if k == other else weight for other, weight in enumerate(fixed)])
            for k in must
            if self.low[k] - NO_WEIGHT <= rest <= self.high[k] + NO_WEIGHT
        )

    def project(self, row: Sequence[float], total: float | None = None) -> tuple[float, ...]:
        """The nearest allowed row of weights (K,) with the given sum (default: its own, clamped to
        the space's range).

        Euclidean projection onto a box cut by a plane, by bisection on the multiplier; then at most
        `max_nonzero` of the largest weights are kept, or where these have too little room for the
        sum those with most. Rounded to 1e-6, so that equal recipes have equal digests.
        """
        weights = np.array(row, dtype=float)
        total = float(np.clip(weights.sum() if total is None else total, *self.total))
        low, high = self._thinned(np.abs(weights))
        if not low.sum() - NO_WEIGHT <= total <= high.sum() + NO_WEIGHT:
            low, high = self._thinned(
                np.array(self.high) if total > high.sum() else -np.array(self.low)
            )
        total = float(np.clip(total, low.sum(), high.sum()))
        left, right = float((low - weights).min()) - 1.0, float((high - weights).max()) + 1.0
        for _ in range(100):
            middle = (left + right) / 2
            if np.clip(weights + middle, low, high).sum() < total:
                left = middle
            else:
                right = middle
        projected = np.clip(weights + right, low, high)
        projected[(np.abs(projected) < 1e-3) & (low <= 0) & (high >= 0)] = 0.0
        return tuple(float(value) + 0.0 for value in np.round(projected, 6))

    def _thinned(self, strength: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Ranges (K,) with all members held at 0 but those that must be there and the strongest,
        `max_nonzero` together.
        """
        low, high = np.array(self.low), np.array(self.high)
        if self.max_nonzero is not None:
            free = [
                k
                for k in np.argsort(-np.asarray(strength), kind="stable")
                if low[k] <= 0.0 <= high[k] and low[k] != high[k]
            ]
            must = (
                len(self.members)
                - len(free)
                - sum(1 for k in range(len(low)) if low[k] == high[k] == 0.0)
            )
            for k in free[max(self.max_nonzero - must, 0) :]:
                low[k] = high[k] = 0.0
        return low, high


def read_space(path: Path) -> tuple[SpaceSpec, YamlDocument]:
    """The space file at `path`. Raises UsageError with every problem."""
    document = load_yaml(path)
    return parse_model(SpaceSpec, document), document


def resolve(
    spec: SpaceSpec,
    document: YamlDocument,
    *,
    members: Sequence[str],
    num_layers: int,
    has_base: bool,
    method_options: Mapping[str, object],
    left_out: Sequence[str] = (),
) -> SearchSpace:
    """The space over these members; limits of members that the job has `left_out` say nothing.

    Raises UsageError naming members or options that do not exist and impossible sums.
    """
    problems = []
    for name in spec.members:
        if name not in members and name not in left_out:
            problems.append(
                Problem(
                    thing=f"member {name!r}",
                    cause="not in the pool",
                    remedy=did_you_mean(name, members),
                    where=document.where(("members", name)),
                )
            )
    for name in spec.options:
        bare, at, group = name.partition("@")
        names = [known.name for known in _groups(spec, max(num_layers, 1))] if at else []
        if bare not in method_options:
            problems.append(
                Problem(
                    thing=f"option {name!r}",
                    cause="not an option of the job's method",
                    remedy=did_you_mean(bare, method_options or ["none"]),
                    where=document.where(("options", name)),
                )
            )
        elif at and group not in names:
            problems.append(
                Problem(
                    thing=f"option {name!r}",
                    cause=f"there is no group {group!r}",
                    remedy=did_you_mean(group, names),
                    where=document.where(("options", name)),
                )
            )
    if isinstance(spec.groups, LayerBlocks) and spec.groups.layer_blocks > num_layers:
        problems.append(
            Problem(
                thing="groups.layer_blocks",
                cause=f"{spec.groups.layer_blocks} blocks for {num_layers} layers",
                remedy="Use fewer blocks",
                where=document.where(("groups",)),
            )
        )
    if (
        {"bottom", "top"} <= method_options.keys()
    ):  # counts of layers (layer_swap): no trial may ask for more than there are
        most = sum(
            max(
                (
                    value[1]
                    for name, value in spec.options.items()
                    if name.partition("@")[0] == count
                ),
                default=method_options[count],
            )
            for count in ("bottom", "top")
        )
        if most > num_layers:
            problems.append(
                Problem(
                    thing="options bottom and top",
                    cause=f"reach {most:g} layers together, the model has {num_layers}",
                    remedy="Lower their upper ends",
                    where=document.where(("options",)),
                )
            )
    limits = [spec.members.get(name, MemberSpec()) for name in members]
    low = [
        limit.fixed
        if limit.fixed is not None
        else limit.min
        if limit.min is not None
        else min(spec.bounds[0], limit.max if limit.max is not None else spec.bounds[0])
        for limit in limits
    ]
    high = [
        limit.fixed
        if limit.fixed is not None
        else limit.max
        if limit.max is not None
        else max(spec.bounds[1], limit.min if limit.min is not None else spec.bounds[1])
        for limit in limits
    ]
    total = spec.sum if spec.sum is not None else (list(DEFAULT_DELTA_SUM) if has_base else 1.0)
    lowest, highest = total if isinstance(total, list) else (total, total)
    problems += _sum_problems(spec, document, members, low, high, (lowest, highest))
    raise_problems(problems, UsageError)
    return SearchSpace(
        groups=_groups(spec, num_layers),
        members=tuple(members),
        low=tuple(low),
        high=tuple(high),
        total=(float(lowest), float(highest)),
        max_nonzero=spec.max_nonzero,
        options=tuple((name, (value[0], value[1])) for name, value in spec.options.items()),
    )


def _sum_problems(
    spec: SpaceSpec,
    document: YamlDocument,
    members: Sequence[str],
    low: Sequence[float],
    high: Sequence[float],
    total: tuple[float, float],
) -> list[Problem]:
    """Why no row of weights can have such a sum."""
    if total[0] <= 0.0:
        return [
            Problem(
                thing="sum",
                cause=f"reaches {total[0]:g}, and the weights of a merge must sum to more than 0: "
                "sums are searched by their ratios",
                where=document.where(("sum",)),
                remedy=f"Write a number above 0, or a range such as [{max(total[1], 1.0) / 20:g}, "
                f"{max(total[1], 1.0):g}]; single weights may be negative by bounds or "
                "members",
            )
        ]
    must = [
        name
        for name, least, most in zip(members, low, high, strict=True)
        if least > 0.0 or most < 0.0
    ]
    places = spec.max_nonzero or len(low)
    if len(must) > places:
        return [
            Problem(
                thing="max_nonzero",
                cause=f"{places} is fewer than the members that have a weight in every merge "
                f"({', '.join(must)})",
                remedy="Raise it, or let those weights be 0",
                where=document.where(("max_nonzero",)),
            )
        ]
    least, most = reachable_sums(low, high, places)
    if least > total[1] + NO_WEIGHT or most < total[0] - NO_WEIGHT:
        few = f" of at most {places} members" if places < len(low) else ""
        return [
            Problem(
                thing="sum",
                cause=f"weights{few} between {least:g} and {most:g} in all can never sum to "
                f"[{total[0]:g}, {total[1]:g}]",
                remedy=f"Widen bounds, members{', max_nonzero' * bool(few)} or sum",
                where=document.where(("sum",)),
            )
        ]
    return []


def reachable_sums(low: Sequence[float], high: Sequence[float], most: int) -> tuple[float, float]:
    """Lowest and highest sum of a row (K,) with weights in these ranges, of which at most `most`
    are not 0 (those that must be are no more).
    """
    lows, highs = np.array(low, dtype=float), np.array(high, dtype=float)
    must = (lows > 0) | (highs < 0)
    spare = most - int(must.sum())
    return (
        float(lows[must].sum() + np.sort(np.minimum(lows[~must], 0))[:spare].sum()),
        float(highs[must].sum() + np.sort(np.maximum(highs[~must], 0))[::-1][:spare].sum()),
    )


def _groups(spec: SpaceSpec, num_layers: int) -> tuple[Group, ...]:
    if spec.groups == "global":
        return (Group(name="all"),)
    if spec.groups == "modules":
        return MODULE_GROUPS
    if isinstance(spec.groups, list):
        return tuple(
            Group(name=name, match=match) for entry in spec.groups for name, match in entry.items()
        )
    return layer_groups(num_layers, spec.groups.layer_blocks)


def layer_groups(num_layers: int, num_blocks: int) -> tuple[Group, ...]:
    """Blocks of consecutive layers; embeddings go with the first, final norm and head with the
    last.
    """
    edges = [round(block * num_layers / num_blocks) for block in range(num_blocks + 1)]
    blocks = [
        Group(
            name=f"layers-{first}-{last - 1}",
            match=rf"(^|\.)(layers|h|blocks)\.({'|'.join(map(str, range(first, last)))})\.",
        )
        for first, last in zip(edges, edges[1:])
    ]
    embeddings = rf"{MODULE_GROUPS[0].match.replace('|lm_head', '').replace('|embed_out', '')}"
    blocks[0] = Group(name=blocks[0].name, match=f"{blocks[0].match}|{embeddings}")
    blocks[-1] = Group(
        name=blocks[-1].name,
        match=f"{blocks[-1].match}|^(?!.*(layers|h|blocks)\\.\\d+\\.)(?!.*{embeddings})",
    )
    return tuple(blocks)
