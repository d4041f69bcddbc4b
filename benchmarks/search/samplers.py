"""Every way to propose weights that the bench compares, behind ask and tell.

Lists of names at the end.

Stock samplers search a box; the softmax map (logits in -3 .. 3) turned out their best in
`search.md`. All start from the uniform soup and the members alone, as the simplex GP does; where
weights may be negative the box is the weights' own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import optuna

from benchmarks.search.loss_model import LossModel
from recycler.search.simplex.gp import Features, gram_root
from recycler.search.simplex.simplex_gp import SimplexGP
from recycler.search.simplex.surrogate import observations

from .families import NUM_OBJECTIVES, Family
from .outside import BoTorch, MergekitEvolve, Mergenetic

optuna.logging.set_verbosity(optuna.logging.ERROR)
LOGIT = 3.0
LEAN = (False, 4)  # no member alone, four sparse mixtures


class Simplex:
    """recycler's own, with the Gram matrix of the deltas as a job has it; `without` names what an
    ablation takes away.
    """

    def __init__(
        self,
        family: Family,
        seed: int,
        without: str = "",
        ensemble: bool = False,
        opening: tuple[bool | None, int | None] = (None, None),
        slopes: bool = False,
    ):
        names = [f"m{index:02d}" for index in range(family.num_members)]
        bounds = dict.fromkeys(names, (family.lowest, 1.0)) if family.lowest < 0 else None
        gram = None if without == "gram" else family.gram
        self.proposer = SimplexGP(
            names,
            NUM_OBJECTIVES,
            seed=seed,
            bounds=bounds,
            gram=gram,
            prior_mean=family.ensemble if ensemble else None,
            opening=opening,
        )
        ablate(self.proposer, without)
        self.rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.slopes_of, self.slopes = family.slopes if slopes else None, []
        self.losses = LossModel(gram_root(family.gram))

    def ask(self, flying: Sequence[np.ndarray] = ()) -> np.ndarray:
        observed = observations(*map(np.array, zip(*self.rows, strict=True))) if self.rows else None
        return self.proposer.ask(
            observed, np.array(flying) if len(flying) else (), number=len(self.rows) + len(flying)
        )

    def tell(self, weights: np.ndarray, value: np.ndarray, stderr: np.ndarray) -> None:
        self.rows.append((weights, value, stderr))
        if self.slopes_of:
            self.slopes.append(self.slopes_of(weights))
        if len(self.slopes) > 2:
            losses, gradients = map(np.array, zip(*self.slopes, strict=True))
            self.losses.fit(np.array([weights for weights, _, _ in self.rows]), losses, gradients)
            self.proposer.set_prior_mean(self.losses.chances)


def ablate(proposer: SimplexGP, without: str) -> None:
    """Take one ingredient away.

    length (of the merge, as a feature), linear (kernel), link (scale of the objective), corners
    (two reference points in turn), ahead (points from the predicted front), rounds (of
    refinement), patience (to stop scoring vertices).
    """
    features = proposer._model.features
    if without == "length":
        proposer._model.features = _Shortened(**vars(features))
    elif without == "linear":
        proposer._model.features = _Unlinear(**vars(features))
    elif without == "link":
        proposer._model.links = ()
    elif without == "ahead":
        proposer.settings = replace(proposer.settings, ahead=())
    elif without == "patience":
        proposer.settings = replace(proposer.settings, patience=len(proposer.domain.members))
    elif without == "corners":
        proposer.settings = replace(proposer.settings, margins=(0.1,))
    elif without == "rounds":
        proposer.settings = replace(proposer.settings, reaches=(0.4,))
    elif without not in ("", "gram"):
        raise ValueError(f"nothing to take away is called {without!r}")


class _Shortened(Features):
    def linear(self, points: np.ndarray) -> np.ndarray:
        return np.delete(super().linear(points), self.metric.shape[0], axis=1)


class _Unlinear(Features):
    def linear(self, points: np.ndarray) -> np.ndarray:
        return np.zeros((len(points), 1))


class Stock:
    """An Optuna sampler on softmax logits, told the warm start as finished trials so that every
    sampler can use it.
    """

    def __init__(self, family: Family, sampler: optuna.samplers.BaseSampler):
        self.family, self.size = family, family.num_members
        self.study = optuna.create_study(directions=["maximize"] * NUM_OBJECTIVES, sampler=sampler)
        self.space = {
            f"x{index:02d}": optuna.distributions.FloatDistribution(0, 1)
            for index in range(self.size)
        }
        self.start = [np.full(self.size, 1 / self.size)] + (
            list(np.eye(self.size)) if self.size <= 16 else []
        )
        self.waiting: optuna.Trial | None = None

    def ask(self) -> np.ndarray:
        if self.start:
            return self.start.pop(0)
        self.waiting = self.study.ask(self.space)
        logits = (2 * np.array([self.waiting.params[name] for name in self.space]) - 1) * LOGIT
        weights = np.exp(logits - logits.max())
        weights /= weights.sum()
        if self.family.lowest < 0:
            weights = weights * (1 - self.family.lowest * self.size) + self.family.lowest
        return weights

    def tell(self, weights: np.ndarray, value: np.ndarray, stderr: np.ndarray) -> None:
        if self.waiting is not None:
            self.study.tell(self.waiting, list(map(float, value)))
            self.waiting = None
            return
        shifted = (weights - self.family.lowest) / (1 - self.family.lowest * self.size)
        logits = np.log(np.clip(shifted, 1e-4, 1))
        place = np.clip((logits - logits.max() + LOGIT) / (2 * LOGIT), 0, 1)
        params = dict(zip(self.space, map(float, place), strict=True))
        self.study.add_trial(
            optuna.create_trial(
                params=params, distributions=self.space, values=list(map(float, value))
            )
        )


class RandomSparse:
    """Dirichlet mixtures of random concentration after the warm start: the baseline that is hard to
    be ashamed of.
    """

    def __init__(self, family: Family, seed: int):
        self.family, self.rng, self.size = family, np.random.default_rng(seed), family.num_members
        self.start = [np.full(self.size, 1 / self.size)] + (
            list(np.eye(self.size)) if self.size <= 16 else []
        )

    def ask(self) -> np.ndarray:
        if self.start:
            return self.start.pop(0)
        weights = self.rng.dirichlet(np.full(self.size, self.rng.choice((0.2, 0.5, 1.0, 2.0))))
        low = self.family.lowest
        return weights if low >= 0 else weights * (1 - low * self.size * 0.5) + low * 0.5

    def tell(self, weights: np.ndarray, value: np.ndarray, stderr: np.ndarray) -> None:
        pass


def _startup(family: Family) -> int:
    return (family.num_members + 1 if family.num_members <= 16 else 1) + 4


SAMPLERS: dict[str, Callable[[Family, int], object]] = {
    "simplex_gp": Simplex,
    **{
        f"simplex_gp-{part}": partial(Simplex, without=part)
        for part in ("gram", "length", "linear", "link", "corners", "ahead", "rounds", "patience")
    },
    "simplex_gp+lean": partial(Simplex, opening=LEAN),
    "simplex_gp+slopes": partial(Simplex, opening=LEAN, slopes=True),
    "simplex_gp+ensemble": partial(Simplex, ensemble=True),
    "tpe": lambda family, seed: Stock(
        family, optuna.samplers.TPESampler(seed=seed, n_startup_trials=_startup(family))
    ),
    "nsga2": lambda family, seed: Stock(
        family, optuna.samplers.NSGAIISampler(seed=seed, population_size=20)
    ),
    "gpsampler": lambda family, seed: Stock(
        family, optuna.samplers.GPSampler(seed=seed, n_startup_trials=_startup(family))
    ),
    "random": RandomSparse,
    "botorch": BoTorch,
    "mergenetic": Mergenetic,
    "mergekit_evolve": MergekitEvolve,
}
