"""Surrogate: one Gaussian process per objective on the same features.

Observations   scored points
Surrogate      fit, predict, median, draw over all objectives; exact ones pass through
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import chi2

from recycler.objectives.pareto import Floats, Mask
from recycler.search.simplex.domain import CLOSE, WeightDomain
from recycler.search.simplex.gp import Features, gram_root
from recycler.search.simplex.linked_gp import LINKS, LinkedGP

PriorMean = Callable[[Floats], Floats]
Exact = Mapping[int, Callable[[Floats], Floats]]

DEPTHS = 5.0  # 15 searches of the bench that were kept reach 4.8
MIN_TO_JUDGE = 12  # trials before an objective may be called dead
# a value beyond is that of a broken merge: infinite, or with squares and products that are
LARGEST = 1e30


@dataclass(frozen=True, eq=False)
class Observations:
    """Scored trials: points (n, D), values (n, T), maximised, and standard errors (n, T).

    A standard error that is NaN or 0 means "unknown". A trial with a NaN among its values (a failed
    merge), or with one that is infinite or beyond LARGEST (a broken one), teaches nothing but is
    not proposed again.
    """

    weights: Floats
    values: Floats
    stderrs: Floats

    def complete(self) -> Observations:
        """The trials that have all their scores."""
        rows = self.scored
        return Observations(self.weights[rows], self.values[rows], self.stderrs[rows])

    @property
    def scored(self) -> Mask:
        """(n,) True where a trial has all its scores."""
        return np.all(np.abs(self.values) < LARGEST, axis=1)  # a NaN compares false

    def values_at(self, point: Floats) -> Floats | None:
        """Scores (T,) of `point` (D,), None where it has none."""
        there = (np.abs(self.weights - point).max(axis=1) <= CLOSE) & self.scored
        return self.values[there][0] if there.any() else None


def observations(
    weights: ArrayLike, values: ArrayLike, stderrs: ArrayLike | None = None
) -> Observations:
    """Observations from tables (n, D), (n, T) and (n, T) or nothing.

    Raises ValueError when lengths differ.
    """
    points = np.atleast_2d(np.asarray(weights, dtype=float))
    table = np.atleast_2d(np.asarray(values, dtype=float))
    errors = (
        np.zeros_like(table) if stderrs is None else np.atleast_2d(np.asarray(stderrs, dtype=float))
    )
    if len(points) != len(table) or errors.shape != table.shape:
        raise ValueError(
            f"{len(points)} points, values {table.shape} and standard errors {errors.shape} do "
            "not match"
        )
    return Observations(points, table, np.nan_to_num(np.abs(errors), posinf=0.0))


class Surrogate:
    """One LinkedGP per objective on the same features, none for `exact` ones.

    The last fit is remembered, so that a batch is fitted once.
    """

    def __init__(
        self, domain: WeightDomain, gram: Floats | None, prior_mean: PriorMean | None, exact: Exact
    ):
        members = domain.num_members
        if gram is not None and gram.shape != (members, members):
            raise ValueError(
                f"gram must be ({members}, {members}) for {members} members, got {gram.shape}"
            )
        metric = np.eye(members) if gram is None else gram_root(gram)
        self.features = Features(
            metric, domain.groups, domain.knob_low, domain.knob_high, ard=gram is None
        )
        self.prior_mean, self.exact, self.links = prior_mean, dict(exact), LINKS
        self._fitted: bytes | None = None

    def set_prior_mean(self, prior_mean: PriorMean | None) -> None:
        self.prior_mean, self._fitted = prior_mean, None

    def fit(self, scored: Observations) -> None:
        key = b"".join(array.tobytes() for array in (scored.weights, scored.values, scored.stderrs))
        if key == self._fitted:
            return
        self._guessed = [t for t in range(scored.values.shape[1]) if t not in self.exact]
        errors, values = (
            _floored(scored.stderrs)[:, self._guessed],
            _caught(scored.values[:, self._guessed]),
        )
        prior = self._prior(scored.weights)
        self._slopes = np.array([_slope(prior[:, t], values[:, t]) for t in range(prior.shape[1])])
        rest = values - prior * self._slopes
        self._gps = [
            LinkedGP(self.features, self.links).fit(scored.weights, rest[:, t], errors[:, t])
            for t in range(rest.shape[1])
        ]
        self._fitted = key

    def predict(self, points: Floats) -> tuple[Floats, Floats]:
        """Posterior mean and sd, each (n, T)."""
        pairs = [gp.predict(points) for gp in self._gps]
        mean = np.stack([mean for mean, _ in pairs], axis=1) + self._prior(points) * self._slopes
        known = self.known(points)
        return self._joined(mean, known), self._joined(
            np.stack([sd for _, sd in pairs], axis=1), dict.fromkeys(known, 0.0)
        )

    def median(self, points: Floats) -> Floats:
        """Posterior median (n, T): the mean's order at a fraction of its cost."""
        found = (
            np.stack([gp.median(points) for gp in self._gps], axis=1)
            + self._prior(points) * self._slopes
        )
        return self._joined(found, self.known(points))

    def known(self, points: Floats) -> dict[int, Floats]:
        """Values (n,) of the exact columns at points (n, D).

        Raises ValueError that names a column whose function gives no such thing.
        """
        found = {
            column: np.asarray(value(points), dtype=float) for column, value in self.exact.items()
        }
        for column, values in found.items():
            if values.shape != (len(points),) or not np.isfinite(values).all():
                raise ValueError(
                    f"exact of objective {column} must give {len(points)} finite numbers for "
                    f"{len(points)} points, got {values.shape}: {values.ravel()[:3]}"
                )
        return found

    def dead(self, scored: Observations) -> Mask:
        """True (T,) for uninformative objectives, which no weights move beyond their noise.

        The scores spread no more than their standard errors say *and* no trial predicts another: a
        benchmark at chance, whose luck would promote bad merges. Two objectives stay at least, one
        of them not exact. The spread is not enough: where trials share items their differences are
        surer than their standard errors.
        """
        values, errors = scored.values[:, self._guessed], _floored(scored.stderrs)[:, self._guessed]
        explained = np.array([gp.explained() for gp in self._gps])
        if len(values) < MIN_TO_JUDGE or (errors == 0).any():
            return np.zeros(scored.values.shape[1], dtype=bool)
        within = (((values - values.mean(axis=0)) / errors) ** 2).sum(axis=0) < chi2.ppf(
            0.99, len(values) - 1
        )
        dead, least = within & (explained <= 0.0), max(2 - len(self.exact), 1)
        if (~dead).sum() < min(least, len(dead)):
            dead[np.argsort(-explained, kind="stable")[:least]] = False
        return self._joined(dead, dict.fromkeys(self.exact, False))

    @property
    def common_noise(self) -> Floats:
        """Per objective (T,), see `WeightGP.common_noise`."""
        return self._joined(
            np.array([gp.common_noise for gp in self._gps]), dict.fromkeys(self.exact, 0.0)
        )

    def draw(self, points: Floats, rng: np.random.Generator, count: int) -> Floats:
        """Joint draws (count, n, T)."""
        drawn = [gp.draw(points, rng.standard_normal((len(points), count))).T for gp in self._gps]
        return self._joined(
            np.stack(drawn, axis=2) + self._prior(points) * self._slopes, self.known(points)
        )

    def _prior(self, points: Floats) -> Floats:
        """(n, T) without the exact columns."""
        if self.prior_mean is None:
            return np.zeros((len(points), len(self._guessed)))
        return np.asarray(self.prior_mean(points), dtype=float).reshape(len(points), -1)[
            :, self._guessed
        ]

    def _joined(self, guessed: np.ndarray, known: Mapping[int, object]) -> np.ndarray:
        """`guessed` (..., T - E) with the E `known` columns where they belong, (..., T)."""
        if not known:
            return guessed
        table = np.empty((*guessed.shape[:-1], guessed.shape[-1] + len(known)), dtype=guessed.dtype)
        table[..., self._guessed] = guessed
        for column, values in known.items():
            table[..., column] = values
        return table


def _floored(stderrs: Floats) -> Floats:
    """Standard errors with a floor of a third of their median.

    200 right out of 200 is luck, not certainty.
    """
    floor = [
        np.median(column[column > 0]) / 3 if (column > 0).any() else 0.0 for column in stderrs.T
    ]
    return np.maximum(stderrs, floor)


def _caught(values: Floats) -> Floats:
    """Values (n, T) with the worst ones raised to a limit below their column's median.

    The limit lies DEPTHS times the distance from the median to the best, or to the lower quartile,
    below the median. A merge that broke is bad; how bad (a perplexity of 1e6) shall not hide the
    differences among the good ones.
    """
    quarter, middle, best = np.quantile(values, (0.25, 0.5, 1.0), axis=0)
    reach = DEPTHS * np.maximum(best - middle, middle - quarter)
    return np.where(reach > 0, np.maximum(values, middle - reach), values)


def _slope(prior: Floats, values: Floats) -> float:
    """Ridge slope of values on the prior mean, shrunk towards 1; 0 for a constant prior.

    The GP takes the level.
    """
    centred, target = prior - prior.mean(), values - values.mean()
    power = float(centred @ centred)
    if power == 0.0:
        return 0.0
    weight = 0.3 * power / len(prior)
    return max(0.0, float((centred @ target + weight) / (power + weight)))
