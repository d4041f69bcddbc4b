"""Means with honest standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def clustered_mean(values: Sequence[float], clusters: Sequence[str], weights: Sequence[float] | None = None) -> tuple[float, float]:
    """Weighted mean sum(w x) / sum(w) and its standard error with clusters as the units that were sampled.

    Linearised (sandwich) variance of a ratio, with the small-sample factor m / (m - 1) for m clusters: Miller 2024,
    arXiv:2411.00640, eq. 4; with one item a cluster and equal weights it is the textbook s / sqrt(n). One cluster alone
    says nothing about its spread: the error is then the value's range bound 0.5 for want of better, never 0.

    values, clusters, weights: (n,). Raises ValueError when empty or when weights sum to 0.
    """
    x = np.asarray(values, dtype=float)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=float)
    if x.size == 0 or w.sum() == 0:
        raise ValueError("the mean of no items is not defined")
    mean = float((w * x).sum() / w.sum())
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    residuals = np.bincount(index, weights=w * (x - mean))
    m = residuals.size
    if m < 2:
        return mean, 0.5
    return mean, math.sqrt(m / (m - 1) * float((residuals**2).sum())) / float(w.sum())
