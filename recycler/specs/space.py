"""Search spaces: groups of tensors that share a weight, allowed weights, searched options.

A space file is written without knowing the pool; `recycler.specs.resolve` makes it concrete:
G groups of tensors by K members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from recycler.io.strict_yaml import YamlDocument, load_yaml, parse_model
from recycler.specs.job import Number, Strict
from recycler.types import Group

Floats = NDArray[np.float64]

NO_WEIGHT = 1e-9  # sums are the same when nearer than this


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
    """One group per block of consecutive layers.

    Embeddings go with the first block, final norm and head with the last.
    """

    layer_blocks: int = Field(ge=1, le=256)


class SpaceSpec(Strict):
    """The contents of search_spaces/NAME.yaml."""

    version: Literal[1]
    description: str = ""
    groups: Literal["global", "modules"] | LayerBlocks | list[dict[str, str]] = "global"
    """global, modules, {layer_blocks: N}, or a list of {name: regex}.

    The first match takes a tensor.
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
    """Largest number of members in a merge."""
    options: dict[str, list[Number]] = {}
    """Options of the method as [lowest, highest], such as density: [0.2, 1.0].

    density@GROUP is for the tensors of one group.
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
        """The options that are searched; a range of one value is fixed and in every merge."""
        return tuple((name, (low, high)) for name, (low, high) in self.options if low < high)

    @property
    def num_points(self) -> int | None:
        """Number of merges in the space; None for a continuum."""
        rows = self.rows()
        return None if rows is None or self.knobs else len(rows) ** len(self.groups)

    def rows(self) -> tuple[tuple[float, ...], ...] | None:
        """Every allowed row of weights (K,) where there are finitely many; None for a continuum.

        Finitely many means that at most one weight may differ from its fixed value and that the
        sum determines it.
        """
        free = [
            k for k, (low, high) in enumerate(zip(self.low, self.high, strict=True)) if low < high
        ]
        fixed = [0.0 if k in free else low for k, low in enumerate(self.low)]
        places = len(free)
        if self.max_nonzero is not None:
            num_fixed = sum(weight != 0.0 for weight in fixed)
            places = min(places, self.max_nonzero - num_fixed)
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

    def project(
        self, row: Sequence[float] | Floats, total: float | None = None
    ) -> tuple[float, ...]:
        """The nearest allowed row of weights (K,) with the sum `total`.

        The default is the row's own sum, clamped to the space's range. At most `max_nonzero` of the
        largest weights are kept, or those with most room where these cannot reach the sum; then
        the row is projected onto the box of their ranges cut by the plane of the sum (Euclidean,
        by bisection on the multiplier). Rounded to 1e-6, so that equal recipes have equal digests.
        """
        weights = np.array(row, dtype=float)
        total = float(np.clip(weights.sum() if total is None else total, *self.total))
        low, high = self._kept_ranges(np.abs(weights))
        if not low.sum() - NO_WEIGHT <= total <= high.sum() + NO_WEIGHT:
            room = np.array(self.high) if total > high.sum() else -np.array(self.low)
            low, high = self._kept_ranges(room)
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

    def _kept_ranges(self, strength: Floats) -> tuple[Floats, Floats]:
        """Ranges (K,) of at most `max_nonzero` members, those of all others held at 0.

        Members that cannot be 0 are kept first, then those of most `strength` (K,).
        """
        low, high = np.array(self.low), np.array(self.high)
        if self.max_nonzero is None:
            return low, high
        order = np.argsort(-strength, kind="stable")
        free = [k for k in order if low[k] <= 0.0 <= high[k] and low[k] != high[k]]
        num_zero = int(((low == 0.0) & (high == 0.0)).sum())
        must = len(self.members) - len(free) - num_zero
        for k in free[max(self.max_nonzero - must, 0) :]:
            low[k] = high[k] = 0.0
        return low, high


def read_space(path: Path) -> tuple[SpaceSpec, YamlDocument]:
    """The space file at `path`. Raises UsageError with every problem."""
    document = load_yaml(path)
    return parse_model(SpaceSpec, document), document


def reachable_sums(
    low: Sequence[float] | Floats, high: Sequence[float] | Floats, most: int
) -> tuple[float, float]:
    """Lowest and highest sum of a row (K,) in these ranges with at most `most` weights not 0.

    The weights that cannot be 0 must be at most `most`.
    """
    lows, highs = np.array(low, dtype=float), np.array(high, dtype=float)
    must = (lows > 0) | (highs < 0)
    spare = most - int(must.sum())
    return (
        float(lows[must].sum() + np.sort(np.minimum(lows[~must], 0))[:spare].sum()),
        float(highs[must].sum() + np.sort(np.maximum(highs[~must], 0))[::-1][:spare].sum()),
    )
