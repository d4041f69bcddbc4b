"""Preview of a run from the members' own answers: trade-offs, and a first guess at the front.

A guess at a merge with proportions w is, item by item, the score of a mixture of the members: for
a right-or-wrong metric the average of their outcomes, for bits per byte the members' probabilities
averaged over chunks of CHUNK_BYTES. On the SmolLM2 pool that ranked 21 real merges at 0.96
Spearman on GSM8K and on MBPP (docs/log.md). Only weights that sum to 1 are guessed at: nothing
about the members alone says what happens beyond.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from recycler.objectives.pareto import non_dominated
from recycler.objectives.stats import Z90, clustered_mean
from recycler.scoring.scorers import SCORERS, item_weight, items_of
from recycler.search.baselines import maximized
from recycler.search.simplex.domain import weight_domain
from recycler.search.simplex.proposals import perturb, random_sparse, unique
from recycler.types import Item, Objective, Outcome, Trial

Floats = NDArray[np.float64]

CHUNK_BYTES = 14.0
"""About four tokens: with single tokens the guess is the best member's, with answers the mean."""
MODEL_ERROR = 0.5
"""Standard error of a guess beside that of the items, as a share of the members' spread."""
USED = 0.05
"""Share of the weights from which on a member is part of a mixture."""
ROUNDS, NUM_GUESSES = 8, 200
"""Rounds of the search for the predicted front, and points that each adds."""
NUM_SHOWN = 8
"""Largest number of predicted merges in a preview."""
MIN_MERGES = 4
"""Merges from which on the guesses are compared with the scores."""
TOGETHER = 0.5
"""Rank correlation from which on two benchmarks hardly trade off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tradeoff:
    """Two objectives over the members: rank correlation, and the members on their front.

    The correlation is of scores with better as up; no other member beats those named at both.
    """

    first: str
    second: str
    spearman: float
    members: tuple[str, ...]

    @property
    def together(self) -> bool:
        """True when there is next to nothing to trade.

        One member is the best at both objectives, or both rank the members alike.
        """
        return len(self.members) == 1 or self.spearman >= TOGETHER

    def __str__(self) -> str:
        if len(self.members) == 1:
            return (
                f"{self.first} and {self.second} do not trade off: {self.members[0]} is the best "
                f"member at both (Spearman {self.spearman:+.2f})"
            )
        kind = "trade off" if self.spearman < 0 else "mostly go together"
        return (
            f"{self.first} and {self.second} {kind} (Spearman {self.spearman:+.2f}): no member "
            f"beats {', '.join(self.members)} at both"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """One predicted merge: weights by member, and a 90 % interval by objective.

    `scores` are (value, low, high).
    """

    weights: dict[str, float]
    scores: dict[str, tuple[float, float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuessError:
    """Errors of one objective's guesses.

    Number of merges compared, mean of real less guessed scores, rank correlation, and share of
    real scores inside the intervals.
    """

    objective: str
    num_merges: int
    bias: float
    spearman: float
    covered: float


def tradeoffs(members: Sequence[Trial], objectives: Sequence[Objective]) -> tuple[Tradeoff, ...]:
    """Every pair of objectives over the scored members."""
    values = maximized(members, objectives)
    found = []
    for a in range(len(objectives)):
        for b in range(a + 1, len(objectives)):
            pair = values[:, [a, b]]
            flat = (np.ptp(pair, axis=0) == 0).any() or len(pair) < 3
            names = tuple(
                trial.label
                for trial, best in zip(members, non_dominated(pair), strict=True)
                if best
            )
            found.append(
                Tradeoff(
                    first=objectives[a].name,
                    second=objectives[b].name,
                    spearman=0.0 if flat else float(spearmanr(*pair.T)[0]),
                    members=names,
                )
            )
    return tuple(found)


class Preview:
    """Guesses from the members' outcomes on the search items.

    `members` are scored trials of kind member, `outcomes` theirs by trial number, `items` all
    search items of the run.
    """

    def __init__(
        self,
        members: Sequence[Trial],
        outcomes: Mapping[int, Sequence[Outcome]],
        items: Sequence[Item],
        objectives: Sequence[Objective],
    ):
        self.objectives, self.names = tuple(objectives), tuple(trial.label for trial in members)
        self.tradeoffs = tradeoffs(members, objectives)
        self._tables = [
            _Table(objective, items, [outcomes[trial.number] for trial in members])
            for objective in objectives
        ]

    def guess(self, weights: Sequence[float]) -> dict[str, tuple[float, float, float]]:
        """(value, low, high) by objective of the merge with proportions `weights` (K,).

        Their sum must not be 0.
        """
        row = np.asarray(weights, dtype=float)
        return {
            objective.name: table.interval(row)
            for objective, table in zip(self.objectives, self._tables, strict=True)
        }

    def front(self, seed: int = 0) -> tuple[Guess, ...]:
        """At most NUM_SHOWN merges spread over the predicted front, best first objective first."""
        domain, rng = weight_domain(list(self.names)), np.random.default_rng(seed)
        points = np.concatenate([np.eye(len(self.names)), random_sparse(domain, rng, NUM_GUESSES)])
        for _ in range(ROUNDS):
            points = unique(np.concatenate([points, perturb(domain, rng, points, NUM_GUESSES)]))
            values = self._values(points)
            points = points[non_dominated(values)]
        values = self._values(points)
        order = np.argsort(-values[:, 0], kind="stable")
        places = np.linspace(0, len(order) - 1, min(NUM_SHOWN, len(order))).round().astype(int)
        guesses = []
        for index in order[np.unique(places)]:
            weights = {
                name: round(float(weight), 3)
                for name, weight in zip(self.names, points[index], strict=True)
                if weight >= 0.005
            }
            guesses.append(Guess(weights=weights, scores=self.guess(points[index])))
        return tuple(guesses)

    def errors(self, trials: Sequence[Trial]) -> tuple[GuessError, ...]:
        """Errors of the guesses at scored merges; empty for fewer than MIN_MERGES.

        Of merges with one row of weights, none negative, that sum to 1.
        """
        real = {trial.recipe.weights[0]: trial for trial in trials if _is_comparable(trial)}
        if len(real) < MIN_MERGES:
            return ()
        found = []
        for objective, table in zip(self.objectives, self._tables, strict=True):
            guesses = np.array([table.interval(np.asarray(weights)) for weights in real])
            truth = np.array([_value(trial, objective) for trial in real.values()])
            inside = (guesses[:, 1] <= truth) & (truth <= guesses[:, 2])
            flat = np.ptp(truth) == 0 or np.ptp(guesses[:, 0]) == 0
            found.append(
                GuessError(
                    objective=objective.name,
                    num_merges=len(real),
                    bias=float((truth - guesses[:, 0]).mean()),
                    spearman=0.0 if flat else float(spearmanr(guesses[:, 0], truth)[0]),
                    covered=float(inside.mean()),
                )
            )
        return tuple(found)

    def document(self, trials: Sequence[Trial]) -> dict[str, Any]:
        """The preview, ready for JSON; errors only where merges have been scored."""
        return {
            "schema_version": 1,
            "tradeoffs": [
                {**asdict(pair), "together": pair.together, "said": str(pair)}
                for pair in self.tradeoffs
            ],
            "front": [asdict(guess) for guess in self.front()],
            "errors": [asdict(error) for error in self.errors(trials)],
        }

    def _values(self, points: Floats) -> Floats:
        """Guesses (n, T), maximised."""
        columns = [
            objective.sign * table.means(points)
            for objective, table in zip(self.objectives, self._tables, strict=True)
        ]
        return np.stack(columns, axis=1)


class _Table:
    """The members' values on one objective's items: `values` (K, N), weights and clusters (N,)."""

    def __init__(
        self, objective: Objective, items: Sequence[Item], outcomes: Sequence[Sequence[Outcome]]
    ):
        known = [{outcome.item: dict(outcome.values) for outcome in own} for own in outcomes]
        own = [
            item
            for item in items_of(objective, items)
            if all(item.id in member for member in known)
        ]
        self.values = np.array(
            [[member[item.id][objective.metric] for item in own] for member in known]
        )
        self.weights = np.array([item_weight(item, objective.metric) for item in own])
        self.clusters = [item.cluster or item.id for item in own]
        self.by_bytes = all(SCORERS[item.scorer].weight_by_bytes for item in own)
        self.spread = float((self.values @ self.weights / self.weights.sum()).std())

    def items(self, weights: Floats) -> Floats:
        """The mixture's value on each item (N,)."""
        shares = weights / weights.sum()
        if not self.by_bytes:
            return shares @ self.values
        least = self.values.min(axis=0)
        return least - np.log2(shares @ 2.0 ** (-CHUNK_BYTES * (self.values - least))) / CHUNK_BYTES

    def means(self, points: Floats) -> Floats:
        """Mean over the items of each of the points (n, K)."""
        return np.array([self.items(point) @ self.weights for point in points]) / self.weights.sum()

    def interval(self, weights: Floats) -> tuple[float, float, float]:
        """(value, low, high) of a mixture.

        For right or wrong the high end is the score of an oracle that is right where any member of
        the mixture is: merges of members that each learned something of their own beat their
        average by far, and only that bounds it.
        """
        mean, stderr = clustered_mean(self.items(weights), self.clusters, self.weights)
        reach = Z90 * float(np.hypot(stderr, MODEL_ERROR * self.spread))
        if self.by_bytes or not np.isin(self.values, (0.0, 1.0)).all():
            return mean, mean - reach, mean + reach
        used = self.values[weights > USED * weights.sum()]
        some_right = mean
        if len(used) > 1:
            some_right = float(used.max(axis=0) @ self.weights / self.weights.sum())
        return mean, max(0.0, mean - reach), min(1.0, max(mean + reach, some_right))


def _value(trial: Trial, objective: Objective) -> float:
    return next(score.value for score in trial.search if score.objective == objective.name)


def _is_comparable(trial: Trial) -> bool:
    """True for a scored linear merge that is an average of members by one row of weights."""
    if trial.state != "SCORED" or trial.kind in ("member", "base"):
        return False
    rows = trial.recipe.weights
    if trial.recipe.method != "linear":
        return False
    return len(rows) == 1 and min(rows[0]) >= 0.0 and abs(sum(rows[0]) - 1.0) < 0.02
