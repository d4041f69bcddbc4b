"""Means with honest standard errors, and what may be said about two models on the same items.

Evaluation as an experiment: Miller 2024, "Adding Error Bars to Evals", arXiv:2411.00640.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z90 = 1.645  # 95 % quantile of the normal distribution: 90 % lie within so many standard deviations
Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution
_Z_POWER = {0.8: 0.8416212335729143, 0.9: 1.2815515655446004}
_MAX_SIGNS = 100  # clusters that a sign test counts; more are as good as certain
MDE_FACTOR = (
    Z95 + _Z_POWER[0.8]
)  # standard errors that a true difference must have to be found four times in five


def clustered_mean(
    values: Sequence[float] | NDArray[np.float64],
    clusters: Sequence[str],
    weights: Sequence[float] | NDArray[np.float64] | None = None,
    *,
    population_clusters: int | None = None,
) -> tuple[float, float]:
    """Weighted mean and its standard error, with clusters as the units sampled.

    The mean is sum(w x) / sum(w).

    Linearised (sandwich) variance of a ratio, with the small-sample factor m / (m - 1) for m
    clusters: Miller 2024, arXiv:2411.00640, eq. 4; with one item a cluster and equal weights it is
    the textbook s / sqrt(n). One cluster alone says nothing about its spread: the error is then the
    value's range bound 0.5 for want of better, never 0.

    `population_clusters` M: the m clusters were drawn without replacement from M, and the mean over
    those M is meant; the error shrinks by sqrt(1 - m / M) (finite population, Cochran 1977, eq.
    2.8).

    values, clusters, weights: (n,). Raises ValueError when empty or when weights sum to 0.
    """
    x = np.asarray(values, dtype=float)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=float)
    if x.size == 0 or w.sum() == 0:
        raise ValueError("the mean of no items is not defined")
    mean = float((w * x).sum() / w.sum())
    residuals = _cluster_sums(w * (x - mean), clusters)
    m = residuals.size
    shrink = (
        1.0 if population_clusters is None else math.sqrt(max(0.0, 1.0 - m / population_clusters))
    )
    if m < 2:
        return mean, 0.5 * shrink
    return mean, shrink * math.sqrt(m / (m - 1) * float((residuals**2).sum())) / float(w.sum())


def coverage(num_clusters: int) -> float:
    """Coverage of mean ± 1.96 standard errors over `num_clusters` clusters (Student's t).

    0.95 for many, 0.94 at 20, 0.88 at 5; less where clusters are skewed.
    """
    # loads scipy
    from scipy.stats import t as student

    return 1.0 - 2.0 * float(student.sf(Z95, num_clusters - 1)) if num_clusters > 1 else 0.0


def unseen_events_stderr(values: Sequence[float], num_clusters: int) -> float:
    """Least standard error of a mean of zeros and ones over n clusters; 0 for other values.

    A sample without a single success has no spread, and yet says little: its rate is taken as half
    an event in one item more (Jeffreys' prior; Brown, Cai & DasGupta 2001), so that 0 of 32 is 0.00
    with an error of 0.02 and not of nothing.
    """
    if not all(value in (0.0, 1.0) for value in values):
        return 0.0
    rate = 0.5 / (num_clusters + 1)
    return math.sqrt(rate * (1.0 - rate) / num_clusters)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """A minus B on common items.

    Mean, standard error (clusters as units), 95 % interval, two-sided p value, items.
    """

    difference: float
    stderr: float
    low: float
    high: float
    p_value: float
    n: int

    @property
    def distinguishable(self) -> bool:
        """True when the 95 % interval excludes 0."""
        return self.low > 0.0 or self.high < 0.0


def paired_difference(
    a: Mapping[Hashable, float],
    b: Mapping[Hashable, float],
    clusters: Mapping[Hashable, str] | None = None,
    weights: Mapping[Hashable, float] | None = None,
) -> PairedDifference:
    """Difference of two trials on the items that both answered; `a` and `b` map item to value.

    The interval uses Student's t with (clusters - 1) degrees of freedom. Where no cluster differs
    the other way its spread says little (none, where all differ alike): p is then at least the sign
    test's, 2 / 2^k for k clusters that differ, and the error what gives that p. So 2 of 2 is
    nothing, and 8 of 8 has p = 0.0078. Raises ValueError when they share no item.
    """
    # loads scipy
    from scipy.stats import t as student

    items = _common(a, b)
    values = [a[item] - b[item] for item in items]
    groups = [clusters[item] if clusters else str(item) for item in items]
    shares = [weights[item] for item in items] if weights else [1.0] * len(items)
    mean, stderr = clustered_mean(values, groups, shares)
    sums = _cluster_sums(np.asarray(shares, dtype=float) * np.asarray(values, dtype=float), groups)
    freedom, differing = max(1, sums.size - 1), int(np.count_nonzero(sums))
    p_value = (
        1.0
        if mean == 0.0
        else 0.0
        if stderr == 0.0
        else float(2 * student.sf(abs(mean) / stderr, freedom))
    )
    least = 2.0 * 0.5 ** min(differing, _MAX_SIGNS)
    if differing >= 2 and (sums.min() >= 0.0 or sums.max() <= 0.0) and p_value < least:
        p_value, stderr = least, abs(mean) / float(student.isf(least / 2, freedom))
    reach = float(student.ppf(0.975, freedom)) * stderr
    return PairedDifference(
        difference=mean,
        stderr=stderr,
        low=mean - reach,
        high=mean + reach,
        p_value=p_value,
        n=len(items),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """Items right for A only and for B only, with the exact two-sided McNemar p value.

    McNemar 1947; binomial, not chi-square.
    """

    a_only: tuple[Hashable, ...]
    b_only: tuple[Hashable, ...]
    both: int
    neither: int
    p_value: float

    @property
    def discordance(self) -> float:
        """Share of common items on which the two disagree."""
        total = len(self.a_only) + len(self.b_only) + self.both + self.neither
        return (len(self.a_only) + len(self.b_only)) / total


def mcnemar(a: Mapping[Hashable, float], b: Mapping[Hashable, float]) -> Flips:
    """Flips between two trials with values of 0 and 1 on common items.

    It takes items as independent: no clusters.

    Raises ValueError when they share no item or a value is neither 0 nor 1.
    """
    # loads scipy
    from scipy.stats import binomtest

    items = _common(a, b)
    if any(value not in (0.0, 1.0) for item in items for value in (a[item], b[item])):
        raise ValueError("McNemar's test needs values of 0 and 1; use paired_difference")
    a_only = tuple(item for item in items if a[item] > b[item])
    b_only = tuple(item for item in items if a[item] < b[item])
    flips = len(a_only) + len(b_only)
    both = sum(a[item] == b[item] == 1.0 for item in items)
    p_value = float(binomtest(len(a_only), flips).pvalue) if flips else 1.0
    return Flips(
        a_only=a_only, b_only=b_only, both=both, neither=len(items) - flips - both, p_value=p_value
    )


def bootstrap_means(
    matrix: NDArray[np.float64],
    clusters: Sequence[str],
    weights: Sequence[float] | None = None,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Means (draws, trials) in each of `draws` resamples of clusters.

    The clusters are the same for all trials.

    matrix: (trials, items) values. Differences between columns of one draw are paired, so they may
    be compared directly: the share of draws in which A beats B, or in which nobody dominates A.
    Cluster bootstrap: Field & Welsh 2007.
    """
    w = np.ones(matrix.shape[1]) if weights is None else np.asarray(weights, dtype=float)
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    m = int(index.max()) + 1
    sums = np.stack(
        [np.bincount(index, weights=w * row, minlength=m) for row in matrix]
    )  # (trials, m)
    sizes = np.bincount(index, weights=w, minlength=m)
    counts = (
        np.random.default_rng(seed).multinomial(m, np.full(m, 1.0 / m), size=draws).astype(float)
    )  # (draws, m)
    return (counts @ sums.T) / (counts @ sizes)[:, None]


def bootstrap_difference(
    a: Mapping[Hashable, float],
    b: Mapping[Hashable, float],
    clusters: Mapping[Hashable, str] | None = None,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Bootstrap of A minus B on common items: 2.5 % and 97.5 % quantiles, share above 0.

    The share is of draws with A above B, ties counted half.
    """
    items = _common(a, b)
    matrix = np.array([[a[item] for item in items], [b[item] for item in items]], dtype=float)
    means = bootstrap_means(
        matrix,
        [clusters[item] if clusters else str(item) for item in items],
        draws=draws,
        seed=seed,
    )
    gaps = means[:, 0] - means[:, 1]
    low, high = np.quantile(gaps, [0.025, 0.975])
    return float(low), float(high), float((gaps > 0).mean() + 0.5 * (gaps == 0).mean())


def probability_non_dominated(
    draws: NDArray[np.float64], directions: Sequence[int]
) -> NDArray[np.float64]:
    """Share of draws in which no other trial is at least as good everywhere and better somewhere:

    (trials,).

    draws: (draws, trials, objectives), one paired bootstrap for each objective; directions: +1 to
    maximise, -1 to minimise. A trial with NaN is dominated by definition.
    """
    values = draws * np.asarray(directions, dtype=float)
    free = np.zeros(values.shape[1])
    for draw in values:
        at_least = (draw[None, :, :] >= draw[:, None, :]).all(
            axis=2
        )  # [i, j]: j is at least as good as i everywhere
        better = (draw[None, :, :] > draw[:, None, :]).any(axis=2)
        free += ~(at_least & better).any(axis=1) & ~np.isnan(draw).any(axis=1)
    return free / len(values)


def minimal_detectable_difference(
    n: int, *, discordance: float = 0.15, power: float = 0.8
) -> float:
    """Smallest difference that a paired test at level 5 % detects with this power.

    On n independent items.

    d = (z_0.975 + z_power) sqrt((q - d^2) / n) for the discordance q, solved for d (Miller 2024,
    eq. 9; Connor 1987). n must be 1 or more, power 0.8 or 0.9.
    """
    factor = (Z95 + _Z_POWER[power]) ** 2 / n
    return math.sqrt(factor * discordance / (1.0 + factor))


def shrunken(values: Sequence[float], stderrs: Sequence[float]) -> NDArray[np.float64]:
    """Scores shrunk to their mean by their noise: expected scores on new items.

    The best of many is lucky (winner's curse).

    Empirical Bayes with a normal prior whose variance is var(values) - mean(stderr^2), at least 0
    (Efron & Morris 1973): with noise alone everything shrinks to the mean. (n,) in, (n,) out.
    """
    x, s2 = np.asarray(values, dtype=float), np.asarray(stderrs, dtype=float) ** 2
    if x.size < 3:
        return x.copy()
    spread = max(0.0, float(x.var(ddof=1) - s2.mean()))
    keep = np.divide(spread, spread + s2, out=np.zeros_like(s2), where=spread + s2 > 0)
    return x.mean() + keep * (x - x.mean())


def _cluster_sums(values: NDArray[np.float64], clusters: Sequence[str]) -> NDArray[np.float64]:
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    return np.bincount(index, weights=values).astype(np.float64, copy=False)


def _common(a: Mapping[Hashable, float], b: Mapping[Hashable, float]) -> list[Hashable]:
    items = [item for item in a if item in b]
    if not items:
        raise ValueError("the two trials have no item in common")
    return items
