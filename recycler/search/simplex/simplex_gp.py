"""`simplex_gp`: find the front of merges with few trials.

    opening design -> GP per objective -> points near the posterior front
    -> noisy expected hypervolume improvement

Gaussian processes live on the weights themselves. There is no map from a box to the simplex: a map
that suits one face distorts another, and duplicates dimensions. A proposal is a function of the
observations, the pending points, the trial's number and the seed, and of nothing else, so a killed
search that is started again proposes the same points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from recycler.objectives.blas import one_blas_thread
from recycler.objectives.pareto import (
    Floats,
    Mask,
    non_dominated,
    probability_non_dominated,
    reference_point,
)
from recycler.search.simplex.acquisition import contenders, expected_gains
from recycler.search.simplex.domain import CLOSE, Exhausted, weight_domain
from recycler.search.simplex.proposals import (
    GLOBAL_SHARE,
    opening,
    perturb,
    random_sparse,
    sparsify,
    unique,
    vertices,
)
from recycler.search.simplex.settings import SETTINGS, Settings
from recycler.search.simplex.surrogate import Exact, Observations, PriorMean, Surrogate


@dataclass(frozen=True, eq=False)
class PosteriorFront:
    """The trials to ship: non-dominated by posterior mean, and not by a lucky score.

    `indices` point into the observations, best first objective first. `mean` and `sd` (n, T) are
    for all observations (NaN where a trial had no score): sd is what matters between trials.
    `total_sd` adds what scoring all of them on the same items cannot average out: the error of a
    score on fresh items. `probability` (n,) is the chance to be non-dominated under independent
    errors. `dead` (T,) marks objectives that nothing done to the weights moves: their scores differ
    by noise alone, and they have no say in who dominates whom.
    """

    indices: tuple[int, ...]
    mean: Floats
    sd: Floats
    total_sd: Floats
    probability: Floats
    dead: Mask


class SimplexGP:
    """Propose weights that are expected to push the front out.

    Args:
        members: K names.
        num_objectives: T benchmarks.
        seed: of all random draws.
        scale: the sum of a row of weights: (1, 1) for a plain average, (0.3, 3) to search it
            (weights act on deltas).
        bounds: range per member, else (0, scale[1]); a negative lower bound allows negative
            weights.
        frozen: weights that are fixed.
        max_nonzero: number of members in one row at most.
        gram: (K, K) inner products of the members' deltas: distances between merges instead of
            between weights.
        floors: (T,) reference point of the hypervolume, NaN for "from the front"; merges below a
            floor are worth nothing.
        groups: G rows of weights.
        knobs: ranges of E method parameters, appended to the point.
        prior_mean: predicted values (n, T) of points (n, D), known without scoring; calibrated per
            objective.
        exact: by column of the objectives, a function from points (n, D) to their values (n,),
            maximised, that are known: the cost of a merge. No GP learns these columns and no draw
            moves them; every proposal keeps their floors, as far as the rules allow.
        opening: members first (None: up to 16 of them), and the number of sparse mixtures after
            that (None: 1, or 4). The members end early when the soup beats the first
            `settings.patience` of them at everything.
        settings: numbers that shape a proposal.

    Points are (D,), D = G K + E, thus simply the K weights without groups and knobs. Raises
    ValueError when the rules contradict each other.
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
        settings: Settings = SETTINGS,
    ):
        self.domain = weight_domain(
            members,
            scale=scale,
            bounds=bounds,
            frozen=frozen,
            max_nonzero=max_nonzero,
            groups=groups,
            knobs=knobs,
        )
        self.num_objectives, self.seed, self.floors = num_objectives, seed, floors
        self.opening, self.settings = opening, settings
        self._model = Surrogate(
            self.domain,
            None if gram is None else np.asarray(gram, dtype=float),
            prior_mean,
            exact or {},
        )

    @one_blas_thread
    def ask(
        self, observed: Observations | None, pending: ArrayLike = (), number: int = 0, skip: int = 0
    ) -> Floats:
        """Propose the next point (D,) to score.

        The arguments are the scored trials, points (p, D) still in flight, and the trial's number.
        A point that is observed or pending is never proposed. The opening design comes first, less
        what is known of it and less its next `skip` points, which others take at this moment.
        """
        domain = self.domain
        waiting = np.asarray(pending, dtype=float).reshape(-1, domain.size)
        known = waiting if observed is None else np.concatenate([observed.weights, waiting])
        first = unique(self._opening(observed), known)
        first = first[self._affordable(first)]
        if len(first) > skip:
            return first[skip]
        known = np.concatenate([known, first])
        rng = np.random.default_rng([self.seed, number])
        scored = None if observed is None else observed.complete()
        if scored is None or len(scored.values) < 3:
            return self._fresh(known, rng)
        self._model.fit(scored)
        margins = self.settings.margins
        waiting = waiting[-self.settings.max_pending :]
        return self._best(scored, waiting, known, rng, margins[number % len(margins)])

    def set_prior_mean(self, prior_mean: PriorMean | None) -> None:
        """Set another prior mean from the next fit on.

        Knowledge without scoring may grow with the search.
        """
        self._model.set_prior_mean(prior_mean)

    @one_blas_thread
    def front(self, observed: Observations) -> PosteriorFront:
        """Posterior front of the observations, with its uncertainty.

        Raises ValueError without a complete trial.
        """
        rows = np.flatnonzero(observed.scored)
        if not rows.size:
            raise ValueError("no trial has all its scores, so there is no front")
        mean, sd = np.full_like(observed.values, np.nan), np.full_like(observed.values, np.nan)
        scored = observed.complete()
        self._model.fit(scored)
        mean[rows], sd[rows] = self._model.predict(scored.weights)
        total_sd = np.sqrt(sd**2 + self._model.common_noise * observed.stderrs**2)
        dead = self._model.dead(scored)
        chosen = np.flatnonzero(non_dominated(mean[:, ~dead]))
        chosen = chosen[np.argsort(-mean[chosen, 0], kind="stable")]
        chance = probability_non_dominated(mean[:, ~dead], sd[:, ~dead], seed=self.seed)
        return PosteriorFront(
            tuple(int(index) for index in chosen), mean, sd, total_sd, chance, dead
        )

    @one_blas_thread
    def fit(self, observed: Observations) -> None:
        """Fit the model to the trials of `observed` that have all their scores.

        `predict` and `draw` use the last fit.
        """
        self._model.fit(observed.complete())

    @one_blas_thread
    def predict(self, points: Floats) -> tuple[Floats, Floats]:
        """Posterior mean and standard deviation, each (n, T), of points (n, D)."""
        return self._model.predict(points)

    @one_blas_thread
    def draw(self, points: Floats, rng: np.random.Generator, count: int) -> Floats:
        """Joint posterior draws (count, n, T) at points (n, D)."""
        return self._model.draw(points, rng, count)

    # ------------------------------------------------------------ choosing

    def _opening(self, observed: Observations | None) -> Floats:
        """Opening design (n, D).

        Once the soup has beaten the first `settings.patience` members at everything, good merges
        lie inside the hull and further vertices would tell little: then the design is the one
        without members.
        """
        members_first, num_sparse = self.opening
        points = opening(self.domain, np.random.default_rng(self.seed), num_sparse, members_first)
        if observed is None:
            return points
        members = vertices(self.domain, np.random.default_rng(self.seed))
        first = members[: self.settings.patience]
        soup = observed.values_at(points[0])
        if soup is None:
            return points
        for member in first:
            score = observed.values_at(member)
            if score is None or not (score <= soup).all():
                return points
        rng = np.random.default_rng(self.seed)
        return np.concatenate([first, opening(self.domain, rng, num_sparse, members_first=False)])

    def _best(
        self,
        scored: Observations,
        waiting: Floats,
        known: Floats,
        rng: np.random.Generator,
        margin: float,
    ) -> Floats:
        alive = ~self._model.dead(scored)
        points = scored.weights[self._affordable(scored.weights)]
        points = points if len(points) else scored.weights
        mean, sd = (table[:, alive] for table in self._model.predict(points))
        front = points[non_dominated(mean)]
        reference = reference_point(mean, self._guessed_floors()[alive], margin)
        baseline = np.concatenate(
            [points[contenders(mean, sd, rng, self.settings.max_known)], waiting]
        )
        num_global = int(self.settings.num_candidates * GLOBAL_SHARE)
        wide = [
            random_sparse(self.domain, rng, num_global),
            perturb(self.domain, rng, front, self.settings.num_candidates - num_global),
        ]
        wide.append(self._predicted_front(front, alive, rng))
        if self._model.exact:
            parents = np.concatenate([front, *wide])
            wide.append(sparsify(self.domain, rng, parents, self.settings.num_sparsified))
        candidates = self._within(unique(np.concatenate(wide), known))
        if not len(candidates):
            return self._fresh(known, rng)
        gains = self._gains(baseline, candidates, reference, alive, rng)
        for reach in self.settings.reaches:
            best = candidates[np.argsort(-gains, kind="stable")[: self.settings.num_best]]
            near = [perturb(self.domain, rng, best, self.settings.num_refined, reach=reach)]
            if self._model.exact:
                parents = np.concatenate([best, *near])
                near.append(sparsify(self.domain, rng, parents, self.settings.num_sparsified // 2))
            candidates = self._within(unique(np.concatenate([best, *near]), known))
            gains = self._gains(baseline, candidates, reference, alive, rng)
        return candidates[int(np.argmax(gains))]

    def _fresh(self, known: Floats, rng: np.random.Generator) -> Floats:
        """A sparse random point that is not `known`.

        It keeps the floors of exact columns where one of those drawn does.
        """
        for _ in range(100):
            points = random_sparse(self.domain, rng, self.settings.num_blind)
            # few members are a matter of luck among mixtures, and may be all that a floor allows
            if self._model.exact:
                points = np.concatenate(
                    [
                        points,
                        sparsify(self.domain, rng, points, self.settings.num_blind),
                        vertices(self.domain, rng),
                    ]
                )
            points = self._within(unique(points, known))
            if len(points):
                return points[0]
        raise Exhausted(
            "every allowed point has been proposed already; widen the bounds or stop the search"
        )

    def _predicted_front(self, points: Floats, alive: Mask, rng: np.random.Generator) -> Floats:
        """At most `max_ahead` points (n, D) on the front of the model's predictions.

        They are looked for from `points` on. The gain of a point is expensive and its median is
        cheap, so this reaches ends of the front that neighbours of trials do not.
        """
        found = self._model.median(points)[:, alive]
        for reach in self.settings.ahead:
            fresh = self._within(
                perturb(self.domain, rng, points, self.settings.num_ahead, reach=reach)
            )
            points, found = (
                np.concatenate([points, fresh]),
                np.concatenate([found, self._model.median(fresh)[:, alive]]),
            )
            kept = rng.permutation(np.flatnonzero(non_dominated(found)))[: self.settings.max_ahead]
            points, found = points[kept], found[kept]
        return points

    def _guessed_floors(self) -> Floats:
        """Floors (T,) of objectives that are scored, NaN elsewhere.

        Floors of exact columns are kept outright and need no reference point.
        """
        lowest = (
            np.full(self.num_objectives, np.nan)
            if self.floors is None
            else np.array(self.floors, dtype=float)
        )
        lowest[list(self._model.exact)] = np.nan
        return lowest

    def _missing(self, points: Floats) -> Floats:
        """Distance (n,) of points below the floors of exact columns, as shares of these floors.

        The worst of them; 0 where none is missed.
        """
        found = np.zeros(len(points))
        lowest = (
            np.full(self.num_objectives, np.nan)
            if self.floors is None
            else np.asarray(self.floors, dtype=float)
        )
        bounded = [column for column in self._model.exact if not np.isnan(lowest[column])]
        known = self._model.known(points) if bounded else {}
        for column in bounded:
            found = np.maximum(
                found, (lowest[column] - known[column]) / max(abs(lowest[column]), CLOSE)
            )
        return found

    def _affordable(self, points: Floats) -> Mask:
        return self._missing(points) <= 0.0

    def _within(self, candidates: Floats) -> Floats:
        """Points that keep the floors of exact columns; the nearest to that where none does."""
        missing = self._missing(candidates)
        return candidates[missing <= missing.min()] if len(candidates) else candidates

    def _gains(
        self,
        baseline: Floats,
        candidates: Floats,
        reference: Floats,
        alive: Mask,
        rng: np.random.Generator,
    ) -> Floats:
        """Expected gain (M,); an optimistic score that still ranks where no draw gains anything."""
        draws = self._model.draw(
            np.concatenate([baseline, candidates]), rng, self.settings.num_draws
        )[:, :, alive]
        # members and shares of right answers have nothing to do with one another: each in the
        # front's own reach
        if self._model.exact:
            reach = draws.mean(axis=0).max(axis=0) - reference
            draws, reference = (
                (draws - reference) / np.where(reach > 0, reach, 1.0),
                np.zeros_like(reference),
            )
        gains = expected_gains(draws[:, : len(baseline)], draws[:, len(baseline) :], reference, rng)
        if gains.max() > 0:
            return gains
        optimistic = draws[:, len(baseline) :].max(axis=0)
        return (optimistic - reference).min(axis=1) - 1e9
