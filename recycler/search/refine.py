"""Refinement: small steps of a merge's weights down its loss, by gradient or by SPSA.

    start (G, K)  ->  steps  ->  weights (G, K), and the (seed, scalar) pairs that lead there again

A Gaussian process needs many scores to know many weights; the slope of a loss tells of all of them
at once. SPSA (Spall 1992, doi:10.1109/9.119632) takes the slope along one random direction from two
losses, as MeZO (arXiv:2305.17333) does with all parameters of a model; here only the G x K weights
of a merge move, so an engine without gradients will do. A refinement is kept as its start and one
seed and scalar a step, which give its weights again, bit for bit (after FedKSeed,
arXiv:2312.06353).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recycler.specs.space import SearchSpace
from recycler.types import Smoothed, Trial

Floats = NDArray[np.float64]
Loss = Callable[
    [Floats, int], float
]  # weights (G, K), number of the step, which chooses the items -> loss
Slopes = Callable[[Floats, int], tuple[float, Floats]]  # the same -> loss, its gradient (G, K)

REFINED = (
    "refined"  # the label of refined trials is this and the number of the trial they come from
)
SPREAD = 0.05  # how far from the weights SPSA looks, to both sides
COOLING = 0.602  # Spall's exponent: step lengths fall like (1 + i / 10) ** -COOLING
MOMENTUM, SQUARES = 0.8, 0.95  # Adam's, for tens of steps rather than thousands


@dataclass(frozen=True, slots=True)
class Step:
    """One step: weights move by -`scalar` times the direction that `seed` gives.

    `loss` is what was met on the way.
    """

    seed: int
    scalar: float
    loss: float


def direction(seed: int, space: SearchSpace) -> Floats:
    """Random signs (G, K).

    0 for frozen members; they sum to 0 in each row where the sum of the weights is fixed.
    """
    return _allowed(
        np.random.default_rng(seed).choice((-1.0, 1.0), (len(space.groups), len(space.members))),
        space,
    )


def _allowed(step: Floats, space: SearchSpace) -> Floats:
    """Project a step (G, K): frozen members stay, and so does the sum of rows where it is fixed."""
    free = (np.array(space.low) < np.array(space.high)).astype(float)
    if space.total[0] == space.total[1]:
        step = step * free
        step = step - step.sum(axis=1, keepdims=True) / max(free.sum(), 1.0)
    return step * free


def moved(weights: Floats, step: Floats, space: SearchSpace) -> Floats:
    """`weights` - `step`, (G, K), brought back into the space row by row."""
    return np.array([space.project(row) for row in weights - step])


def spsa(
    loss: Loss, start: Floats, space: SearchSpace, *, steps: int, reach: float, seed: int
) -> tuple[Floats, tuple[Step, ...]]:
    """Weights after `steps` steps of SPSA, and the steps (Spall 1992).

    Two losses per step, on the same items. A step of usual slope moves each weight by `reach`,
    later ones by less.
    """
    weights, taken, squares = np.array(start, dtype=float), [], []
    for index in range(steps):
        own = seed * 1_000_003 + index
        aside = SPREAD * direction(own, space)
        above = loss(moved(weights, -aside, space), index)
        below = loss(moved(weights, aside, space), index)
        slope = (above - below) / (2 * SPREAD)
        squares.append(slope**2)
        usual = float(np.sqrt(np.mean(squares)))
        scalar = reach * (1 + index / 10) ** -COOLING * slope / usual if usual > 0 else 0.0
        taken.append(Step(seed=own, scalar=scalar, loss=(above + below) / 2))
        weights = moved(weights, scalar * direction(own, space), space)
    return weights, tuple(taken)


def replay(start: Floats, steps: Sequence[Step], space: SearchSpace) -> Floats:
    """The weights that `spsa` came to, without a model: the same bits."""
    weights = np.array(start, dtype=float)
    for step in steps:
        weights = moved(weights, step.scalar * direction(step.seed, space), space)
    return weights


def descend(
    slopes: Slopes, start: Floats, space: SearchSpace, *, steps: int, reach: float
) -> tuple[Floats, tuple[float, ...]]:
    """Weights after `steps` steps of Adam, each about `reach` per weight, and their losses."""
    weights = np.array(start, dtype=float)
    mean, square = np.zeros_like(weights), np.zeros_like(weights)
    losses = []
    for index in range(steps):
        loss, slope = slopes(weights, index)
        slope = _allowed(slope, space)
        losses.append(loss)
        mean = MOMENTUM * mean + (1 - MOMENTUM) * slope
        square = SQUARES * square + (1 - SQUARES) * slope**2
        unbiased = mean / (1 - MOMENTUM ** (index + 1)), square / (1 - SQUARES ** (index + 1))
        weights = moved(weights, reach * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-12), space)
    return weights, tuple(losses)


def refined_from(trial: Trial) -> int | None:
    """The number of the trial that a refined one comes from; None for others."""
    word, _, origin = trial.label.partition(" ")
    return int(origin) if word == REFINED and origin.isdecimal() else None


def with_refined(smoothed: Smoothed, trials: Sequence[Trial]) -> Smoothed:
    """Posterior scores, with those of refined trials added.

    The search's model does not know their rows of weights. They get the posterior score of the
    trial that they come from plus the difference of the search scores, in which the luck of common
    items cancels.
    """
    by_number = {trial.number: trial for trial in trials if trial.state == "SCORED"}
    scores = dict(smoothed.scores)
    for number, trial in sorted(by_number.items()):
        origin = refined_from(trial)
        start = None if origin is None else by_number.get(origin)
        if start is None or number in scores or start.number not in scores:
            continue
        before = {score.objective: score.value for score in start.search}
        gained = {score.objective: score.value - before[score.objective] for score in trial.search}
        scores[number] = tuple(
            replace(score, value=score.value + gained[score.objective])
            for score in scores[start.number]
        )
    return replace(smoothed, scores=scores)
