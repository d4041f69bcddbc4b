"""Pareto fronts as arithmetic: dominance, hypervolume, knee, uncertainty.

Everything here *maximises*; `as_maximized` turns minimised columns round first. Arrays are (n, T):
n points (trials) by T objectives. numpy only, so the front of a ledger can be read without torch,
scipy or optuna.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recycler.types import Direction

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def as_maximized(values: ArrayLike, directions: Sequence[Direction]) -> Floats:
    """A copy of `values` (n, T) in which larger is better in every column.

    Applying it twice gives the values back.

    Raises ValueError for a direction other than "maximize" or "minimize", or for a wrong number of
    them.
    """
    table = _table(values)
    unknown = set(directions) - {"maximize", "minimize"}
    if unknown or len(directions) != table.shape[1]:
        raise ValueError(
            f"{table.shape[1]} objectives need as many directions, maximize or minimize; got "
            f"{list(directions)}"
        )
    return table * np.where([direction == "minimize" for direction in directions], -1.0, 1.0)


def non_dominated(values: ArrayLike) -> Mask:
    """True for each row of `values` (n, T) that no other row dominates.

    A row dominates another when it is at least as good everywhere and better somewhere.

    Equal rows do not dominate each other, so duplicates stay or go together. A row with a NaN is a
    trial without a score: it is never on the front and dominates nothing. Infinities are ordinary
    numbers.
    """
    table = _table(values)
    mask = np.zeros(len(table), dtype=bool)
    left = np.flatnonzero(~np.isnan(table).any(axis=1))
    # best first objective first: a point never comes before one that dominates it
    left = left[np.lexsort(-table[left].T[::-1])]
    columns = np.ascontiguousarray(table[left].T)
    while left.size:
        mask[left[0]] = True
        keep = ~_prey(columns[:, 1:], columns[:, 0])
        left, columns = left[1:][keep], columns[:, 1:][:, keep]
    return mask


def _prey(columns: Floats, point: Floats) -> Mask:
    """Mask of the points, a column each of (T, m), that `point` (T,) dominates."""
    other = point[:, None]
    return np.logical_and((columns <= other).all(axis=0), (columns < other).any(axis=0))


def reference_point(
    values: ArrayLike, floors: ArrayLike | None = None, margin: float = 0.1
) -> Floats:
    """Reference point (T,) of hypervolume: the front's nadir minus `margin` of its range.

    Only the non-dominated rows of `values` (n, T) count, so one hopeless trial cannot pull the
    reference point, and with it the search, to where nobody wants to be (the "1.1 x worst observed
    value" rule has that flaw). An objective on which the front has no range takes the range of all
    rows, else 1. Where `floors` (T,) is given and not NaN it is the reference point. Raises
    ValueError when no row is without NaN.
    """
    table = _table(values)
    front = table[non_dominated(table)]
    if not len(front):
        raise ValueError(
            "no point has all its objectives, so there is no front to take a reference point from"
        )
    spread = front.max(axis=0) - front.min(axis=0)
    known = table[~np.isnan(table).any(axis=1)]
    everything = known.max(axis=0) - known.min(axis=0)
    spread = np.where(spread > 0, spread, np.where(everything > 0, everything, 1.0))
    origin = front.min(axis=0) - margin * spread
    if floors is None:
        return origin
    floor = np.broadcast_to(np.asarray(floors, dtype=float), origin.shape)
    return np.where(np.isnan(floor), origin, floor)


def hypervolume(values: ArrayLike, reference: ArrayLike) -> float:
    """Exact volume that the rows of `values` (n, T) dominate above `reference` (T,).

    Rows that are not above it add nothing.

    It is infinite where a row above the reference is infinite in an objective, or the reference
    itself is minus infinity there.

    Sweeps down the last objective; the other T - 1 are covered by disjoint boxes of not yet
    dominated space, which each point cuts (the idea of Lacour, Klamroth and Fonseca 2017,
    arXiv:1510.01963, section 3, with plain guillotine cuts in place of local upper bounds: no
    general-position assumption, ties are harmless, a few more boxes).
    """
    table, origin = _table(values), np.asarray(reference, dtype=float)
    table = table[(table > origin).all(axis=1)]  # a NaN compares false
    table = np.unique(table[non_dominated(table)], axis=0) - origin
    if not len(table):
        return 0.0
    if np.isinf(table).any():  # every side is longer than nothing
        return float("inf")
    if table.shape[1] == 1:
        return float(table.max())
    table = table[np.argsort(-table[:, -1], kind="stable")]
    heights = table[:, -1] - np.append(table[1:, -1], 0.0)
    covered = np.cumsum(_Boxes(np.zeros(table.shape[1] - 1)).cut_all(table[:, :-1]))
    return float(covered @ heights)


def free_boxes(values: ArrayLike, reference: ArrayLike) -> tuple[Floats, Floats]:
    """Disjoint boxes of the space above `reference` that no row of `values` dominates.

    Lower (B, T) and upper (B, T) bounds.

    Upper bounds may be infinite. `volume_gains` sums over them; reuse the boxes when many points
    are asked about.
    """
    table, origin = _table(values), np.asarray(reference, dtype=float)
    table = table[(table > origin).all(axis=1)]
    table = np.unique(table[non_dominated(table)], axis=0)
    boxes = _Boxes(origin)
    boxes.cut_all(table[np.argsort(-table[:, -1], kind="stable")])
    return boxes.lower[: boxes.count], boxes.upper[: boxes.count]


def volume_gains(points: ArrayLike, boxes: tuple[Floats, Floats]) -> Floats:
    """Hypervolume (M,) that each row of `points` (M, T) would add to the front by itself.

    `boxes` are those of `free_boxes`.
    """
    table, (lower, upper) = _table(points), boxes
    gains = np.ones((len(table), len(lower)))
    for objective in range(table.shape[1]):
        reach = np.minimum(table[:, objective, None], upper[:, objective]) - lower[:, objective]
        gains *= np.maximum(reach, 0.0)
    return gains.sum(axis=1)


def knee(values: ArrayLike) -> int:
    """Index of the front member that bulges most.

    A little more of one objective would cost much of another.

    Each objective is scaled to 0 at the front's nadir and 1 at its ideal; the knee maximises the
    distance to the hyperplane sum = 1, that is the sum of scaled objectives (Das 1999, "On
    characterizing the knee of the Pareto curve"; for two objectives the plane passes through the
    two ends exactly). Objectives without range are ignored; ties go to the lowest index. Raises
    ValueError when no row is without NaN.
    """
    table = _table(values)
    front = np.flatnonzero(non_dominated(table))
    if not front.size:
        raise ValueError(
            "no point has all its objectives, so there is no front to take a knee from"
        )
    low, high = table[front].min(axis=0), table[front].max(axis=0)
    scaled = (table[front] - low) / np.where(high > low, high - low, 1.0)
    return int(front[np.argmax(scaled.sum(axis=1))])


def probability_non_dominated(
    values: ArrayLike, stderrs: ArrayLike, *, seed: int, num_samples: int = 512
) -> Floats:
    """Probability (n,) that each row is on the true front.

    Row i is off by independent Gaussian errors `stderrs` (n, T).

    The share of `num_samples` draws in which the row is non-dominated; its own standard error is
    below 0.5 / sqrt(num_samples). A NaN standard error counts as 0, a NaN value gives probability
    0.
    """
    table, errors = _table(values), np.nan_to_num(_table(stderrs))
    rng = np.random.default_rng(seed)
    hits = np.zeros(len(table))
    for _ in range(num_samples):
        drawn = table + errors * rng.standard_normal(table.shape)
        left = _without_easy_prey(drawn)
        hits[left[non_dominated(drawn[left])]] += 1
    return hits / num_samples


def _without_easy_prey(table: Floats, num_rounds: int = 12) -> NDArray[np.intp]:
    """Indices (m,) of the rows that no good all-rounder dominates.

    All non-dominated rows and some more, none with a NaN.

    A dominator may be any row, so which ones are taken matters for speed alone; dominance is
    transitive, so what a dropped row dominates is dropped by the same one or stays for
    `non_dominated`, where its dominator still is.
    """
    left = np.flatnonzero(~np.isnan(table).any(axis=1))
    if left.size < 64:
        return left
    columns = np.ascontiguousarray(table[left].T)
    low, high = columns.min(axis=1, keepdims=True), columns.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        goodness = np.nan_to_num((columns - low) / np.where(high > low, high - low, 1.0)).sum(
            axis=0
        )
    for _ in range(num_rounds):
        pick = int(np.argmax(goodness))
        goodness[pick] = -np.inf  # it stays, and is not taken again
        keep = ~_prey(columns, columns[:, pick])
        left, columns, goodness = left[keep], columns[:, keep], goodness[keep]
    return left


class _Boxes:
    """Disjoint boxes above a reference point, cut by one point after another.

    Slots are reused so that nothing is copied twice.
    """

    def __init__(self, origin: Floats):
        self.count = 1
        self.lower = np.tile(np.asarray(origin, dtype=float), (64, 1))
        self.upper = np.full_like(self.lower, np.inf)

    def cut_all(self, points: Floats) -> Floats:
        """Take from the boxes what each point dominates; return the volume (n,) each took.

        It is infinite only without a reference point.
        """
        return np.array([self.cut(point) for point in points])

    def cut(self, point: Floats) -> float:
        hit = np.flatnonzero((self.lower[: self.count] < point).all(axis=1))
        if not hit.size:
            return 0.0
        lower, upper = self.lower[hit], self.upper[hit]
        inner = np.minimum(upper, point)
        pieces = []
        for axis in range(
            len(point)
        ):  # what sticks out along `axis`, inside the point along the axes before it
            out = upper[:, axis] > point[axis]
            low, high = lower[out], upper[out]
            low[:, axis], high[:, :axis] = point[axis], inner[out][:, :axis]
            pieces.append((low, high))
        self._replace(
            hit,
            np.concatenate([low for low, _ in pieces]),
            np.concatenate([high for _, high in pieces]),
        )
        return float(np.prod(inner - lower, axis=1).sum())

    def _replace(self, hit: NDArray[np.intp], lower: Floats, upper: Floats) -> None:
        need = self.count + len(lower) - len(hit)
        while need > len(self.lower):
            self.lower, self.upper = np.tile(self.lower, (2, 1)), np.tile(self.upper, (2, 1))
        if need < self.count:  # fewer boxes than before: the last ones move into the holes
            keep = np.ones(self.count, dtype=bool)
            keep[hit] = False
            lower, upper = (
                np.concatenate([self.lower[: self.count][keep], lower]),
                np.concatenate([self.upper[: self.count][keep], upper]),
            )
            hit = np.arange(need)
        slots = np.concatenate([hit, np.arange(self.count, need)])
        self.lower[slots], self.upper[slots] = lower, upper
        self.count = need


def _table(values: ArrayLike) -> Floats:
    table = np.asarray(values, dtype=float)
    if table.ndim != 2:
        raise ValueError(
            f"expected a table of points by objectives, got an array of shape {table.shape}"
        )
    return table
