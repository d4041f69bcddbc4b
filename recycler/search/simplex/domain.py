"""Domain of the weights: sums, ranges, frozen members, few non-zeros; and its repair.

A point is a vector (D,) with D = G K + E: G rows of K member weights, then E method knobs (a
density, a layer count).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recycler.specs.space import reachable_sums

Floats = NDArray[np.float64]

NEGLIGIBLE = (
    1e-3  # a weight this small costs a checkpoint read and changes nothing: proposals set it to 0
)
CLOSE = 1e-6  # points nearer than this in every coordinate are one and the same
SLACK = 1e-9


class Exhausted(ValueError):
    """Nothing that is allowed is left to propose."""


@dataclass(frozen=True)
class WeightDomain:
    """The set of allowed points. Build it with `weight_domain`, which checks it.

    `low`, `high` (K,) bound each member's weight in every group; a frozen member has low == high.
    Each row sums to a number in `scale`; at most `max_nonzero` weights of a row are not 0.
    `knob_low`, `knob_high` (E,) bound the knobs.
    """

    members: tuple[str, ...]
    groups: int
    scale: tuple[float, float]
    low: Floats
    high: Floats
    max_nonzero: int
    knob_low: Floats
    knob_high: Floats

    @property
    def num_members(self) -> int:
        return len(self.members)

    @property
    def size(self) -> int:
        return self.groups * self.num_members + len(self.knob_low)

    def split(self, points: Floats) -> tuple[Floats, Floats]:
        """Weights (n, G, K) and knobs (n, E) of points (n, D)."""
        cut = self.groups * self.num_members
        return points[:, :cut].reshape(len(points), self.groups, self.num_members), points[:, cut:]

    def join(self, rows: Floats, knobs: Floats) -> Floats:
        """Points (n, D) from weights (n, G, K) and knobs (n, E), each brought back inside."""
        count = len(rows)
        weights = self.repair(rows.reshape(count * self.groups, self.num_members)).reshape(
            count, -1
        )
        return np.concatenate([weights, np.clip(knobs, self.knob_low, self.knob_high)], axis=1)

    def repair(self, rows: Floats) -> Floats:
        """Nearest allowed rows (n, K): clipped, sparsified to the largest, scaled to the sum.

        Rows that are allowed already come back as they are, apart from negligible weights. Zeros
        stay zeros unless the sum cannot be reached without them. Scaling is by a common factor as
        far as the ranges allow, so proportions keep their meaning.
        """
        rows = np.clip(np.asarray(rows, dtype=float), self.low, self.high)
        rows = np.where((np.abs(rows) < NEGLIGIBLE) & self._may_be_zero, 0.0, rows)
        repaired = self._to_sum(rows, np.abs(rows))
        gap = np.clip(repaired.sum(axis=1), *self.scale) - repaired.sum(axis=1)
        missed = np.abs(gap) > SLACK
        if missed.any():  # the largest weights have too little room: take the members with most
            room = np.where(gap[missed, None] > 0, self.high, -self.low)
            repaired[missed] = self._to_sum(rows[missed], room)
        return repaired

    def _to_sum(self, rows: Floats, strength: Floats) -> Floats:
        """Keep the members of most `strength` (n, K) in each row, then scale its sum."""
        kept = self._kept(strength)
        rows = np.where(kept, rows, 0.0)
        target = np.clip(rows.sum(axis=1), *self.scale)
        free = kept & ~self._frozen
        used = free & (rows != 0.0)
        rows = self._scaled(rows, used, target)
        rows = self._shifted(rows, used, target)
        return self._shifted(rows, free, target)

    def contains(self, points: Floats) -> NDArray[np.bool_]:
        """True for each point (n, D) that obeys every rule, to rounding."""
        rows, knobs = self.split(points)
        total = rows.sum(axis=2)
        fits = ((rows >= self.low - SLACK) & (rows <= self.high + SLACK)).all(axis=(1, 2))
        fits &= ((total >= self.scale[0] - SLACK) & (total <= self.scale[1] + SLACK)).all(axis=1)
        fits &= ((rows != 0).sum(axis=2) <= self.max_nonzero).all(axis=1)
        return fits & ((knobs >= self.knob_low) & (knobs <= self.knob_high)).all(axis=1)

    # ------------------------------------------------------------ repair, step by step

    @property
    def _frozen(self) -> NDArray[np.bool_]:
        return self.low == self.high

    @property
    def _may_be_zero(self) -> NDArray[np.bool_]:
        return (self.low <= 0) & (self.high >= 0)

    def _kept(self, strength: Floats) -> NDArray[np.bool_]:
        """Mask of the members of each row that may differ from 0, at most `max_nonzero`.

        Those that must, then the strongest.
        """
        if self.max_nonzero >= self.num_members:
            return np.ones_like(strength, dtype=bool)
        strength = np.where(self._may_be_zero, strength, np.inf)
        strength = np.where(
            self._frozen & self._may_be_zero, -np.inf, strength
        )  # frozen at 0: needs no place
        order = np.argsort(-strength, axis=1, kind="stable")
        kept = np.zeros_like(strength, dtype=bool)
        np.put_along_axis(kept, order[:, : self.max_nonzero], True, axis=1)
        return kept

    def _scaled(self, rows: Floats, free: NDArray[np.bool_], target: Floats) -> Floats:
        movable = np.where(free, rows, 0.0).sum(axis=1)
        wanted = target - np.where(free, 0.0, rows).sum(axis=1)
        fine = (movable > 0.05) & (wanted > 0)
        factor = np.where(fine, wanted / np.where(fine, movable, 1.0), 1.0)
        return np.where(free, np.clip(rows * factor[:, None], self.low, self.high), rows)

    def _shifted(self, rows: Floats, free: NDArray[np.bool_], target: Floats) -> Floats:
        """Close the gap to `target`, each free weight in proportion to the room it has."""
        gap = target - rows.sum(axis=1)
        edge = np.where(
            gap[:, None] > 0, self.high, np.where(rows > 0, np.maximum(self.low, 0.0), self.low)
        )
        for bound in (edge, np.broadcast_to(self.low, rows.shape)):
            gap = target - rows.sum(axis=1)
            bound = np.where(gap[:, None] > 0, self.high, bound)
            room = np.where(free, bound - rows, 0.0)
            total = room.sum(axis=1)
            part = np.where(np.abs(total) > 0, gap / np.where(total == 0, 1.0, total), 0.0)
            rows = rows + np.clip(part, 0.0, 1.0)[:, None] * room
        return rows


def weight_domain(
    members: Sequence[str],
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    bounds: Mapping[str, tuple[float, float]] | None = None,
    frozen: Mapping[str, float] | None = None,
    max_nonzero: int | None = None,
    groups: int = 1,
    knobs: Sequence[tuple[float, float]] = (),
) -> WeightDomain:
    """A checked domain.

    Members without an entry in `bounds` have weights in [0, scale[1]]; `frozen` fixes a weight.

    Negative weights are allowed where a bound says so. Raises one ValueError that lists every
    contradiction.
    """
    names = tuple(members)
    problems = []
    if not names or len(set(names)) < len(names):
        problems.append(f"members must be at least one and all different, got {list(names)}")
    given = {**(bounds or {}), **{name: (value, value) for name, value in (frozen or {}).items()}}
    problems += [
        f"{name!r} is not a member; members are {', '.join(names)}"
        for name in given
        if name not in names
    ]
    problems += [
        f"bounds of {name!r} are reversed: {low} > {high}"
        for name, (low, high) in given.items()
        if low > high
    ]
    problems += [
        f"knob {index} needs low < high, got {knob}"
        for index, knob in enumerate(knobs)
        if not knob[0] < knob[1]
    ]
    problems += [
        f"bounds of {name!r} must be finite, got {low} .. {high}"
        for name, (low, high) in given.items()
        if not np.isfinite([low, high]).all()
    ]
    if max_nonzero is not None and not isinstance(max_nonzero, int | np.integer):
        problems.append(f"max_nonzero must be a whole number, got {max_nonzero}")
    if not 0 < scale[0] <= scale[1] < np.inf:
        problems.append(f"scale needs 0 < low <= high, finite, got {tuple(scale)}")
    if problems:
        raise ValueError("; ".join(problems))
    low, high = (
        np.array([given.get(name, (0.0, float(scale[1]))) for name in names], dtype=float)
        .reshape(-1, 2)
        .T
    )
    most = len(names) if max_nonzero is None else max_nonzero
    if problems := _contradictions(low, high, (float(scale[0]), float(scale[1])), most):
        raise ValueError("; ".join(problems))
    knob_low, knob_high = np.array(knobs, dtype=float).reshape(-1, 2).T
    return WeightDomain(
        names, groups, (float(scale[0]), float(scale[1])), low, high, most, knob_low, knob_high
    )


def _contradictions(low: Floats, high: Floats, scale: tuple[float, float], most: int) -> list[str]:
    """Reasons why no row can obey these ranges, sums and non-zeros; empty when one can."""
    must = (low > 0) | (high < 0)
    if must.sum() > most or most < 1:
        return [f"{int(must.sum())} members must be non-zero but max_nonzero is {most}"]
    smallest, largest = reachable_sums(low, high, most)
    if largest < scale[0] - SLACK or smallest > scale[1] + SLACK:
        return [
            f"weights can sum to {smallest:g} .. {largest:g} at most, but the sum must be in "
            f"{scale[0]:g} .. {scale[1]:g}"
        ]
    return []
