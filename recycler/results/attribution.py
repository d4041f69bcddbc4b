"""Attribution of a merge's scores to its members, and the front's loss without each member.

Both are estimated by the search's own Gaussian process, with standard errors.

A member's share of a merge's score is its Shapley value (Shapley 1953): the mean, over all orders
in which the merge's members could have been put in, of what putting it in changed. A coalition's
score is the posterior of that process; where weights act on deltas the empty
coalition is the base, else the members that are in share the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial

import numpy as np
from numpy.typing import NDArray

from recycler.objectives.pareto import hypervolume, non_dominated
from recycler.search.baselines import maximized
from recycler.search.simplex.proposals import perturb, random_sparse, unique
from recycler.search.simplex.proposer import MIN_TRIALS, SimplexProposer
from recycler.types import Objective, Trial

Floats = NDArray[np.float64]

Figures = dict[str, tuple[float, float]]
"""(value, standard error) by objective, in the objective's own unit and direction."""

MAX_EXACT = 9
"""Players of a Shapley value: with more members the smallest weights count as one player."""
NUM_DRAWS = 64
"""Joint posterior draws behind a standard error or an interval."""
NUM_CANDIDATES, ROUNDS = 200, 3
"""Points that each round of the search for the expected front adds, and its rounds."""
MAX_LIKELY = 30
"""Points kept of that front."""
MAX_TRIALS = 240
"""Trials that the model learns from: its cost is cubic in them."""
MAX_PAIRS = 3
"""Pairs of members that are returned."""
MOVE = 0.1
"""Share by which a weight is made larger and smaller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The Shapley value of one member in a merge, by objective."""

    member: str
    weight: float
    adds: Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The interaction of two members: the effect of removing both beyond the sum of removing each.

    To the better: each is worth little without the other. To the worse: each stands in for the
    other.
    """

    members: tuple[str, str]
    differs: Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """The effect of a member's weight being a share MOVE larger, or smaller, at the same sum."""

    member: str
    weight: float
    larger: Figures
    smaller: Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """The cost of leaving one member out of the pool.

    `hypervolume` is the share of the front's volume that would be lost, the mean over draws of the
    model; `low` and `high` are its 5 % and 95 % points. `used_by` counts the merges of the front
    with the member. `remaining` (G, K) are the weights of the most balanced merge that would be
    left, and `predicted` its scores.
    """

    member: str
    hypervolume: float
    low: float
    high: float
    used_by: int
    remaining: tuple[tuple[float, ...], ...]
    predicted: Figures


class SearchModel:
    """The search's model of a run, to be asked about merges.

    `trials` are those that it learned from, `observed` their points (n, D), D = G K + E. Raises
    ValueError for fewer than MIN_TRIALS scored trials.
    """

    def __init__(
        self, proposer: SimplexProposer, trials: Sequence[Trial], objectives: Sequence[Objective]
    ):
        self.trials, self.observed = proposer.training_data(training_trials(trials, objectives))
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
        """True for one of the trials that the model learned from."""
        return any(trial.recipe == known.recipe for known in self.trials)

    def shares(self, point: Floats) -> tuple[Share, ...]:
        """Shapley values (Shapley 1953) of the members of one merge (D,), the largest weight first.

        Knobs stay as they are. Costs have no shares: they are known from the weights.
        """
        weight, used = self._mean_weights(point), self._used(point)
        players = [[index] for index in used[: MAX_EXACT - 1]]
        if len(used) >= MAX_EXACT:
            players.append(used[MAX_EXACT - 1 :])
        coalitions = _coalitions(len(players))
        rows = []
        for coalition in coalitions:
            members = [index for player in coalition for index in players[player]]
            rows.append(self._coalition(point, members))
        values = self._contrasts(np.array(rows), _shapley_matrix(len(players), coalitions))
        shares = []
        for player, adds in zip(players, values, strict=True):
            name = " + ".join(self.members[index] for index in player)
            shares.append(Share(member=name, weight=float(weight[player].sum()), adds=adds))
        return tuple(shares)

    def pairs(self, point: Floats) -> tuple[Pair, ...]:
        """The at most MAX_PAIRS pairs of members of one merge (D,) that interact most.

        Of the MAX_EXACT largest weights, and in units of the spread of each objective's scores.
        """
        used = self._used(point)
        leading = used[:MAX_EXACT]
        chosen = list(combinations(leading, 2))
        removals: list[tuple[int, ...]] = [(), *((index,) for index in leading), *chosen]
        rows = []
        for removed in removals:
            rows.append(self._coalition(point, [index for index in used if index not in removed]))
        contrasts = np.zeros((len(chosen), len(removals)))
        for row, (first, second) in enumerate(chosen):
            contrasts[row, removals.index(())] = 1
            contrasts[row, removals.index((first,))] = -1
            contrasts[row, removals.index((second,))] = -1
            contrasts[row, removals.index((first, second))] = 1
        spread = self._spread()
        found = []
        for (first, second), differs in zip(
            chosen, self._contrasts(np.array(rows), contrasts), strict=True
        ):
            found.append(Pair(members=(self.members[first], self.members[second]), differs=differs))

        def interaction(pair: Pair) -> float:
            return max(abs(value) / spread[name] for name, (value, _) in pair.differs.items())

        return tuple(sorted(found, key=lambda pair: -interaction(pair))[:MAX_PAIRS])

    def _spread(self) -> dict[str, float]:
        """Standard deviation of the model's scores of the trials, by objective; never 0."""
        mean, _ = self.gp.predict(self.observed.weights)
        names = [objective.name for objective in self.objectives]
        return dict(zip(names, np.maximum(mean.std(axis=0), 1e-12), strict=True))

    def moves(self, point: Floats) -> tuple[Move, ...]:
        """The effect of a little more or less of each member of one merge (D,).

        The largest weight first. Empty for a merge of one member: nothing else could be scaled.
        """
        used, weight = self._used(point), self._mean_weights(point)
        if len(used) < 2:
            return ()
        free = [index for index in used if self.domain.low[index] < self.domain.high[index]]
        if not free:
            return ()
        before, knobs = self.domain.split(point[None])
        factors = np.ones((2 * len(free), 1, len(self.members)))
        for row, index in enumerate(free):
            factors[2 * row, 0, index], factors[2 * row + 1, 0, index] = 1 + MOVE, 1 - MOVE
        rows = self._shared(before * factors, np.repeat(before, len(factors), axis=0))
        moved = self._joined(rows, np.repeat(knobs, len(factors), axis=0))
        contrasts = np.concatenate([-np.ones((len(moved), 1)), np.eye(len(moved))], axis=1)
        values = self._contrasts(np.concatenate([point[None], moved]), contrasts)
        moves = []
        for index, larger, smaller in zip(free, values[::2], values[1::2], strict=True):
            name, size = self.members[index], float(weight[index])
            moves.append(Move(member=name, weight=size, larger=larger, smaller=smaller))
        return tuple(moves)

    def _contrasts(self, points: Floats, contrasts: Floats) -> list[Figures]:
        """Linear `contrasts` (m, n) of the scores of `points` (n, D): the figures of each.

        In the objectives' own units; costs are left out.
        """
        values = contrasts @ (self.gp.predict(points)[0] * self.signs)
        draws = self.gp.draw(points, np.random.default_rng(0), NUM_DRAWS) * self.signs
        stderrs = np.einsum("pc,dct->dpt", contrasts, draws).std(axis=0)
        found = []
        for row in range(len(contrasts)):
            found.append(
                {
                    objective.name: (float(values[row, t]), float(stderrs[row, t]))
                    for t, objective in enumerate(self.objectives)
                    if not objective.is_cost
                }
            )
        return found

    def _used(self, point: Floats) -> list[int]:
        """The members with a weight in some group, the largest first."""
        size = self._sizes(point[None])[0]
        return [int(index) for index in np.argsort(-size, kind="stable") if size[index] > 0.0]

    def _mean_weights(self, point: Floats) -> Floats:
        return self.domain.split(point[None])[0][0].mean(axis=0)

    def losses(self) -> tuple[Loss, ...]:
        """The loss of the front without each member (leave-one-out), the largest first.

        The model's expected front is searched with all members, and again without each, with as
        many candidates; their hypervolumes are compared on joint draws. A search that could still
        find better merges without the member would lose less. Empty where no merge is above the
        reference point.
        """
        scored = self.observed.weights
        mean, _ = self.gp.predict(scored)
        reference = self._reference_point(mean)
        sets = [self._likely(scored, member) for member in (None, *range(len(self.members)))]
        ends = np.cumsum([len(points) for points in sets])
        draws = self.gp.draw(np.concatenate(sets), np.random.default_rng(0), NUM_DRAWS)
        values, stderrs = self.gp.predict(np.concatenate(sets))
        whole = np.array([_volume(draw[: ends[0]], reference) for draw in draws])
        if not (whole > 0).all():
            return ()
        used = self._sizes(scored[non_dominated(mean)]) > 0
        reach = np.maximum(mean.max(axis=0) - reference, 1e-12)
        losses = []
        for index, name in enumerate(self.members):
            own = slice(ends[index], ends[index + 1])
            rest = np.array([_volume(draw[own], reference) for draw in draws])
            lost = 1.0 - rest / whole
            best = int(np.argmax(((values[own] - reference) / reach).min(axis=1)))
            losses.append(
                Loss(
                    member=name,
                    hypervolume=_share(lost.mean()),
                    low=_share(np.quantile(lost, 0.05)),
                    high=_share(np.quantile(lost, 0.95)),
                    used_by=int(used[:, index].sum()),
                    predicted=self._figures(values[own][best], stderrs[own][best]),
                    remaining=self._rounded_rows(sets[index + 1][best]),
                )
            )
        return tuple(sorted(losses, key=lambda loss: -loss.hypervolume))

    def _reference_point(self, mean: Floats) -> Floats:
        """(T,) the lowest posterior mean of the members, or of all trials without members."""
        rows = [index for index, trial in enumerate(self.trials) if trial.kind == "member"]
        lowest = mean[rows].min(axis=0) if rows else mean.min(axis=0)
        return np.where(np.isnan(self._lowest), lowest, self._lowest)

    def _figures(self, values: Floats, stderrs: Floats) -> Figures:
        """Values (T,), to be made large, in the objectives' own directions."""
        return {
            objective.name: (float(objective.sign * value), float(stderr))
            for objective, value, stderr in zip(self.objectives, values, stderrs, strict=True)
        }

    def _rounded_rows(self, point: Floats) -> tuple[tuple[float, ...], ...]:
        """Weights (G, K) of a point (D,), as a document shows them."""
        rows, _ = self.domain.split(point[None])
        return tuple(tuple(round(float(weight), 6) for weight in row) for row in rows[0])

    def _likely(self, scored: Floats, left_out: int | None) -> Floats:
        """At most MAX_LIKELY merges (n, D) of the expected front, member `left_out` held at 0."""
        rng, domain = np.random.default_rng(1), self.domain
        known = scored[self._sizes(scored).sum(axis=1) > 0.0]  # the base has no proportions
        sparse = random_sparse(domain, rng, NUM_CANDIDATES)
        points = self._leave_out(np.concatenate([known, sparse]), left_out)
        for _ in range(ROUNDS):
            best = points[non_dominated(self.gp.predict(points)[0])]
            near = perturb(domain, rng, best, NUM_CANDIDATES, reach=0.5)
            points = unique(np.concatenate([best, self._leave_out(near, left_out)]))
        best = points[non_dominated(self.gp.predict(points)[0])]
        if len(best) <= MAX_LIKELY:
            return best
        return best[rng.permutation(len(best))[:MAX_LIKELY]]

    def _leave_out(self, points: Floats, member: int | None) -> Floats:
        """`points` with `member` at 0; others share its weight where the sum is fixed."""
        if member is None:
            return points
        before, knobs = self.domain.split(points)
        rows = before * (np.arange(len(self.members)) != member)
        has_weights = (np.abs(rows).sum(axis=2) > 0).all(axis=1)
        if not self.on_deltas:
            rows = self._shared(rows, before)
        return self._joined(rows, knobs)[has_weights]

    def _coalition(self, point: Floats, members: Sequence[int]) -> Floats:
        """The point (D,) of a merge of which only `members` are left."""
        rows, knobs = self.domain.split(point[None])
        kept = rows * np.isin(np.arange(len(self.members)), list(members))
        if not self.on_deltas:
            kept = self._shared(kept, rows)
        return self._joined(kept, knobs)[0]

    @staticmethod
    def _shared(rows: Floats, before: Floats) -> Floats:
        """`rows` (n, G, K) scaled to the sums of `before`; equal weights where nothing is left."""
        total, rest = before.sum(axis=2, keepdims=True), rows.sum(axis=2, keepdims=True)
        equal = np.broadcast_to(total / rows.shape[2], rows.shape)
        is_left = np.abs(rest) > 1e-9
        return np.where(is_left, rows * total / np.where(is_left, rest, 1.0), equal)

    @staticmethod
    def _joined(rows: Floats, knobs: Floats) -> Floats:
        return np.concatenate([rows.reshape(len(rows), -1), knobs], axis=1)

    def _sizes(self, points: Floats) -> Floats:
        """Sum of absolute weights over the groups (n, K)."""
        return np.abs(self.domain.split(points)[0]).sum(axis=1)


def _volume(values: Floats, reference: Floats) -> float:
    return hypervolume(values[non_dominated(values)], reference) if len(values) else 0.0


def _coalitions(num_players: int) -> list[tuple[int, ...]]:
    """Every subset of the players, the smallest first."""
    sizes = range(num_players + 1)
    return [coalition for size in sizes for coalition in combinations(range(num_players), size)]


def _shapley_matrix(num_players: int, coalitions: Sequence[tuple[int, ...]]) -> Floats:
    """(n, 2^n): the Shapley values of n players as sums over the coalitions' scores v.

    phi_i = sum over S without i of |S|! (n - |S| - 1)! / n! (v(S + i) - v(S)) (Shapley 1953).
    """
    place = {coalition: index for index, coalition in enumerate(coalitions)}
    matrix = np.zeros((num_players, len(coalitions)))
    for coalition in coalitions:
        size = len(coalition)
        orders = factorial(size) * factorial(num_players - size - 1) if size < num_players else 0
        for player in range(num_players):
            if player in coalition:
                continue
            factor = orders / factorial(num_players)
            matrix[player, place[coalition]] -= factor
            matrix[player, place[tuple(sorted((*coalition, player)))]] += factor
    return matrix


def _share(figure: float) -> float:
    return float(np.clip(figure, 0.0, 1.0))


def training_trials(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """At most MAX_TRIALS scored trials for a model: baselines and the front first, then the best.

    The best by the sum of their scores, each over its range.
    """
    scored = [trial for trial in trials if trial.state == "SCORED"]
    if len(scored) <= MAX_TRIALS:
        return scored
    values = maximized(scored, objectives)
    spread = np.ptp(values, axis=0)
    merit = ((values - values.min(axis=0)) / np.where(spread > 0, spread, 1.0)).sum(axis=1)
    front = non_dominated(values)
    order = sorted(
        range(len(scored)),
        key=lambda index: (scored[index].kind == "merge", not front[index], -merit[index]),
    )
    return [scored[index] for index in sorted(order[:MAX_TRIALS])]
