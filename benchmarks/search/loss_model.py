"""What a few slopes tell of all merges: a quadratic model of losses over the weights, told values
and gradients.

A teacher-forced loss has a gradient by the K weights of a merge for the price of one pass back
(`recycler.engines.weight_slopes`), and between members that were tuned from one base it is close to
quadratic. So a handful of merges, none of them a member alone, predicts the loss of all others; as
the prior mean of a `SimplexGP` that saves scoring many members one by one. What that buys, and
where it buys nothing, is told in benchmarks/search/RESULTS.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

Floats = NDArray[np.float64]

FIRST, BEST = 6, 10  # merges whose gradients are used: the first, and those of the lowest losses
LEVEL, SLOPE = 10.0, 3.0  # prior variances, in units of the losses' own
CURVATURES = (0.1, 1.0, 10.0)
NOISES = (
    0.01,
    0.05,
    0.2,
)  # of a loss, for what is not quadratic; a gradient's is thrice that over the spread of the points


class LossModel:
    """Gaussian process with the kernel v0 + v1 z.z' + v2 (z.z')^2 on z = w @ metric, one per
    objective.

    `metric` (K, R) maps weights to coordinates of the merge: `gram_root` of the deltas' Gram
    matrix, or the identity. Curvature and noise are chosen by marginal likelihood
    among a few; with at most FIRST + BEST gradients the cost of a fit does not grow with the
    search.
    """

    def __init__(self, metric: Floats):
        self._metric, self._back = metric, np.linalg.pinv(metric)

    def fit(self, points: Floats, losses: Floats, gradients: Floats) -> LossModel:
        """Learn from points (n, K), losses (n, T) and their gradients (n, T, K) by the weights.

        Needs two points at least.
        """
        self._level, self._unit = losses.mean(axis=0), losses.std(axis=0) + 1e-12
        self._values = points @ self._metric
        chosen = np.unique(
            np.r_[
                np.arange(min(len(points), FIRST)),
                np.argsort(losses.sum(axis=1), kind="stable")[:BEST],
            ]
        )
        self._sloped = self._values[chosen]
        scaled = (losses - self._level) / self._unit
        slopes = np.einsum("ntk,rk->ntr", gradients[chosen], self._back) / self._unit[:, None]
        spread = max(float(self._values.std()) * self._values.shape[1] ** 0.5, 0.1)
        covariances = {
            curvature: _covariance(
                self._values, self._sloped, self._values, self._sloped, curvature
            )
            for curvature in CURVATURES
        }
        self._fits = [
            _best_fit(
                covariances,
                np.concatenate([scaled[:, t], slopes[:, t].ravel()]),
                len(points),
                spread,
            )
            for t in range(losses.shape[1])
        ]
        return self

    def losses(self, points: Floats) -> Floats:
        """Expected losses (n, T) of points (n, K)."""
        coordinates = points @ self._metric
        columns = [
            _covariance(coordinates, self._sloped[:0], self._values, self._sloped, fit.curvature)
            @ fit.alpha
            for fit in self._fits
        ]
        return np.stack(columns, axis=1) * self._unit + self._level

    def chances(self, points: Floats) -> Floats:
        """exp(-loss) (n, T): the usual chance of a right answer, which accuracies follow more
        evenly than losses.
        """
        return np.exp(-self.losses(points))


@dataclass(frozen=True, slots=True)
class _Fit:
    likelihood: float
    alpha: Floats
    curvature: float


def _best_fit(
    covariances: dict[float, Floats], targets: Floats, num_values: int, spread: float
) -> _Fit:
    best = None
    for curvature, covariance in covariances.items():
        for noise in NOISES:
            variances = np.r_[
                np.full(num_values, noise**2),
                np.full(len(targets) - num_values, (3 * noise / spread) ** 2),
            ]
            try:
                factor = cho_factor(
                    covariance + np.diag(variances + 1e-8), lower=True, check_finite=False
                )
            except LinAlgError:
                continue
            alpha = cho_solve(factor, targets, check_finite=False)
            likelihood = -0.5 * float(targets @ alpha) - float(np.log(np.diag(factor[0])).sum())
            if best is None or likelihood > best.likelihood:
                best = _Fit(likelihood, alpha, curvature)
    if best is None:
        raise ValueError("losses or gradients are not finite, or the points are all the same")
    return best


def _covariance(
    left: Floats, left_sloped: Floats, right: Floats, right_sloped: Floats, curvature: float
) -> Floats:
    """Of (values at `left`, gradients at `left_sloped`) with the same of the right:

    (n + m R, n' + m' R).
    """
    products, num_coordinates = left @ right.T, left.shape[1]
    values = LEVEL + SLOPE * products + curvature * products**2
    inner = left_sloped @ right_sloped.T
    crossed = 2 * curvature * np.einsum("jr,iq->irjq", right_sloped, left_sloped)
    slopes = (SLOPE + 2 * curvature * inner)[:, None, :, None] * np.eye(num_coordinates)[
        None, :, None, :
    ] + crossed
    above = np.concatenate([values, _of_slopes(left, right_sloped, curvature)], axis=1)
    below = np.concatenate(
        [
            _of_slopes(right, left_sloped, curvature).T,
            slopes.reshape(left_sloped.size, right_sloped.size),
        ],
        axis=1,
    )
    return np.concatenate([above, below])


def _of_slopes(points: Floats, sloped: Floats, curvature: float) -> Floats:
    """Of values at `points` (n, R) with gradients at `sloped` (m, R): (n, m R)."""
    products = points @ sloped.T
    return ((SLOPE + 2 * curvature * products)[:, :, None] * points[:, None, :]).reshape(
        len(points), sloped.size
    )
