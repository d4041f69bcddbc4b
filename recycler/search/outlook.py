"""Gain forecast: the hypervolume that the model expects of the next trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from recycler.objectives.pareto import Floats, hypervolume, non_dominated
from recycler.search.simplex.acquisition import contenders, expected_gains
from recycler.search.simplex.proposals import perturb, random_sparse, unique
from recycler.search.simplex.proposer import MIN_TRIALS, SimplexProposer
from recycler.search.simplex.simplex_gp import SimplexGP
from recycler.search.simplex.surrogate import Observations
from recycler.types import Trial

FORECAST_TRIALS = 20  # trials that are looked ahead
FORECAST_EVERY = 10  # proposed merges between two looks
NUM_CANDIDATES, NUM_NEAR, NUM_DRAWS = 300, 150, 32
REACHES = (0.6, 0.3)


def outlook(proposer: SimplexProposer, trials: Sequence[Trial]) -> float | None:
    """Expected gain of the next trials of a run; None while there are too few for a model."""
    scored = [trial for trial in trials if trial.state == "SCORED"]
    if len(scored) < MIN_TRIALS:
        return None
    told, observed = proposer.training_data(trials)
    members = [index for index, trial in enumerate(told) if trial.kind == "member"]
    return expected_gain(proposer.gp, observed, members, lowest=proposer.cost_reference(told))


def last_forecast(trials: Sequence[Trial]) -> tuple[int, tuple[Trial, ...]]:
    """Number of scored proposals at the last due forecast, and the trials scored then.

    One is due after every FORECAST_EVERY proposals; (0, ()) before the first.
    """
    proposed = sorted(
        trial.number for trial in trials if trial.is_proposed and trial.state == "SCORED"
    )
    looked = len(proposed) // FORECAST_EVERY * FORECAST_EVERY
    return looked, tuple(
        trial
        for trial in trials
        if trial.number <= proposed[looked - 1] and trial.state == "SCORED"
    ) if looked else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GainForecast:
    """Expected gain of a run's trials, computed once for the same trials: it takes a second."""

    proposer: SimplexProposer
    _seen: dict[tuple[int, ...], float | None] = field(
        default_factory=dict, compare=False, repr=False
    )

    def gain(self, known: Sequence[Trial]) -> float | None:
        numbers = tuple(trial.number for trial in known)
        if numbers not in self._seen:
            self._seen[numbers] = outlook(self.proposer, known)
        return self._seen[numbers]


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallGain:
    """Stop once the next proposals are expected to add less than `least_gain`.

    A share of the front's hypervolume, of the next FORECAST_TRIALS proposals.

    By the last look, from the second on. Decides from the trials alone, so a resumed run stops
    where it would have stopped.
    """

    least_gain: float
    forecast: GainForecast

    def reached(self, trials: Sequence[Trial]) -> bool:
        looked, known = last_forecast(trials)
        gain = self.forecast.gain(known) if looked >= 2 * FORECAST_EVERY else None
        return gain is not None and gain < self.least_gain


def expected_gain(
    gp: SimplexGP,
    observed: Observations,
    members: Sequence[int],
    count: int = FORECAST_TRIALS,
    lowest: Floats | None = None,
) -> float:
    """Expected gain in hypervolume of the best `count` further points, as a share of it.

    The mean over joint draws of the posterior. The reference point is the worst posterior score of
    the rows `members` (of all, when there are none), or `lowest` (T,) where that is not NaN.

    A little low where the search would learn on the way, since all `count` are chosen at once; a
    little high where the model is too unsure, as with few trials.
    """
    gp.fit(observed)
    rng = np.random.default_rng(len(observed.weights))
    mean, sd = gp.predict(observed.weights)
    reference = mean[list(members)].min(axis=0) if len(members) else mean.min(axis=0)
    reference = reference if lowest is None else np.where(np.isnan(lowest), reference, lowest)
    baseline = observed.weights[contenders(mean, sd, rng, gp.settings.max_known)]
    front = observed.weights[non_dominated(mean)]
    points = np.concatenate(
        [
            random_sparse(gp.domain, rng, NUM_CANDIDATES // 3),
            perturb(gp.domain, rng, front, NUM_CANDIDATES),
        ]
    )
    for reach in (*REACHES, 0.0):
        points = unique(points, observed.weights)
        draws = gp.draw(np.concatenate([baseline, points]), rng, NUM_DRAWS)
        gains = expected_gains(draws[:, : len(baseline)], draws[:, len(baseline) :], reference, rng)
        best = np.argsort(-gains, kind="stable")
        if reach:
            near = points[best[:count]]
            points = np.concatenate(
                [points[best[:NUM_NEAR]], perturb(gp.domain, rng, near, NUM_NEAR, reach=reach)]
            )
    before = np.mean([hypervolume(draw[: len(baseline)], reference) for draw in draws])
    known, proposals = draws[:, : len(baseline)], draws[:, len(baseline) :]
    for _ in range(count):  # one at a time, or twenty near the same corner would be chosen
        pick = int(np.argmax(expected_gains(known, proposals, reference, rng)))
        known = np.concatenate([known, proposals[:, pick : pick + 1]], axis=1)
    after = np.mean([hypervolume(draw, reference) for draw in known])
    return float((after - before) / before) if before > 0 else float("inf")
