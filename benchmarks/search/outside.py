"""Samplers of other people's libraries, behind the bench's ask and tell; imported only when one of
them is asked for.

    python -m pip install botorch pymoo==0.6.1.3 cma

botorch 0.18.1, gpytorch 1.15.2 and cma 4.5.0 were measured.

- `botorch`: qLogNEHVI, a `SingleTaskGP` per objective that is told the noise, on the weights
themselves with their sum as
  an equality constraint (measured in `search.md` as the best space for a GP). Other settings are
  BoTorch's defaults.
- `mergenetic`: its multi-objective runs are pymoo's NSGA-II (`NSGA2(pop_size,
eliminate_duplicates=True)`, every operator
  pymoo's default) on raw weights in the unit box, which mergekit then divides by their sum.
  mergenetic itself pins vLLM, mergekit and transformers of early 2025, so the same search is built
  here from the same pymoo (0.6.1.3).
- `mergekit_evolve`: pycma as `mergekit-evolve` calls it: `x0 = 1/K`, `sigma0 = 1/6`, no bounds,
default population, fitness
  the sum of the scores, weights |x| (x where weights may be negative) divided by their sum.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from recycler.errors import Problem, UsageError
from recycler.search.simplex.domain import weight_domain
from recycler.search.simplex.proposals import opening, random_sparse, unique

from .families import NUM_OBJECTIVES, Family

POPULATION = 25  # of mergenetic's examples (25, 10, 7), the one with the longest runs
NUM_SAMPLES = 32  # quasi-random draws of BoTorch's acquisition
NUM_RAW, NUM_RESTARTS = 256, 2


def library(name: str, install: str) -> ModuleType:
    """Module `name`, or a UsageError that says what to install. Raises UsageError."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            Problem(
                thing=f"library {install}",
                cause=f"this sampler needs it: {error}",
                remedy=f"python -m pip install {install}",
            )
        ) from error


class BoTorch:
    """qLogNEHVI on the simplex.

    Opens as `simplex_gp` does; its starting points are sparse mixtures and moved front points.
    """

    def __init__(self, family: Family, seed: int):
        self.torch = library("torch", "torch")
        for name in ("botorch.models", "botorch.fit", "botorch.optim", "gpytorch.mlls"):
            library(name, "botorch")
        self.low, self.size, self.seed = family.lowest, family.num_members, seed
        names = [f"m{index:02d}" for index in range(self.size)]
        self.domain = weight_domain(
            names, bounds=dict.fromkeys(names, (self.low, 1.0)) if self.low < 0 else None
        )
        self.start: Sequence[np.ndarray] = list(opening(self.domain, np.random.default_rng(seed)))
        self.rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def ask(self) -> np.ndarray:
        if len(self.start):
            return self.start.pop(0)
        torch, rng = self.torch, np.random.default_rng([self.seed, len(self.rows)])
        torch.manual_seed(int(rng.integers(2**31)))
        points, values, stderrs = (
            torch.tensor(np.array(column)) for column in zip(*self.rows, strict=True)
        )
        acquisition = self._acquisition(points, values, stderrs, int(rng.integers(2**31)))
        raw = torch.tensor(self._raw(rng, values.numpy())).unsqueeze(1)
        with torch.no_grad():
            best = raw[acquisition(raw).topk(NUM_RESTARTS).indices]
        found, _ = library("botorch.optim", "botorch").optimize_acqf(
            acquisition,
            q=1,
            num_restarts=NUM_RESTARTS,
            batch_initial_conditions=best,
            options={"maxiter": 50},
            bounds=self._bounds(),
            equality_constraints=[
                (torch.arange(self.size), torch.ones(self.size, dtype=torch.double), 1.0)
            ],
        )
        return self.domain.repair(found.detach().numpy())[0]

    def _acquisition(self, points, values, stderrs, seed: int):
        """qLogNEHVI over `points` (n, K), `values` and `stderrs` (n, T).

        The reference point is the one that BoTorch infers. One batch of T GPs, each with its own
        hyperparameters, as in a list of models but three times as fast.
        """
        models, transforms = (
            library("botorch.models", "botorch"),
            library("botorch.models.transforms.outcome", "botorch"),
        )
        box = library("botorch.models.transforms.input", "botorch").Normalize(
            self.size, bounds=self._bounds()
        )
        standard = transforms.Standardize(m=NUM_OBJECTIVES)
        model = models.SingleTaskGP(
            points, values, train_Yvar=stderrs**2, outcome_transform=standard, input_transform=box
        )
        likelihoods = library("gpytorch.mlls", "botorch")
        library("botorch.fit", "botorch").fit_gpytorch_mll(
            likelihoods.ExactMarginalLogLikelihood(model.likelihood, model)
        )
        pareto = library("botorch.utils.multi_objective", "botorch")
        corner = pareto.infer_reference_point(values[pareto.is_non_dominated(values)])
        return library(
            "botorch.acquisition.multi_objective.logei", "botorch"
        ).qLogNoisyExpectedHypervolumeImprovement(
            model,
            ref_point=corner.tolist(),
            X_baseline=points,
            prune_baseline=True,
            cache_root=False,
            sampler=library("botorch.sampling.normal", "botorch").SobolQMCNormalSampler(
                self.torch.Size([NUM_SAMPLES]), seed=seed
            ),
        )

    def _bounds(self):
        return self.torch.tensor(
            [[self.low] * self.size, [1.0] * self.size], dtype=self.torch.double
        )

    def _raw(self, rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
        """Half sparse mixtures of anything, half mixtures of a front point with another point,
        (NUM_RAW, K).
        """
        fresh = random_sparse(self.domain, rng, NUM_RAW)
        worse = (values[:, None] <= values[None]).all(axis=2) & (
            values[:, None] < values[None]
        ).any(axis=2)
        front = np.array(
            [
                row[0]
                for row, dominated in zip(self.rows, worse.any(axis=1), strict=True)
                if not dominated
            ]
        )
        half = NUM_RAW // 2
        step = rng.uniform(0.02, 0.5, (half, 1))
        fresh[:half] = (1 - step) * front[rng.integers(len(front), size=half)] + step * fresh[:half]
        return unique(fresh)

    def tell(self, weights: np.ndarray, value: np.ndarray, stderr: np.ndarray) -> None:
        self.rows.append((weights, value, stderr))


class Mergenetic:
    """pymoo's NSGA-II as mergenetic calls it, asked for one point at a time.

    Soup and members (at most 16, as for the others) are in its first population, the rest of that
    is random.
    """

    def __init__(self, family: Family, seed: int):
        nsga2, problems = (
            library("pymoo.algorithms.moo.nsga2", "pymoo==0.6.1.3"),
            library("pymoo.core.problem", "pymoo==0.6.1.3"),
        )
        problem = problems.Problem(
            n_var=family.num_members, n_obj=NUM_OBJECTIVES, xl=min(family.lowest, 0.0), xu=1.0
        )
        self.low, self.size = family.lowest, family.num_members
        rng = np.random.default_rng([11, seed])
        soup = np.full((1, self.size), 1 / self.size)
        vertices = np.eye(self.size) if self.size <= 16 else np.zeros((0, self.size))
        first = np.concatenate(
            [soup, vertices, rng.uniform(problem.xl, problem.xu, (POPULATION, self.size))]
        )[:POPULATION]
        self.algorithm = nsga2.NSGA2(pop_size=POPULATION, eliminate_duplicates=True, sampling=first)
        self.algorithm.setup(problem, seed=seed, verbose=False, termination=("n_gen", 10**6))
        self.start: Sequence[np.ndarray] = [
            ()
        ]  # emptied where the members' scores are known: those are not asked again
        self.known: list[tuple[np.ndarray, np.ndarray]] = []
        self.waiting, self.scored = None, []

    def ask(self) -> np.ndarray:
        if self.waiting is None:
            self.waiting = self.algorithm.ask()
            self.scored = []
            self._import()
        return on_simplex(self.waiting[len(self.scored)].X, self.low)

    def _import(self) -> None:
        for individual in self.waiting:  # the soup and members come first in the first population
            hits = [value for point, value in self.known if np.array_equal(point, individual.X)]
            if not hits:
                break
            self.scored.append(-hits[0])
        self.known = []

    def tell(self, weights: np.ndarray, value: np.ndarray, stderr: np.ndarray) -> None:
        if self.waiting is None:
            self.known.append((weights, value))
            return
        self.scored.append(-value)
        if len(self.scored) == len(self.waiting):
            self.waiting.set("F", np.array(self.scored))
            self.algorithm.tell(infills=self.waiting)
            self.waiting = None


class MergekitEvolve:
    """CMA-ES on the mean score, Khalifa et al.'s search; one weight vector is what it looks for.

    No warm start but the soup.
    """

    def __init__(self, family: Family, seed: int):
        cma = library("cma", "cma")
        self.low, size = family.lowest, family.num_members
        self.strategy = cma.CMAEvolutionStrategy(
            np.full(size, 1 / size), 1 / 6, {"seed": seed + 1, "verbose": -9}
        )
        self.waiting, self.scored = [], []

    def ask(self) -> np.ndarray:
        if not self.waiting:
            self.waiting = self.strategy.ask()
        return on_simplex(self.waiting[len(self.scored)], self.low)

    def tell(self, weights: np.ndarray, value: np.ndarray, stderr: np.ndarray) -> None:
        if not self.waiting:
            return  # scores of members, known beforehand, which this search has no use for
        self.scored.append(-float(value.sum()))
        if len(self.scored) == len(self.waiting):
            self.strategy.tell(self.waiting, self.scored)
            self.waiting, self.scored = [], []


def on_simplex(raw: np.ndarray, low: float) -> np.ndarray:
    """Weights (K,) as mergekit makes them of `raw` (K,): divided by their sum, magnitudes where
    none may be negative.

    Where the division leaves the allowed range (a sum near 0), the point is drawn towards the
    uniform soup until it fits.
    """
    size = len(raw)
    values = np.abs(raw) + 1e-12 if low >= 0 else raw
    total = float(values.sum())
    weights = values / (total if abs(total) > 1e-6 else 1e-6)
    weights += (1 - weights.sum()) / size
    away = weights - 1 / size
    room = [
        1.0,
        *((1 / size - low) / -away[away < low - 1 / size]),
        *((1 - 1 / size) / away[away > 1 - 1 / size]),
    ]
    return 1 / size + min(room) * away
