"""Linked Gaussian process: an objective on the scale on which it is smooth.

That scale is its own values, or the logarithm of their distance above a floor. An answer is right
when each of its tokens is, so its probability is about exp(-loss), and the loss is smooth in the
weights: near its best merge it is a quadratic, which the kernel knows, where the score itself is a
bump with flat ground around it, which no stationary kernel fits well. The evidence of the trials
decides between the objective's own scale and LINKS, by the likelihood of the values with the
Jacobian of the map (Snelson, Rasmussen and Ghahramani 2004, "Warped Gaussian processes", eq. 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recycler.search.simplex.gp import MAX_FIT_POINTS, Features, Floats, WeightGP

# distances of the floor below the lowest score, as shares of the scores' range; the score itself
# is always tried
LINKS = (1.0, 0.3, 0.1)
MAX_CHOICE_POINTS = 80  # the link is chosen on at most so many trials
# nothing is believed further above the best score than this share of the range: the inverse is an
# exponential
BEYOND = 1.0
NODES, SHARES = np.polynomial.hermite_e.hermegauss(9)
SHARES = SHARES / SHARES.sum()


@dataclass(frozen=True, slots=True)
class Link:
    """Map z = log(1 + (y - low) / depth), or z = y where `depth` is infinite.

    `high` is the largest y that the inverse returns.
    """

    low: float
    depth: float
    high: float

    @property
    def is_identity(self) -> bool:
        return bool(np.isinf(self.depth))

    def forward(self, values: Floats) -> Floats:
        return values if self.is_identity else np.log1p((values - self.low) / self.depth)

    def slope(self, values: Floats) -> Floats:
        """dz / dy, which also takes a small standard error there."""
        return np.ones_like(values) if self.is_identity else 1.0 / (values - self.low + self.depth)

    def back(self, levels: Floats) -> Floats:
        if self.is_identity:
            return levels
        return self.low + self.depth * np.expm1(
            np.minimum(levels, np.log1p((self.high - self.low) / self.depth))
        )


class LinkedGP:
    """A `WeightGP` behind the link that the trials ask for.

    `fit` first; all else speaks in the objective's own unit.
    """

    def __init__(self, features: Features, links: Sequence[float] = LINKS):
        self.features, self.links = features, links

    def fit(self, points: Floats, values: Floats, stderrs: Floats) -> LinkedGP:
        """Learn from points (n, D), values (n,) and standard errors (n,), 0 where unknown.

        The fit is deterministic.

        A standard error is carried to the link's scale by the slope at what the plain process makes
        of the trial, not at the score itself: a score that is low by bad luck would count for
        little, one that is high by good luck for much.
        """
        low, reach = float(values.min()), float(np.ptp(values))
        links = [
            Link(low, share * reach, low + (1.0 + BEYOND) * reach)
            for share in self.links
            if reach > 0
        ]
        plain = WeightGP(self.features).fit(points, values, stderrs, most=MAX_CHOICE_POINTS)
        likely = np.maximum(plain.mean_at(points), low)

        def fitted(link: Link, most: int) -> WeightGP:
            return WeightGP(self.features).fit(
                points, link.forward(values), stderrs * link.slope(likely), most=most
            )

        found = [
            (Link(low, np.inf, low), plain),
            *((link, fitted(link, MAX_CHOICE_POINTS)) for link in links),
        ]
        self.link, self._gp = max(
            found,
            key=lambda pair: pair[1].evidence + np.log(pair[0].slope(values[pair[1].chosen])).sum(),
        )
        if len(values) > MAX_CHOICE_POINTS:
            self._gp = fitted(self.link, MAX_FIT_POINTS)
        return self

    def predict(self, points: Floats) -> tuple[Floats, Floats]:
        """Posterior mean (n,) and standard deviation (n,) of the true objective, without noise."""
        mean, sd = self._gp.predict(points)
        if self.link.is_identity:
            return mean, sd
        values = self.link.back(mean + sd * NODES[:, None])
        mean = SHARES @ values
        return mean, np.sqrt(SHARES @ (values - mean) ** 2)

    def median(self, points: Floats) -> Floats:
        """Posterior median (n,) of the true objective: cheaper than its mean, in the same order."""
        return self.link.back(self._gp.mean_at(points))

    def draw(self, points: Floats, normals: Floats) -> Floats:
        """Joint posterior draws (n, S) of the true objective from standard normals (n, S)."""
        return self.link.back(self._gp.draw(points, normals))

    @property
    def common_noise(self) -> float:
        """See `WeightGP.common_noise`."""
        return self._gp.common_noise

    def explained(self) -> float:
        """See `WeightGP.explained`: the share of the variance on the link's scale."""
        return self._gp.explained()
