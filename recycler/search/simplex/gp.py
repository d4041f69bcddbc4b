"""Gaussian process on merge weights, one objective, with a known noise per trial.

    Features   points (n, D) -> coordinates in which the kernel measures distances
    WeightGP   fit, predict, draw: exact regression, gradients of the marginal likelihood

A fit takes a second or less at a thousand trials. The kernel on features, after scaling the values
to mean 0 and standard deviation 1, is

    k(x, x') = s^2 M(|shared(x) - shared(x')|_l)
             + s_g^2 / G sum_g M(|row_g(x) - row_g(x')| / l_g)
             + v <lin(x), lin(x')> + c

with M the Matern-5/2 function (Rasmussen and Williams 2006, eq. 4.17). The linear term says that a
merge scores about like the weighted average of its members, plus a multiple of the merge's own
squared length: to second order, and with one curvature for all directions, the loss at sum w_i d_i
is sum w_i L_i less c/2 (sum w_i |d_i|^2 - |sum w_i d_i|^2) where weights sum to 1. The other terms
are the gain or loss of merging itself.

Equation numbers at the end of lines are those of Rasmussen and Williams 2006, "Gaussian Processes
for Machine Learning". Their K with noise is `kernel` here, L `root`, y `targets`, K(X_*, X) `cross`
and v = L^-1 k_* `half`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, solve_triangular
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.optimize import minimize

Floats = NDArray[np.float64]

JITTER = 1e-6  # on the diagonal, in units of the values' variance
CONSTANT = 1.0  # prior variance of the level, same units
# hyperparameters are learned from at most this number of trials; predictions use all of them
MAX_FIT_POINTS = 160
ROOT5 = 5.0**0.5


@dataclass(frozen=True, slots=True)
class Prior:
    """Normal prior on one log hyperparameter."""

    mean: float
    sd: float


# Weakly informative, set a priori for weights of order 1: a log-lengthscale around ln(sqrt(D)/2),
# unit signal.
SIGNAL = Prior(0.0, 1.0)
LINEAR = Prior(-1.0, 1.5)
NOISE = Prior(-0.3, 0.7)
EXCESS = Prior(-7.0, 1.5)
GROUP_LENGTH, GROUP_SIGNAL = Prior(0.0, 1.0), Prior(-1.0, 1.0)


@dataclass(frozen=True)
class Features:
    """Points (n, D), D = G K + E, seen the way the kernel sees them.

    `metric` (K, R) maps a row of weights to coordinates in which distance means distance between
    merges: the identity, or a root of the deltas' Gram matrix (see `gram_root`). `extra_low`,
    `extra_high` (E,) scale method knobs to [0, 1].
    """

    metric: Floats
    groups: int
    extra_low: Floats
    extra_high: Floats
    ard: bool

    def shared(self, points: Floats) -> Floats:
        """(n, R + E): the mean row of weights in the metric, and the knobs."""
        mean = self._rows(points).mean(axis=1)
        return np.concatenate([mean @ self.metric, self._knobs(points)], axis=1)

    def rows(self, points: Floats) -> Floats:
        """Each group's row in the metric (G, n, R).

        Empty (0, n, 1) where one row holds for every tensor.
        """
        if self.groups == 1:
            return np.zeros((0, len(points), 1))
        return np.swapaxes(self._rows(points) @ self.metric, 0, 1)

    def linear(self, points: Floats) -> Floats:
        """Features (n, L) whose inner products are the linear kernel.

        Mean row, its squared length in the metric, knobs, and with groups their deviations from the
        mean row.
        """
        rows = self._rows(points)
        mean = rows.mean(axis=1)
        length = ((mean @ self.metric) ** 2).sum(axis=1, keepdims=True)
        features = [mean, length, self._knobs(points)]
        if self.groups > 1:
            deviations = (rows - mean[:, None]).reshape(len(points), -1)
            features.append(deviations / self.groups**0.5)
        return np.concatenate(features, axis=1)

    def lengthscale_index(self, num_shared: int) -> NDArray[np.intp]:
        """Index of the lengthscale that each shared feature takes.

        Its own (ARD), or one for the weights and one per knob.
        """
        if self.ard:
            return np.arange(num_shared)
        num_coordinates = self.metric.shape[1]
        of_knobs = 1 + np.arange(num_shared - num_coordinates)
        return np.concatenate([np.zeros(num_coordinates, int), of_knobs])

    def _rows(self, points: Floats) -> Floats:
        members = self.metric.shape[0]
        return points[:, : self.groups * members].reshape(len(points), self.groups, members)

    def _knobs(self, points: Floats) -> Floats:
        """(n, E): the knobs scaled to [0, 1]."""
        num_weights = self.groups * self.metric.shape[0]
        return (points[:, num_weights:] - self.extra_low) / (self.extra_high - self.extra_low)


def gram_root(gram: Floats) -> Floats:
    """Coordinates (K, R) with |(w - w') root|^2 = (w - w')' gram (w - w'), up to a scale.

    `gram` (K, K) holds the inner products of the members' deltas, so near-duplicate members
    coincide and one lengthscale is enough. Scaled so that members lie sqrt(2) apart in root mean
    square, as the simplex' vertices do. Raises ValueError when `gram` is not a square symmetric
    matrix of finite numbers.
    """
    gram = np.asarray(gram, dtype=float)
    if (
        gram.ndim != 2
        or gram.shape[0] != gram.shape[1]
        or not np.isfinite(gram).all()
        or not np.allclose(gram, gram.T)
    ):
        raise ValueError(
            "gram must be a finite symmetric (K, K) matrix of the deltas' inner products, got "
            f"{gram.shape}"
        )
    size, vectors = np.linalg.eigh(gram)
    keep = size > max(size.max(), 0.0) * 1e-6
    norms = np.diag(gram)
    apart = (norms[:, None] + norms - 2 * gram)[np.triu_indices(len(gram), 1)]
    unit = apart.mean() / 2 if apart.size and apart.mean() > 0 else 1.0
    return vectors[:, keep] * np.sqrt(size[keep] / unit) if keep.any() else np.eye(len(gram))


class WeightGP:
    """Exact GP for one objective.

    `fit` first; then `predict` and `draw` speak in the objective's own unit.
    """

    def __init__(self, features: Features):
        self.features = features

    def fit(
        self, points: Floats, values: Floats, stderrs: Floats, most: int = MAX_FIT_POINTS
    ) -> WeightGP:
        """Learn from points (n, D), values (n,) and standard errors (n,), 0 where unknown.

        Hyperparameters come from at most `most` trials.

        `evidence` is then the log posterior density of the hyperparameters, up to a constant, over
        the values of the trials `chosen` for them.

        Noise variance of a trial is f stderr^2 + e: f near 1 is learned because items shared by all
        trials move all scores together (then f < 1), e takes what standard errors do not know. The
        fit is deterministic.
        """
        self.mean = float(values.mean())
        self.unit = float(values.std()) or 1.0
        self.points, self.targets = points, (values - self.mean) / self.unit
        self.variances = (stderrs / self.unit) ** 2
        num_shared = self.features.shared(points[:1]).shape[1]
        self._scale_of = self.features.lengthscale_index(num_shared)
        self.chosen = _spread_subset(self.targets, most)
        self.theta, self.evidence = self._learn()
        self._factorise()
        return self

    # ------------------------------------------------------------ asking

    def mean_at(self, points: Floats) -> Floats:
        """Posterior mean (n,) of the true objective."""
        cross = self._kernel(points, self.points)
        return cross @ self._alpha * self.unit + self.mean  # eq. 2.25

    def predict(self, points: Floats) -> tuple[Floats, Floats]:
        """Posterior mean (n,) and standard deviation (n,) of the true objective, without noise."""
        cross = self._kernel(points, self.points)
        half = solve_triangular(self._root, cross.T, lower=True, check_finite=False)
        mean = cross @ self._alpha * self.unit + self.mean  # eq. 2.25
        variance = self._prior_variance(points) - (half**2).sum(axis=0)  # eq. 2.26
        return mean, np.sqrt(np.maximum(variance, 1e-12)) * self.unit

    def draw(self, points: Floats, normals: Floats) -> Floats:
        """Joint posterior draws (n, S) of the true objective from standard normals (n, S)."""
        cross = self._kernel(points, self.points)
        half = solve_triangular(self._root, cross.T, lower=True, check_finite=False)
        covariance = self._kernel(points, points) - half.T @ half  # eq. 2.24
        mean = (cross @ self._alpha)[:, None] * self.unit + self.mean  # eq. 2.23
        return mean + _root(covariance) @ normals * self.unit  # appendix A.2

    @property
    def common_noise(self) -> float:
        """Share of a trial's noise variance that all trials have in common, 0 to 1.

        They answer the same items.
        """
        _, (_, _, factor, _), _ = self._unpack(self.theta)
        return float(np.clip(1.0 - factor, 0.0, 1.0))

    def explained(self) -> float:
        """Share of the trials' variance that the other trials predict.

        1 - (leave-one-out squared error) / variance: at most 1, negative where the mean of the
        others would have predicted better.
        """
        inverse, _ = dpotri(self._root, lower=1)
        residuals = self._alpha / np.diag(inverse)  # eq. 5.12
        return float(1.0 - np.mean(residuals**2))

    # ------------------------------------------------------------ learning

    def _priors(self) -> list[Prior]:
        num_shared = len(self._scale_of)
        scales = int(self._scale_of.max()) + 1
        length = Prior(0.0, 1.0)
        if self.features.ard:
            length = Prior(float(np.log(0.5 * np.sqrt(max(num_shared, 2)))), 1.0)
        priors = [length] * scales + [SIGNAL, LINEAR, NOISE, EXCESS]
        if self.features.groups > 1:
            priors += [GROUP_LENGTH, GROUP_SIGNAL]
        return priors

    def _learn(self) -> tuple[Floats, float]:
        """Maximum a posteriori log hyperparameters by L-BFGS on the `chosen` trials."""
        priors = self._priors()
        start = np.array([prior.mean for prior in priors])
        table = np.array([[prior.mean, prior.sd] for prior in priors])
        problem = _Evidence(self, self.chosen, table)
        bounds = [(prior.mean - 4 * prior.sd, prior.mean + 4 * prior.sd) for prior in priors]
        found = minimize(
            problem,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": 40, "maxfun": 60},
        )
        if not np.isfinite(found.fun):
            return start, -np.inf
        return found.x, -float(found.fun) - len(self.chosen) * np.log(self.unit)

    # ------------------------------------------------------------ kernel

    def _unpack(self, theta: Floats) -> tuple[Floats, Floats, Floats]:
        """Hyperparameters from their logarithms `theta`.

        Lengthscales per shared feature; signal, linear, noise factor, excess; group length and
        signal.
        """
        scales = int(self._scale_of.max()) + 1
        return (
            np.exp(theta[:scales])[self._scale_of],
            np.exp(theta[scales : scales + 4]),
            np.exp(theta[scales + 4 :]),
        )

    def _kernel(self, left: Floats, right: Floats) -> Floats:
        lengths, (signal, linear, _, _), group = self._unpack(self.theta)
        features = self.features
        distances = _squared(features.shared(left) / lengths, features.shared(right) / lengths)
        kernel = signal * _matern(distances)
        kernel += linear * (features.linear(left) @ features.linear(right).T) + CONSTANT
        for one, other in zip(features.rows(left), features.rows(right), strict=True):
            kernel += group[1] / features.groups * _matern(_squared(one, other) / group[0] ** 2)
        return kernel

    def _prior_variance(self, points: Floats) -> Floats:
        _, (signal, linear, _, _), group = self._unpack(self.theta)
        total = signal + linear * (self.features.linear(points) ** 2).sum(axis=1) + CONSTANT
        return total + (group[1] if len(group) else 0.0)

    def _factorise(self) -> None:
        _, (_, _, factor, excess), _ = self._unpack(self.theta)
        kernel = self._kernel(self.points, self.points)
        kernel[np.diag_indices_from(kernel)] += self.variances * factor + excess + JITTER
        self._root = _root(kernel)  # algorithm 2.1, line 2
        self._alpha = cho_solve((self._root, True), self.targets, check_finite=False)  # line 3


class _Evidence:
    """Negative log marginal likelihood plus priors, with its gradient.

    A function of the log hyperparameters. For a lengthscale the sum over pairs in the gradient is
    rearranged so that no (n, n, D) array is built.
    """

    def __init__(self, gp: WeightGP, chosen: NDArray[np.intp], priors: Floats):
        points, features = gp.points[chosen], gp.features
        self.gp, self.priors = gp, priors
        self.targets, self.variances = gp.targets[chosen], gp.variances[chosen]
        self.shared = features.shared(points)
        self.linear = features.linear(points) @ features.linear(points).T
        self.rows = np.array([_squared(row, row) for row in features.rows(points)])

    def __call__(self, theta: Floats) -> tuple[float, Floats]:
        lengths, (signal, linear, factor, excess), group = self.gp._unpack(theta)
        scaled = self.shared / lengths
        smooth, slope = _matern_and_slope(_squared(scaled, scaled))
        noise = self.variances * factor
        kernel = signal * smooth + linear * self.linear + CONSTANT
        if len(group):
            row_smooth, row_slope = _matern_and_slope(self.rows / group[0] ** 2)
            kernel += group[1] * row_smooth.mean(axis=0)
        kernel[np.diag_indices_from(kernel)] += noise + excess + JITTER
        root, failed = dpotrf(kernel, lower=1, clean=1)
        if failed:
            return np.inf, np.zeros_like(theta)
        inverse, _ = dpotri(root, lower=1)
        inverse = inverse + np.tril(inverse, -1).T
        alpha = inverse @ self.targets
        pull = np.outer(alpha, alpha) - inverse  # alpha alpha' - K^-1 of eq. 5.9
        weight = signal * pull * slope
        spread = 2 * (weight.sum(axis=1) @ scaled**2 - ((weight @ scaled) * scaled).sum(axis=0))
        gradient = [*np.bincount(self.gp._scale_of, weights=spread)]
        gradient += [signal * (pull * smooth).sum(), linear * (pull * self.linear).sum()]
        gradient += [np.diag(pull) @ noise, excess * np.trace(pull)]
        if len(group):
            distances = self.rows / group[0] ** 2
            gradient += [group[1] * (pull * (row_slope * distances).mean(axis=0)).sum()]
            gradient += [group[1] * (pull * row_smooth.mean(axis=0)).sum()]
        deviation = (theta - self.priors[:, 0]) / self.priors[:, 1]
        likelihood = 0.5 * self.targets @ alpha + np.log(np.diag(root)).sum()  # eq. 5.8
        value = likelihood + 0.5 * (deviation**2).sum()
        slope_of_prior = deviation / self.priors[:, 1]
        return float(value), -0.5 * np.array(gradient) + slope_of_prior  # eq. 5.9


def _squared(left: Floats, right: Floats) -> Floats:
    """Squared distances (n, m) between rows."""
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1) - 2 * left @ right.T
    return np.maximum(squares, 0.0)


def _matern(squared: Floats) -> Floats:
    distance = ROOT5 * np.sqrt(squared)
    return (1 + distance + distance**2 / 3) * np.exp(-distance)  # eq. 4.17


def _matern_and_slope(squared: Floats) -> tuple[Floats, Floats]:
    """Matern-5/2 of a squared distance r^2, and its slope s in the log lengthscale.

    d M / d ln(l) = s r^2 for r = |x| / l.
    """
    distance = ROOT5 * np.sqrt(squared)
    decay = np.exp(-distance)
    return (1 + distance + distance**2 / 3) * decay, 5 / 3 * (1 + distance) * decay


def _root(covariance: Floats) -> Floats:
    """Lower Cholesky factor, with the jitter that it needs; else a diagonal root."""
    jitter = 0.0
    for _ in range(8):
        root, failed = dpotrf(covariance + jitter * np.eye(len(covariance)), lower=1, clean=1)
        if not failed:
            return root
        jitter = max(1e-10, jitter * 10)
    return np.diag(np.sqrt(np.maximum(np.diag(covariance), 1e-12)))


def _spread_subset(targets: Floats, size: int) -> NDArray[np.intp]:
    """At most `size` indices: the best half by value, the rest evenly over ranks.

    The front depends on the best.
    """
    if len(targets) <= size:
        return np.arange(len(targets))
    order = np.argsort(-targets, kind="stable")
    rest = order[size // 2 :]
    even = rest[np.linspace(0, len(rest) - 1, size - size // 2).astype(int)]
    return np.sort(np.concatenate([order[: size // 2], even]))
