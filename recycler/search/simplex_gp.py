"""`simplex_gp`: find the front of merges with few trials, by Gaussian processes that live on the weights themselves.

    opening design -> GP per objective -> candidates near the posterior front -> noisy expected hypervolume improvement

No map from a box to the simplex: a map that is kind to one face distorts another, and duplicates dimensions. A proposal
is a function of what has been observed, what is pending, the trial's number and the seed, and of nothing else, so a
killed search that is started again proposes what it would have proposed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import chi2

from recycler.pareto import Floats, Mask, non_dominated, probability_non_dominated, reference_point
from recycler.search.acquisition import contenders, expected_gains
from recycler.search.domain import CLOSE, WeightDomain, weight_domain
from recycler.search.gp import Features, gram_root
from recycler.search.linked_gp import LinkedGP
from recycler.search.proposals import GLOBAL_SHARE, alone, around, distinct, opening, scattered, thinned

PriorMean = Callable[[Floats], Floats]
Exact = Mapping[int, Callable[[Floats], Floats]]

NUM_DRAWS = 16
NUM_CANDIDATES = 400
NUM_REFINED = 160
NUM_THINNED = 80  # candidates with fewer members, where that may be worth something in itself
REACHES = (0.6, 0.4, 0.2)  # each round looks around the best dozen so far, ever nearer
NUM_BEST = 12
MOST_KNOWN = 80  # trials drawn jointly with the candidates
MOST_PENDING = 64
PATIENCE = 4  # members alone that may be worse than the soup at everything before the others are left to the model
LEAST_TO_JUDGE = 12  # trials before an objective may be called dead
# The hypervolume's corner lies this share of the front's range below its nadir, taking turns by trial number. At 0.1 alone
# what extends the front beyond its own nadir counts nothing, so an early front around the knee confirms itself; a wide
# corner alone spends trials on ends that hardly trade off (both measured in benchmarks/search/RESULTS.md).
MARGINS = (0.1, 1.0)


@dataclass(frozen=True, eq=False)
class Observations:
    """Scored trials: points (n, D), values (n, T) to be made large, their standard errors (n, T).

    A standard error that is NaN or 0 means "unknown". A trial with a NaN among its values (a failed merge) teaches
    nothing but is not proposed again.
    """

    weights: Floats
    values: Floats
    stderrs: Floats


@dataclass(frozen=True, eq=False)
class PosteriorFront:
    """The trials to ship: non-dominated by posterior mean, which a lucky score does not fool.

    `indices` point into the observations, best first objective first. `mean` and `sd` (n, T) are for all observations
    (NaN where a trial had no score): sd is what matters between trials. `total_sd` adds what scoring all of them on the
    same items cannot average out: the error of a score on fresh items. `probability` (n,) is the chance to be
    non-dominated under independent errors. `dead` (T,) marks objectives that nothing done to the weights moves: their
    scores differ by noise alone, and they have no say in who dominates whom.
    """

    indices: tuple[int, ...]
    mean: Floats
    sd: Floats
    total_sd: Floats
    probability: Floats
    dead: Mask


def observations(weights: ArrayLike, values: ArrayLike, stderrs: ArrayLike | None = None) -> Observations:
    """Observations from tables (n, D), (n, T) and (n, T) or nothing. Raises ValueError when lengths differ."""
    points = np.atleast_2d(np.asarray(weights, dtype=float))
    table = np.atleast_2d(np.asarray(values, dtype=float))
    errors = np.zeros_like(table) if stderrs is None else np.atleast_2d(np.asarray(stderrs, dtype=float))
    if len(points) != len(table) or errors.shape != table.shape:
        raise ValueError(f"{len(points)} points, values {table.shape} and standard errors {errors.shape} do not match")
    return Observations(points, table, np.nan_to_num(np.abs(errors), posinf=0.0))


class SimplexGP:
    """Proposes weights for `members` (K names) that are expected to push the front of `num_objectives` benchmarks out.

    scale      the sum of a row of weights: (1, 1) for a plain average, (0.3, 3) to search it (weights act on deltas)
    bounds     range per member, else (0, scale[1]); a negative lower bound allows negative weights
    frozen     weights that are fixed
    max_nonzero  at most so many members in one row
    gram       (K, K) inner products of the members' deltas: distances between merges instead of between weights
    floors     (T,) reference point of the hypervolume, NaN for "from the front"; merges below a floor are worth nothing
    groups     G rows of weights; knobs: ranges of E method parameters, appended to the point
    prior_mean predicted values (n, T) of points (n, D), known without scoring; calibrated per objective
    exact      by column of the objectives, a function from points (n, D) to their values (n,), to be made large, that nobody has to
               guess: what a merge costs. No GP learns these columns and no draw moves them; floors of theirs are kept by
               every proposal, as far as the rules allow
    opening    members alone first (None: up to 16 of them), and how many sparse mixtures after that (None: 1, or 4); the
               members end early when the soup beats the first PATIENCE of them at everything

    Points are (D,), D = G K + E, thus simply the K weights without groups and knobs. Raises ValueError when the rules
    contradict each other.
    """

    def __init__(
        self,
        members: Sequence[str],
        num_objectives: int,
        *,
        seed: int,
        scale: tuple[float, float] = (1.0, 1.0),
        bounds: Mapping[str, tuple[float, float]] | None = None,
        frozen: Mapping[str, float] | None = None,
        max_nonzero: int | None = None,
        gram: ArrayLike | None = None,
        floors: ArrayLike | None = None,
        groups: int = 1,
        knobs: Sequence[tuple[float, float]] = (),
        prior_mean: PriorMean | None = None,
        exact: Exact | None = None,
        opening: tuple[bool | None, int | None] = (None, None),
    ):
        self.domain = weight_domain(
            members, scale=scale, bounds=bounds, frozen=frozen, max_nonzero=max_nonzero, groups=groups, knobs=knobs
        )
        self.num_objectives, self.seed, self.floors = num_objectives, seed, floors
        self.margins, self.reaches, self.opening = MARGINS, REACHES, opening
        self._model = _Model(self.domain, None if gram is None else np.asarray(gram, dtype=float), prior_mean, exact or {})

    def ask(self, observed: Observations | None, pending: ArrayLike = (), number: int = 0) -> Floats:
        """The next point (D,) to score, given scored trials, points (p, D) still in flight, and the trial's number.

        Never a point that is already observed or pending. The opening design comes first, less what is known of it.
        """
        domain = self.domain
        waiting = np.asarray(pending, dtype=float).reshape(-1, domain.size)
        known = waiting if observed is None else np.concatenate([observed.weights, waiting])
        first = distinct(self._opening(observed), known)
        first = first[self._affordable(first)]
        if len(first):
            return first[0]
        rng = np.random.default_rng([self.seed, number])
        scored = None if observed is None else _complete(observed)
        if scored is None or len(scored.values) < 3:
            return _fresh(domain, rng, known)
        self._model.fit(scored)
        return self._best(scored, waiting[-MOST_PENDING:], known, rng, self.margins[number % len(self.margins)])

    def believe(self, prior_mean: PriorMean | None) -> None:
        """Another prior mean from the next fit on: what is known without scoring may grow with the search."""
        self._model.believe(prior_mean)

    def front(self, observed: Observations) -> PosteriorFront:
        """What to ship, and how sure that is; see `PosteriorFront`. Raises ValueError without a complete trial."""
        complete = ~np.isnan(observed.values).any(axis=1)
        rows = np.flatnonzero(complete)
        if not rows.size:
            raise ValueError("no trial has all its scores, so there is no front")
        mean, sd = np.full_like(observed.values, np.nan), np.full_like(observed.values, np.nan)
        self._model.fit(_complete(observed))
        mean[rows], sd[rows] = self._model.predict(observed.weights[rows])
        total_sd = np.sqrt(sd**2 + self._model.common_noise * observed.stderrs**2)
        dead = self._model.dead(_complete(observed))
        chosen = np.flatnonzero(non_dominated(mean[:, ~dead]))
        chosen = chosen[np.argsort(-mean[chosen, 0], kind="stable")]
        chance = probability_non_dominated(mean[:, ~dead], sd[:, ~dead], seed=self.seed)
        return PosteriorFront(tuple(int(index) for index in chosen), mean, sd, total_sd, chance, dead)

    def fit(self, observed: Observations) -> None:
        """Fit the model to the trials of `observed` that have all their scores; `predict` and `draw` speak of the last fit."""
        self._model.fit(_complete(observed))

    def predict(self, points: Floats) -> tuple[Floats, Floats]:
        """Posterior mean and standard deviation, each (n, T), of points (n, D)."""
        return self._model.predict(points)

    def draw(self, points: Floats, rng: np.random.Generator, count: int) -> Floats:
        """Joint posterior draws (count, n, T) at points (n, D)."""
        return self._model.draw(points, rng, count)

    # ------------------------------------------------------------ choosing

    def _opening(self, observed: Observations | None) -> Floats:
        """The opening design (n, D). Once the soup has beaten the first PATIENCE members at everything, good merges lie inside
        the hull and further members alone would tell little: then the rest of them is left out."""
        members_first, num_sparse = self.opening
        points = opening(self.domain, np.random.default_rng(self.seed), num_sparse, members_first)
        if observed is None:
            return points
        members = alone(self.domain, np.random.default_rng(self.seed))
        scores = [_values_at(observed, point) for point in (points[0], *members[:PATIENCE])]
        if any(score is None for score in scores) or not all((score <= scores[0]).all() for score in scores[1:]):
            return points
        return distinct(points, members[PATIENCE:])

    def _best(
        self, scored: Observations, waiting: Floats, known: Floats, rng: np.random.Generator, margin: float
    ) -> Floats:
        alive = ~self._model.dead(scored)
        points = scored.weights[self._affordable(scored.weights)]
        points = points if len(points) else scored.weights
        mean, sd = (table[:, alive] for table in self._model.predict(points))
        front = points[non_dominated(mean)]
        corner = reference_point(mean, self._guessed_floors()[alive], margin)
        baseline = np.concatenate([points[contenders(mean, sd, rng, MOST_KNOWN)], waiting])
        num_global = int(NUM_CANDIDATES * GLOBAL_SHARE)
        wide = [scattered(self.domain, rng, num_global), around(self.domain, rng, front, NUM_CANDIDATES - num_global)]
        if self._model.exact:
            wide.append(thinned(self.domain, rng, np.concatenate([front, *wide]), NUM_THINNED))
        candidates = self._within(distinct(np.concatenate(wide), known))
        if not len(candidates):
            return _fresh(self.domain, rng, known)
        gains = self._gains(baseline, candidates, corner, alive, rng)
        for reach in self.reaches:
            best = candidates[np.argsort(-gains, kind="stable")[:NUM_BEST]]
            near = [around(self.domain, rng, best, NUM_REFINED, reach=reach)]
            if self._model.exact:
                near.append(thinned(self.domain, rng, np.concatenate([best, *near]), NUM_THINNED // 2))
            candidates = self._within(distinct(np.concatenate([best, *near]), known))
            gains = self._gains(baseline, candidates, corner, alive, rng)
        return candidates[int(np.argmax(gains))]

    def _guessed_floors(self) -> Floats:
        """Floors (T,) of what has to be scored, NaN elsewhere: those of exact columns are kept outright and need no corner."""
        lowest = np.full(self.num_objectives, np.nan) if self.floors is None else np.array(self.floors, dtype=float)
        lowest[list(self._model.exact)] = np.nan
        return lowest

    def _missing(self, points: Floats) -> Floats:
        """How far (n,) points are below the floors of exact columns, as shares of these floors, the worst of them; 0 where none is."""
        found = np.zeros(len(points))
        lowest = np.full(self.num_objectives, np.nan) if self.floors is None else np.asarray(self.floors, dtype=float)
        for column, value in self._model.exact.items():
            if not np.isnan(lowest[column]):
                found = np.maximum(found, (lowest[column] - value(points)) / max(abs(lowest[column]), CLOSE))
        return found

    def _affordable(self, points: Floats) -> Mask:
        return self._missing(points) <= 0.0

    def _within(self, candidates: Floats) -> Floats:
        """Those that keep the floors of exact columns; the nearest to that where none does."""
        missing = self._missing(candidates)
        return candidates[missing <= missing.min()] if len(candidates) else candidates

    def _gains(self, baseline: Floats, candidates: Floats, corner: Floats, alive: Mask, rng: np.random.Generator) -> Floats:
        """Expected gain (M,); where no draw gains anything, a small optimistic score that still ranks."""
        draws = self._model.draw(np.concatenate([baseline, candidates]), rng, NUM_DRAWS)[:, :, alive]
        if self._model.exact:  # members and shares of right answers have nothing to do with one another: each in the front's own reach
            reach = draws.mean(axis=0).max(axis=0) - corner
            draws, corner = (draws - corner) / np.where(reach > 0, reach, 1.0), np.zeros_like(corner)
        gains = expected_gains(draws[:, : len(baseline)], draws[:, len(baseline) :], corner, rng)
        if gains.max() > 0:
            return gains
        optimistic = draws[:, len(baseline) :].max(axis=0)
        return (optimistic - corner).min(axis=1) - 1e9


class _Model:
    """One LinkedGP per objective on the same features, none for `exact` ones; remembers the last fit so that a batch is fitted once."""

    def __init__(self, domain: WeightDomain, gram: Floats | None, prior_mean: PriorMean | None, exact: Exact):
        members = domain.num_members
        if gram is not None and gram.shape != (members, members):
            raise ValueError(f"gram must be ({members}, {members}) for {members} members, got {gram.shape}")
        metric = np.eye(members) if gram is None else gram_root(gram)
        self.features = Features(metric, domain.groups, domain.knob_low, domain.knob_high, ard=gram is None)
        self.prior_mean, self.exact = prior_mean, dict(exact)
        self._fitted: bytes | None = None

    def believe(self, prior_mean: PriorMean | None) -> None:
        self.prior_mean, self._fitted = prior_mean, None

    def fit(self, scored: Observations) -> None:
        key = b"".join(array.tobytes() for array in (scored.weights, scored.values, scored.stderrs))
        if key == self._fitted:
            return
        self._guessed = [t for t in range(scored.values.shape[1]) if t not in self.exact]
        errors, values = _floored(scored.stderrs)[:, self._guessed], scored.values[:, self._guessed]
        prior = self._prior(scored.weights)
        self._slopes = np.array([_slope(prior[:, t], values[:, t]) for t in range(prior.shape[1])])
        rest = values - prior * self._slopes
        self._gps = [
            LinkedGP(self.features).fit(scored.weights, rest[:, t], errors[:, t]) for t in range(rest.shape[1])
        ]
        self._fitted = key

    def predict(self, points: Floats) -> tuple[Floats, Floats]:
        """Posterior mean and sd, each (n, T)."""
        pairs = [gp.predict(points) for gp in self._gps]
        mean = np.stack([mean for mean, _ in pairs], axis=1) + self._prior(points) * self._slopes
        known = {column: value(points) for column, value in self.exact.items()}
        return self._joined(mean, known), self._joined(np.stack([sd for _, sd in pairs], axis=1), dict.fromkeys(known, 0.0))

    def dead(self, scored: Observations) -> Mask:
        """(T,) True for an objective whose scores spread no more than their standard errors say *and* which no trial
        predicts of another: a benchmark at chance, whose luck would promote bad merges. Two objectives stay at least, one of
        them no exact one.

        The spread alone would not do: where trials share items their differences are surer than their standard errors.
        """
        values, errors = scored.values[:, self._guessed], _floored(scored.stderrs)[:, self._guessed]
        explained = np.array([gp.explained() for gp in self._gps])
        if len(values) < LEAST_TO_JUDGE or (errors == 0).any():
            return np.zeros(scored.values.shape[1], dtype=bool)
        within = (((values - values.mean(axis=0)) / errors) ** 2).sum(axis=0) < chi2.ppf(0.99, len(values) - 1)
        dead, least = within & (explained <= 0.0), max(2 - len(self.exact), 1)
        if (~dead).sum() < min(least, len(dead)):
            dead[np.argsort(-explained, kind="stable")[:least]] = False
        return self._joined(dead, dict.fromkeys(self.exact, False))

    @property
    def common_noise(self) -> Floats:
        """Per objective (T,), see `WeightGP.common_noise`."""
        return self._joined(np.array([gp.common_noise for gp in self._gps]), dict.fromkeys(self.exact, 0.0))

    def draw(self, points: Floats, rng: np.random.Generator, count: int) -> Floats:
        """Joint draws (count, n, T)."""
        drawn = [gp.draw(points, rng.standard_normal((len(points), count))).T for gp in self._gps]
        return self._joined(np.stack(drawn, axis=2) + self._prior(points) * self._slopes, {column: value(points) for column, value in self.exact.items()})

    def _prior(self, points: Floats) -> Floats:
        """(n, T) without the exact columns."""
        if self.prior_mean is None:
            return np.zeros((len(points), len(self._guessed)))
        return np.asarray(self.prior_mean(points), dtype=float).reshape(len(points), -1)[:, self._guessed]

    def _joined(self, guessed: np.ndarray, known: Mapping[int, object]) -> np.ndarray:
        """`guessed` (..., T - E) with the E `known` columns where they belong, (..., T)."""
        if not known:
            return guessed
        table = np.empty((*guessed.shape[:-1], guessed.shape[-1] + len(known)), dtype=guessed.dtype)
        table[..., self._guessed] = guessed
        for column, values in known.items():
            table[..., column] = values
        return table


def posterior_front(proposer: SimplexGP, observed: Observations) -> PosteriorFront:
    """The trials of `observed` to ship by the model of `proposer`; the same as `proposer.front(observed)`."""
    return proposer.front(observed)


def _values_at(observed: Observations, point: Floats) -> Floats | None:
    """What `point` (D,) scored (T,), None where it has not."""
    there = (np.abs(observed.weights - point).max(axis=1) <= CLOSE) & ~np.isnan(observed.values).any(axis=1)
    return observed.values[there][0] if there.any() else None


def _complete(observed: Observations) -> Observations:
    rows = ~np.isnan(observed.values).any(axis=1)
    return Observations(observed.weights[rows], observed.values[rows], observed.stderrs[rows])


def _floored(stderrs: Floats) -> Floats:
    """Standard errors with a floor of a third of their median: 200 right out of 200 is luck, not certainty."""
    floor = [np.median(column[column > 0]) / 3 if (column > 0).any() else 0.0 for column in stderrs.T]
    return np.maximum(stderrs, floor)


def _slope(prior: Floats, values: Floats) -> float:
    """Ridge slope of values on the prior mean, drawn towards 1; the GP takes the level. 0 for a constant prior."""
    centred, target = prior - prior.mean(), values - values.mean()
    power = float(centred @ centred)
    if power == 0.0:
        return 0.0
    weight = 0.3 * power / len(prior)
    return max(0.0, float((centred @ target + weight) / (power + weight)))


def _fresh(domain: WeightDomain, rng: np.random.Generator, known: Floats) -> Floats:
    """A sparse random point that is not `known`."""
    for _ in range(100):
        points = distinct(scattered(domain, rng, 16), known)
        if len(points):
            return points[0]
    raise ValueError("every allowed point has been proposed already; widen the bounds or stop the search")
