"""Why a merge is good: what each member adds to it, and what the front would lose without it.

By the surrogate, with its doubt.

A member's share of a merge's score is its Shapley value (Shapley 1953): the mean, over all orders
in which the merge's members could have been put in, of what putting it in changed. A coalition's
score is the posterior of the search's own Gaussian process; where weights act on deltas the empty
coalition is the base, else the members that are in share the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import factorial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recycler.objectives.costs import benchmarks
from recycler.objectives.pareto import hypervolume, non_dominated
from recycler.objectives.stats import Z90
from recycler.search.baselines import maximized
from recycler.search.simplex.proposals import perturb, random_sparse, unique
from recycler.search.simplex.proposer import MIN_TRIALS, SimplexProposer
from recycler.types import Objective, Trial

Floats = NDArray[np.float64]

# members of a merge whose coalitions are all looked at; the smallest weights beyond count as one
MAX_EXACT = 9
NUM_DRAWS, NUM_CANDIDATES, ROUNDS = 64, 200, 3
MAX_LIKELY = 30
MAX_TRIALS = 240
MAX_PAIRS = 3
MOVE = 0.1  # of a weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one member adds to a merge:

    (value, standard error) by objective, in the objective's own unit and direction.
    """

    member: str
    weight: float
    adds: dict[str, tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What taking two members out of a merge together changes beyond the sum of taking out each
    alone: (value, standard error) by objective.

    To the better: each is worth little without the other. To the worse: each stands in for the
    other.
    """

    members: tuple[str, str]
    differs: dict[str, tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What changes when a member's weight is a share MOVE larger or smaller and all are scaled back
    to their sum: (value, standard error) by objective.
    """

    member: str
    weight: float
    larger: dict[str, tuple[float, float]]
    smaller: dict[str, tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What leaving one member out of the pool would cost: the share of the front's hypervolume, on the mean over draws of the
    model and its 5 % and 95 % points; how many merges of the front use it; and the most balanced merge that would remain, by
    weights (G, K) and (value, standard error) by objective, for whoever wants to be sure."""

    member: str
    hypervolume: float
    low: float
    high: float
    used_by: int
    remaining: tuple[tuple[float, ...], ...]
    predicted: dict[str, tuple[float, float]]


class Surrogate:
    """The search's model of a run:

    `trials` are those that it was told, `observed` their points (n, D), D = G K + E.

    Raises ValueError for fewer than MIN_TRIALS scored trials.
    """

    def __init__(
        self, proposer: SimplexProposer, trials: Sequence[Trial], objectives: Sequence[Objective]
    ):
        self.trials, self.observed = proposer.training_data(telling(trials, objectives))
        if len(self.trials) < MIN_TRIALS:
            raise ValueError(
                f"{len(self.trials)} scored trials are too few for a model of the scores, which "
                f"takes {MIN_TRIALS}"
            )
        self.gp, self.objectives = proposer.gp, tuple(objectives)
        self.domain = self.gp.domain
        self.members = self.domain.members
        self.gp.fit(self.observed)
        self.on_deltas = self.domain.scale[0] < self.domain.scale[1]
        self.signs = np.array([objective.sign for objective in objectives])
        self._lowest = proposer.cost_reference(self.trials)

    def covers(self, trial: Trial) -> bool:
        """Whether it is one of the trials that the model was told."""
        return any(trial.recipe == told.recipe for told in self.trials)

    def shares(self, point: Floats) -> tuple[Share, ...]:
        """Shapley values of the members of one merge (D,), the largest weight first; knobs stay as they are. Of what it costs no
        share is told: that is no model's guess, and the weights say it."""
        weight, used = self._mean_weights(point), self._used(point)
        parts = [[index] for index in used[: MAX_EXACT - 1]] + (
            [used[MAX_EXACT - 1 :]] if len(used) >= MAX_EXACT else []
        )
        coalitions = [
            part for size in range(len(parts) + 1) for part in combinations(range(len(parts)), size)
        ]
        rows = np.array(
            [
                self._coalition(point, [index for part in coalition for index in parts[part]])
                for coalition in coalitions
            ]
        )
        place = {coalition: index for index, coalition in enumerate(coalitions)}
        weighed = np.zeros((len(parts), len(coalitions)))
        for coalition in coalitions:
            for part in range(len(parts)):
                if part not in coalition:
                    factor = (
                        factorial(len(coalition))
                        * factorial(len(parts) - len(coalition) - 1)
                        / factorial(len(parts))
                    )
                    weighed[part, place[coalition]] -= factor
                    weighed[part, place[tuple(sorted((*coalition, part)))]] += factor
        told = self._contrasts(rows, weighed)
        return tuple(
            Share(
                member=" + ".join(self.members[index] for index in part),
                weight=float(weight[part].sum()),
                adds=adds,
            )
            for part, adds in zip(parts, told, strict=True)
        )

    def pairs(self, point: Floats) -> tuple[Pair, ...]:
        """The at most MAX_PAIRS pairs of members of one merge (D,) that depend most on one another, by the spread of what was scored; of
        the MAX_EXACT largest weights."""
        used = self._used(point)
        leading = used[:MAX_EXACT]
        chosen = list(combinations(leading, 2))
        out = [(), *((index,) for index in leading), *chosen]
        rows = np.array(
            [self._coalition(point, [index for index in used if index not in gone]) for gone in out]
        )
        weighed = np.zeros((len(chosen), len(out)))
        for row, (first, second) in enumerate(chosen):
            for sign, gone in ((1, ()), (-1, (first,)), (-1, (second,)), (1, (first, second))):
                weighed[row, out.index(gone)] = sign
        spread = dict(
            zip(
                (objective.name for objective in self.objectives),
                self.gp.predict(self.observed.weights)[0].std(axis=0),
                strict=True,
            )
        )
        found = [
            Pair(members=(self.members[first], self.members[second]), differs=differs)
            for (first, second), differs in zip(chosen, self._contrasts(rows, weighed), strict=True)
        ]
        return tuple(
            sorted(
                found,
                key=lambda pair: (
                    -max(
                        abs(value) / max(spread[name], 1e-12)
                        for name, (value, _) in pair.differs.items()
                    )
                ),
            )[:MAX_PAIRS]
        )

    def moves(self, point: Floats) -> tuple[Move, ...]:
        """What a little more or less of each member of one merge (D,) changes, the largest weight
        first; none where there is nothing to scale back by.
        """
        used, weight = self._used(point), self._mean_weights(point)
        free = (
            [index for index in used if self.domain.low[index] < self.domain.high[index]]
            if len(used) > 1
            else []
        )
        before, knobs = self.domain.split(point[None])
        factors = np.ones((2 * len(free), 1, len(self.members)))
        for row, index in enumerate(free):
            factors[2 * row, 0, index], factors[2 * row + 1, 0, index] = 1 + MOVE, 1 - MOVE
        moved = (
            self._joined(
                self._shared(before * factors, np.repeat(before, len(factors), axis=0)),
                np.repeat(knobs, len(factors), axis=0),
            )
            if free
            else np.zeros((0, len(point)))
        )
        weighed = np.concatenate([-np.ones((len(moved), 1)), np.eye(len(moved))], axis=1)
        told = self._contrasts(np.concatenate([point[None], moved]), weighed)
        return tuple(
            Move(
                member=self.members[index],
                weight=float(weight[index]),
                larger=larger,
                smaller=smaller,
            )
            for index, larger, smaller in zip(free, told[::2], told[1::2], strict=True)
        )

    def _contrasts(self, points: Floats, weighed: Floats) -> list[dict[str, tuple[float, float]]]:
        """(value, standard error) by benchmark of each of the sums `weighed` (m, n) of the scores
        of `points` (n, D), in the objectives' own units.
        """
        values = weighed @ (self.gp.predict(points)[0] * self.signs)
        doubt = np.einsum(
            "pc,dct->dpt",
            weighed,
            self.gp.draw(points, np.random.default_rng(0), NUM_DRAWS) * self.signs,
        ).std(axis=0)
        return [
            {
                objective.name: (float(values[row, t]), float(doubt[row, t]))
                for t, objective in enumerate(self.objectives)
                if not objective.is_cost
            }
            for row in range(len(weighed))
        ]

    def _used(self, point: Floats) -> list[int]:
        """The members with a weight in some group, the largest first."""
        size = self._sizes(point[None])[0]
        return [int(index) for index in np.argsort(-size, kind="stable") if size[index] > 0.0]

    def _mean_weights(self, point: Floats) -> Floats:
        return self.domain.split(point[None])[0][0].mean(axis=0)

    def losses(self) -> tuple[Loss, ...]:
        """What the front would lose without each member, the most missed first.

        The merges that the model likes best are looked for with all members, and again without
        each, as many of them; on joint draws the volume of the one set is compared with that of the
        other. A search that could still find better merges without the member would lose less.
        Empty where no merge is above the corner.
        """
        scored = self.observed.weights
        mean = self.gp.predict(scored)[0]
        vertices = mean[
            [index for index, trial in enumerate(self.trials) if trial.kind == "member"]
        ]
        reference = np.where(
            np.isnan(self._lowest), (vertices if len(vertices) else mean).min(axis=0), self._lowest
        )
        sets = [self._likely(scored, member) for member in (None, *range(len(self.members)))]
        ends = np.cumsum([len(points) for points in sets])
        points = np.concatenate(sets)
        values, doubt = self.gp.predict(points)
        draws = self.gp.draw(points, np.random.default_rng(0), NUM_DRAWS)
        whole = np.array([_volume(draw[: ends[0]], reference) for draw in draws])
        if not (whole > 0).all():
            return ()
        used, reach = (
            self._sizes(scored[non_dominated(mean)]) > 0,
            np.maximum(mean.max(axis=0) - reference, 1e-12),
        )
        losses = []
        for index, name in enumerate(self.members):
            own = slice(ends[index], ends[index + 1])
            lost = np.array(
                [
                    1.0 - _volume(draw[own], reference) / volume
                    for draw, volume in zip(draws, whole, strict=True)
                ]
            )
            best = ends[index] + int(np.argmax(((values[own] - reference) / reach).min(axis=1)))
            told = {
                objective.name: (float(sign * value), float(sd))
                for objective, sign, value, sd in zip(
                    self.objectives, self.signs, values[best], doubt[best], strict=True
                )
            }
            share, low, high = (
                float(np.clip(figure, 0.0, 1.0))
                for figure in (lost.mean(), np.quantile(lost, 0.05), np.quantile(lost, 0.95))
            )
            losses.append(
                Loss(
                    member=name,
                    hypervolume=share,
                    low=low,
                    high=high,
                    used_by=int(used[:, index].sum()),
                    predicted=told,
                    remaining=tuple(
                        tuple(round(float(weight), 6) for weight in row)
                        for row in self.domain.split(points[best][None])[0][0]
                    ),
                )
            )
        return tuple(sorted(losses, key=lambda loss: -loss.hypervolume))

    def _likely(self, scored: Floats, without: int | None) -> Floats:
        """The at most MAX_LIKELY merges (n, D) of the front that the model expects, member
        `without` held at 0.
        """
        rng, domain = np.random.default_rng(1), self.domain
        known = scored[
            self._sizes(scored).sum(axis=1) > 0.0
        ]  # the base alone has no proportions to go on from
        points = self._held_out(
            np.concatenate([known, random_sparse(domain, rng, NUM_CANDIDATES)]), without
        )
        for _ in range(ROUNDS):
            best = points[non_dominated(self.gp.predict(points)[0])]
            points = unique(
                np.concatenate(
                    [
                        best,
                        self._held_out(
                            perturb(domain, rng, best, NUM_CANDIDATES, reach=0.5), without
                        ),
                    ]
                )
            )
        best = points[non_dominated(self.gp.predict(points)[0])]
        return best if len(best) <= MAX_LIKELY else best[rng.permutation(len(best))[:MAX_LIKELY]]

    def _held_out(self, points: Floats, without: int | None) -> Floats:
        """The same merges with member `without` at 0: the others take over its share where the sum
        is fixed.
        """
        if without is None:
            return points
        before, knobs = self.domain.split(points)
        rows = before * (np.arange(len(self.members)) != without)
        there = (np.abs(rows).sum(axis=2) > 0).all(axis=1)
        return self._joined(rows if self.on_deltas else self._shared(rows, before), knobs)[there]

    def _coalition(self, point: Floats, members: Sequence[int]) -> Floats:
        rows, knobs = self.domain.split(point[None])
        kept = rows * np.isin(np.arange(len(self.members)), list(members))
        return self._joined(kept if self.on_deltas else self._shared(kept, rows), knobs)[0]

    @staticmethod
    def _shared(rows: Floats, before: Floats) -> Floats:
        """`rows` (n, G, K) brought to the sums of `before`; where nothing is left, all members
        alike.
        """
        total, rest = before.sum(axis=2, keepdims=True), rows.sum(axis=2, keepdims=True)
        alike = np.broadcast_to(total / rows.shape[2], rows.shape)
        return np.where(
            np.abs(rest) > 1e-9, rows * total / np.where(np.abs(rest) > 1e-9, rest, 1.0), alike
        )

    @staticmethod
    def _joined(rows: Floats, knobs: Floats) -> Floats:
        return np.concatenate([rows.reshape(len(rows), -1), knobs], axis=1)

    def _sizes(self, points: Floats) -> Floats:
        """Sum of absolute weights over the groups (n, K)."""
        return np.abs(self.domain.split(points)[0]).sum(axis=1)


def _volume(values: Floats, reference: Floats) -> float:
    return hypervolume(values[non_dominated(values)], reference) if len(values) else 0.0


def telling(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """At most MAX_TRIALS scored trials for a model, whose cost is cubic in them: baselines and the front first, then the
    best by the sum of their scores over the spread of each."""
    scored = [trial for trial in trials if trial.state == "SCORED"]
    if len(scored) <= MAX_TRIALS:
        return scored
    values = maximized(scored, objectives)
    merit = (
        (values - values.min(axis=0))
        / np.where(np.ptp(values, axis=0) > 0, np.ptp(values, axis=0), 1.0)
    ).sum(axis=1)
    front = non_dominated(values)
    order = sorted(
        range(len(scored)),
        key=lambda index: (scored[index].kind == "merge", not front[index], -merit[index]),
    )
    return [scored[index] for index in sorted(order[:MAX_TRIALS])]


def sentences(
    chosen: Trial, shares: Sequence[Share], losses: Sequence[Loss], objectives: Sequence[Objective]
) -> list[str]:
    """What a person would say of it."""
    said = [
        f"Merge {chosen.number} uses {len(shares)} member{'s' * (len(shares) != 1)}; the weights "
        "sum to "
        f"{sum(sum(row) for row in chosen.recipe.weights) / len(chosen.recipe.weights):.2f}."
    ]
    for objective in benchmarks(objectives):
        name, sign = objective.name, objective.sign
        clear = [share for share in shares if abs(share.adds[name][0]) > Z90 * share.adds[name][1]]
        good = sorted(
            (share for share in clear if sign * share.adds[name][0] > 0),
            key=lambda share: -sign * share.adds[name][0],
        )
        bad = [share for share in clear if sign * share.adds[name][0] < 0]
        told = (
            ", ".join(
                f"{share.member} ({share.adds[name][0]:+.3f} ± {share.adds[name][1]:.3f})"
                for share in good[:3]
            )
            or "no member beyond doubt"
        )
        against = (
            "; against it: "
            f"{', '.join(f'{share.member} ({share.adds[name][0]:+.3f})' for share in bad[:3])}"
            if bad
            else ""
        )
        said.append(f"{name} comes from {told}{against}.")
    missed = [loss for loss in losses if loss.hypervolume >= 0.01]
    if missed:
        said.append(
            "Without "
            + ", ".join(
                f"{loss.member} the front would lose {loss.hypervolume:.0%} ({loss.low:.0%} to "
                f"{loss.high:.0%})"
                for loss in missed[:4]
            )
            + " of its volume, by the model."
        )
    spare = [loss.member for loss in losses if loss.hypervolume < 0.01]
    if spare:
        said.append(f"Could be left out at less than 1 %: {', '.join(spare)}.")
    return said


def pair_sentences(pairs: Sequence[Pair], objectives: Sequence[Objective]) -> list[str]:
    """Which members need or replace one another beyond doubt."""
    said = []
    for objective in benchmarks(objectives):
        for pair in pairs:
            value, doubt = pair.differs[objective.name]
            if abs(value) > Z90 * doubt:
                how = (
                    "are worth more together than each alone"
                    if objective.sign * value > 0
                    else "stand in for one another"
                )
                said.append(
                    f"{' and '.join(pair.members)} {how} at {objective.name} (taken out together "
                    f"{value:+.3f} ± {doubt:.3f} beyond the sum of each alone)."
                )
    return said


def why_document(surrogate: Surrogate, chosen: Trial) -> dict[str, Any]:
    """The one JSON document of `recycler why --json`."""
    if not surrogate.covers(chosen):
        raise ValueError("the model of this search does not cover its kind of merge")
    index = next(
        index for index, trial in enumerate(surrogate.trials) if trial.recipe == chosen.recipe
    )
    point = surrogate.observed.weights[index]
    shares, losses, pairs = surrogate.shares(point), surrogate.losses(), surrogate.pairs(point)
    return {
        "schema_version": 1,
        "trial": chosen.number,
        "estimated": True,
        "said": [
            *sentences(chosen, shares, losses, surrogate.objectives),
            *pair_sentences(pairs, surrogate.objectives),
        ],
        "shares": [asdict(share) for share in shares],
        "pairs": [asdict(pair) for pair in pairs],
        "moves": [asdict(move) for move in surrogate.moves(point)],
        "losses": [asdict(loss) for loss in losses],
        "members": surrogate.members,
    }
