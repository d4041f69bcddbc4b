"""Score a trial on some of the frozen search items, with an honest error.

Outcomes of the members on all items make that error smaller.

Items are drawn by problem: whole clusters, in a random order that depends on the seed and the suite
alone. The first n of that order are a subset of the first n + 1, so items are added to a trial
without asking any again. Tasks that share problems (the languages of MGSM) are drawn together.

The estimate regresses the trial's outcomes on the members' outcomes on the same items, which are
known for all items, and predicts the rest: the regression estimator of survey sampling (Särndal,
Swensson & Wretman 1992, ch. 6), a linear control variate; the plain mean where that states the
smaller error. Regressors are the leading principal components of the members, few enough for the
number of clusters drawn. The error uses leave-one-out residuals (HC3, MacKinnon & White 1985),
clusters as units, and the finite-population factor: it is about the score on all frozen items, and
0 when all were asked. A trial's stated error is about items at large, as that of trials scored in
full is: the two parts are added in `Estimate.at_large`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recycler.digest import derive_seed
from recycler.objectives.stats import unseen_events_stderr
from recycler.scoring.scorers import item_weight
from recycler.types import Item, Objective, Outcome, Score

MIN_ITEMS = 50  # of a task: fewer make the normal interval a fiction
CLUSTERS_PER_REGRESSOR = 15
EVENTS_PER_REGRESSOR = 10  # of the rarer answer: fewer fit noise (Peduzzi et al. 1996)


def strata(items: Sequence[Item]) -> tuple[tuple[Item, ...], ...]:
    """Items by groups of tasks that share no problem with another group.

    Groups come in the order of their first items.
    """
    group: dict[str, str] = {}  # task -> a task that stands for its group

    def root(task: str) -> str:
        while group.setdefault(task, task) != task:
            task = group[task]
        return task

    first: dict[str, str] = {}
    for item in items:
        group[root(_task(item))] = root(first.setdefault(item.cluster or item.id, _task(item)))
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(root(_task(item)), []).append(item)
    return tuple(map(tuple, found.values()))


def draw(
    items: Sequence[Item],
    seed: int,
    share: float = 0.0,
    *,
    least: int = MIN_ITEMS,
    beyond: float = 0.0,
) -> tuple[Item, ...]:
    """The items of about `share` (0 to 1) of the problems of each stratum.

    Never fewer than `least` of a task that has them. With `beyond` those are left out that a draw
    of that share returns. Items keep the order of the suite.
    """
    chosen: set[str] = set()
    for stratum in strata(items):
        order = _order(stratum, seed)
        start = 0
        if beyond > 0:
            start = _count(stratum, order, beyond, least)
        chosen.update(order[start : _count(stratum, order, share, least)])
    return tuple(item for item in items if _unit(item) in chosen)


def share_for(items: Sequence[Item], seconds_for_all: float, merge_seconds: float) -> float:
    """The share at which scoring takes about as long as changing weights.

    A smaller share would save less than half of the time of both.
    """
    if seconds_for_all <= merge_seconds or not items:
        return 1.0
    return max(1.0 / len(items), merge_seconds / seconds_for_all)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A score for all items from some of them.

    `score.stderr` is about the frozen items; `luck` is the error of their own mean about items at
    large. `variance_ratio` is the error variance over that of the plain subset mean.
    """

    score: Score
    luck: float
    variance_ratio: float

    @property
    def at_large(self) -> Score:
        """The score with its error about items at large, as trials scored on all items state it."""
        return replace(self.score, stderr=math.hypot(self.score.stderr, self.luck))


def estimate(
    items: Sequence[Item],
    outcomes: Iterable[Outcome],
    objective: Objective,
    members: Sequence[Mapping[str, float]] = (),
) -> Estimate:
    """The objective on all `items`, estimated from the outcomes of a `draw` of them.

    members: for each control (a member, or any trial scored on all items) item id -> value of the
    objective's metric; those that lack an item are left out. Raises ValueError when no item was
    scored.
    """
    own = [
        item
        for item in items
        if item.suite == objective.suite and objective.task in (None, item.task)
    ]
    values = {
        outcome.item: dict(outcome.values)[objective.metric]
        for outcome in outcomes
        if objective.metric in dict(outcome.values)
    }
    complete = [control for control in members if all(item.id in control for item in own)]
    total = sum(item_weight(item, objective.metric) for item in own)
    mean = variance = plain_variance = luck = 0.0
    count = 0
    for stratum in strata(own):
        part = sum(item_weight(item, objective.metric) for item in stratum) / total
        found = _stratum_mean(stratum, values, objective.metric, complete)
        unseen = 1.0 - found.seen
        mean += part * found.mean
        count += found.num_scored
        variance += unseen * (part * found.error) ** 2
        plain_variance += unseen * (part * found.plain_error) ** 2
        luck += found.seen * (part * found.plain_error) ** 2
    variance_ratio = 1.0
    if plain_variance > 0:
        variance_ratio = variance / plain_variance
    return Estimate(
        score=Score(objective=objective.name, value=mean, stderr=math.sqrt(variance), n=count),
        luck=math.sqrt(luck),
        variance_ratio=variance_ratio,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _StratumMean:
    """The mean of one stratum, its errors as if problems were endless, and the share drawn."""

    mean: float
    error: float
    plain_error: float
    seen: float
    num_scored: int


def _stratum_mean(
    stratum: Sequence[Item],
    values: Mapping[str, float],
    metric: str,
    controls: Sequence[Mapping[str, float]],
) -> _StratumMean:
    """One stratum's mean, by regression on the controls where that states the smaller error.

    Raises ValueError when no item was scored.
    """
    scored = np.array([item.id in values for item in stratum])
    if not scored.any():
        raise ValueError(f"no item of task {stratum[0].task!r} was scored")
    weights = np.array([item_weight(item, metric) for item in stratum])
    y = np.array([values[item.id] for item in stratum if item.id in values])
    _, units = np.unique([_unit(item) for item in stratum], return_inverse=True)
    num_drawn, num_all = len(set(units[scored].tolist())), int(units.max()) + 1
    ones = np.ones((len(stratum), 1))
    mean, plain_error = _regression_mean(ones, weights, scored, y, units)
    matrix = np.array([[control[item.id] for control in controls] for item in stratum]).reshape(
        len(stratum), -1
    )
    regressors = _components(matrix, weights, _num_regressors(y, num_drawn))
    least = unseen_events_stderr(y.tolist(), num_drawn)
    error = plain_error = max(plain_error, least)
    if regressors.shape[1]:
        fitted, fitted_error = _regression_mean(
            np.hstack([ones, regressors]), weights, scored, y, units
        )
        if max(fitted_error, least) < plain_error:  # else the members know nothing of this trial
            mean, error = fitted, max(fitted_error, least)
    return _StratumMean(
        mean=mean, error=error, plain_error=plain_error, seen=num_drawn / num_all, num_scored=len(y)
    )


def _num_regressors(y: NDArray[np.float64], num_drawn: int) -> int:
    """As many as the clusters carry; for yes and no, as the rarer answer carries."""
    most = num_drawn // CLUSTERS_PER_REGRESSOR
    if np.isin(y, (0.0, 1.0)).all():
        most = min(most, int(min(y.sum(), len(y) - y.sum())) // EVENTS_PER_REGRESSOR)
    return most


def _regression_mean(
    design: NDArray[np.float64],
    weights: NDArray[np.float64],
    scored: NDArray[np.bool_],
    y: NDArray[np.float64],
    units: NDArray[np.int64],
) -> tuple[float, float]:
    """Weighted mean over all rows, predicted by weighted least squares on the scored rows.

    Returns (mean, its error for endless problems). The estimate is linear in y: a . y with
    a = c (A'WA)^-1 A'W, c the weighted mean row of the whole design.
    """
    a, w = design[scored], weights[scored]
    inverse = np.linalg.pinv(a.T @ (w[:, None] * a))
    coefficients = (weights @ design / weights.sum()) @ inverse @ (a * w[:, None]).T
    residuals = y - a @ (inverse @ (a.T @ (w * y)))
    leverage = np.einsum("ij,jk,ik->i", a, inverse, a) * w
    sums = np.bincount(
        units[scored], weights=coefficients * residuals / np.clip(1.0 - leverage, 0.05, None)
    )
    error = 0.5  # one problem says nothing about its spread
    if len(set(units[scored].tolist())) > 1:
        error = math.sqrt(float((sums**2).sum()))
    return float(coefficients @ y), error


def _components(
    matrix: NDArray[np.float64], weights: NDArray[np.float64], most: int
) -> NDArray[np.float64]:
    """Scores of all rows on the leading principal components of the controls.

    Shape (rows, at most `most`).
    """
    if matrix.shape[1] == 0 or most < 1:
        return np.empty((len(matrix), 0))
    centred = matrix - weights @ matrix / weights.sum()
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    smallest = 1e-9 * max(1.0, sizes[0])
    keep = [index for index in range(min(most, len(sizes))) if sizes[index] > smallest]
    return left[:, keep] * math.sqrt(len(matrix))


def _order(stratum: Sequence[Item], seed: int) -> list[str]:
    """Problems of a stratum in random order, the same for the same seed and problems."""
    units = sorted({_unit(item) for item in stratum})
    tasks = sorted({_task(item) for item in stratum})
    rng = np.random.default_rng(derive_seed(seed, *tasks))
    return [units[index] for index in rng.permutation(len(units))]


def _count(stratum: Sequence[Item], order: Sequence[str], share: float, least: int) -> int:
    """The number of problems of the order that a share takes.

    At least enough for `least` items of every task of the stratum, where it has them.
    """
    sizes: dict[str, dict[str, int]] = {}
    for item in stratum:
        own = sizes.setdefault(_unit(item), {})
        own[_task(item)] = own.get(_task(item), 0) + 1
    there = Counter(_task(item) for item in stratum)
    wanted = {task: min(least, number) for task, number in there.items()}
    count = math.ceil(share * len(order))
    have = dict.fromkeys(wanted, 0)
    for place, unit in enumerate(order):
        if place >= count and all(have[task] >= number for task, number in wanted.items()):
            return place
        for task, number in sizes[unit].items():
            have[task] += number
    return len(order)


def _task(item: Item) -> str:
    return f"{item.suite}:{item.task}"


def _unit(item: Item) -> str:
    return item.cluster or item.id
