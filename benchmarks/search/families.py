"""Pools whose truth is known exactly: what each merge really scores, so a front's true hypervolume
can be computed.

A pool places K members in a space of latent directions; a merge is their weighted sum, as with real
deltas. Each objective is a smooth function of the merge, scored on 200 Bernoulli items anew for
every trial (the worst case: no items in common). `gram` is what a sampler may look at: inner
products of the members' deltas, irrelevant directions included.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

NUM_ITEMS = 200
NUM_OBJECTIVES = int(os.environ.get("BENCH_OBJECTIVES", "3"))


@dataclass(frozen=True)
class Family:
    """One pool: `truth` maps weights (n, K) to true scores (n, T) in [0, 1]."""

    name: str
    num_members: int
    truth: Callable[[np.ndarray], np.ndarray]
    gram: np.ndarray
    lowest: float = 0.0  # smallest weight allowed; negative where the family needs it
    counted: tuple[int, ...] = tuple(
        range(NUM_OBJECTIVES)
    )  # the objectives that a front's true worth is measured on
    ensemble: Callable[[np.ndarray], np.ndarray] | None = (
        None  # what the members' averaged answers would score (n, T), no merge needed
    )
    slopes: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = (
        None  # losses (T,) and gradients (T, K) of a merge (K,)
    )
    noise: (
        Callable[[np.ndarray, np.random.Generator, int, bool], tuple[np.ndarray, np.ndarray]] | None
    ) = None

    def score(
        self,
        weights: np.ndarray,
        rng: np.random.Generator,
        num_items: int = NUM_ITEMS,
        controls: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Observed scores (T,) and their standard errors of one merge (K,), on `num_items` items a
        task.

        With `controls` what the members did on all items helps to tell the score; without common
        items it cannot.
        """
        if self.noise is not None:
            return self.noise(weights, rng, num_items, controls)
        chance = np.clip(self.truth(weights[None])[0], 0.0, 1.0)
        value = rng.binomial(num_items, chance) / num_items
        return value, np.sqrt(np.clip(value * (1 - value), 0.02, None) / num_items)


def _latent(num_members: int, rng: np.random.Generator, dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Members' relevant coordinates (K, dims), and the Gram matrix of them with as many irrelevant
    ones.
    """
    places = rng.standard_normal((num_members, dims)) / dims**0.5
    hidden = rng.standard_normal((num_members, 2 * num_members)) / (2 * num_members) ** 0.5
    return places, places @ places.T + 0.5 * hidden @ hidden.T


def bumps(num_members: int, seed: int) -> Family:
    """Smooth bumps around optima inside the hull: accuracy falls like a Gaussian of the distance to
    a good mixture.
    """
    rng = np.random.default_rng([1, seed, num_members])
    places, gram = _latent(num_members, rng, min(num_members, 12))
    goals = rng.dirichlet(np.full(num_members, 0.5), NUM_OBJECTIVES) @ places
    width = 0.8 * np.sqrt(((places[:, None] - goals) ** 2).sum(axis=2).mean())

    def truth(weights: np.ndarray) -> np.ndarray:
        far = (((weights @ places)[:, None] - goals) ** 2).sum(axis=2)
        return 0.1 + 0.7 * np.exp(-far / (2 * (0.6 * width) ** 2))

    return Family("bumps", num_members, truth, gram)


def weight_bumps(num_members: int, seed: int) -> Family:
    """Bumps in the weights themselves: no latent space to find, each member is a direction of its
    own.
    """
    rng = np.random.default_rng([2, seed, num_members])
    goals = rng.dirichlet(np.full(num_members, 0.4), NUM_OBJECTIVES)
    width = rng.uniform(0.25, 0.4, NUM_OBJECTIVES)

    def truth(weights: np.ndarray) -> np.ndarray:
        far = ((weights[:, None] - goals) ** 2).sum(axis=2)
        return 0.15 + 0.65 * np.exp(-far / (2 * width**2))

    return Family("weight_bumps", num_members, truth, np.eye(num_members))


def near_linear(num_members: int, seed: int) -> Family:
    """A merge scores the weighted average of its members, and a little more for company."""
    rng = np.random.default_rng([3, seed, num_members])
    skills = rng.uniform(0.2, 0.7, (num_members, NUM_OBJECTIVES))
    _, gram = _latent(num_members, rng, num_members)

    def truth(weights: np.ndarray) -> np.ndarray:
        return weights @ skills + 0.15 * (1 - (weights**2).sum(axis=1, keepdims=True)) * (
            weights @ skills
        )

    return Family("near_linear", num_members, truth, gram)


def plateaus(num_members: int, seed: int) -> Family:
    """Sharp shelves: a benchmark is passed once enough of the right deltas is in, and more helps
    nothing.
    """
    rng = np.random.default_rng([4, seed, num_members])
    places, gram = _latent(num_members, rng, 6)
    axes = rng.standard_normal((NUM_OBJECTIVES, 6))
    reach = (places @ axes.T).max(axis=0)

    def truth(weights: np.ndarray) -> np.ndarray:
        return 0.1 + 0.7 / (1 + np.exp(-12 * ((weights @ places @ axes.T) / reach - 0.45)))

    return Family("plateaus", num_members, truth, gram)


def ridges(num_members: int, seed: int) -> Family:
    """A few members must be subtracted to stay on the ridge of good merges; weights go down to
    -0.3.
    """
    rng = np.random.default_rng([5, seed, num_members])
    places, gram = _latent(num_members, rng, min(num_members, 8))
    mixtures = rng.dirichlet(np.full(num_members, 0.5), NUM_OBJECTIVES)
    worst = rng.permutation(num_members)[: max(2, num_members // 4)]
    mixtures[:, worst] = -rng.uniform(0.05, 0.25, (NUM_OBJECTIVES, len(worst)))
    goals = mixtures / mixtures.sum(axis=1, keepdims=True).clip(0.3) @ places
    width = 0.5 * np.sqrt(((places[:, None] - goals) ** 2).sum(axis=2).mean())

    def truth(weights: np.ndarray) -> np.ndarray:
        far = (((weights @ places)[:, None] - goals) ** 2).sum(axis=2)
        return 0.1 + 0.7 * np.exp(-far / (2 * width**2))

    return Family("ridges", num_members, truth, gram, lowest=-0.3)


def dominated(num_members: int, seed: int) -> Family:
    """One strong member dominates all others; only small doses of a few others help."""
    rng = np.random.default_rng([6, seed, num_members])
    places, gram = _latent(num_members, rng, 8)
    star = rng.integers(num_members)
    dose = 0.25 * rng.dirichlet(np.full(num_members, 0.3), NUM_OBJECTIVES) @ places
    goals = 0.75 * places[star] + dose

    def truth(weights: np.ndarray) -> np.ndarray:
        far = (((weights @ places)[:, None] - goals) ** 2).sum(axis=2)
        return 0.1 + 0.6 * np.exp(-far / (2 * 0.5**2))

    return Family("dominated", num_members, truth, gram)


def dead(num_members: int, seed: int) -> Family:
    """`bumps` whose third benchmark is at chance for every merge: pure noise as an objective, and
    worth nothing.
    """
    alive = bumps(num_members, seed + 1000)

    def truth(weights: np.ndarray) -> np.ndarray:
        scores = alive.truth(weights).copy()
        scores[:, 2] = 0.25 + 1e-3 * (scores[:, 2] - 0.4)
        return scores

    return Family("dead", num_members, truth, alive.gram, counted=(0, 1))


FAMILIES: dict[str, Callable[[int, int], Family]] = {
    "bumps": bumps,
    "weight_bumps": weight_bumps,
    "near_linear": near_linear,
    "plateaus": plateaus,
    "ridges": ridges,
    "dominated": dominated,
    "dead": dead,
}
