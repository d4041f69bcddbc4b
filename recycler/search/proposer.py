"""Ask for weights. Optuna lives behind this file.

A proposal is a pure function of (job seed, trial number, trials so far): the study is built anew
from the ledger for each ask and the sampler's randomness comes from the seed and the number. So a
restarted driver proposes what the first one would have, and nothing of Optuna's needs storing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from recycler.digest import derive_seed
from recycler.objectives.costs import Costs, benchmarks
from recycler.search.baselines import maximized
from recycler.search.cma import CmaProposer
from recycler.search.grid import GridProposer
from recycler.search.simplex.proposer import Gram, SimplexProposer
from recycler.specs.space import SearchSpace
from recycler.types import Objective, Proposal, Trial

# softmax of [-3, 3]: measured better than normalising |x| or -log(u) (docs/design/weights.md)
LOGIT = 3.0
NSGA_POPULATION = 20  # Optuna's 50 would leave the first 50 trials random


class Proposer(Protocol):
    """Gives the next recipe to try."""

    def ask(self, number: int, trials: Sequence[Trial]) -> Proposal: ...


class OptunaProposer:
    """Optuna's samplers on softmax logits of each group's weights, and the log of their sum.

    TPE, NSGA-II, NSGA-III, or Optuna's GP.
    """

    def __init__(
        self, sampler: str, space: SearchSpace, objectives: Sequence[Objective], *, seed: int
    ):
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._sampler, self._space, self._objectives, self._seed = (
            sampler,
            space,
            tuple(objectives),
            seed,
        )
        self._distributions = _distributions(space)

    def ask(self, number: int, trials: Sequence[Trial]) -> Proposal:
        study = optuna.create_study(
            directions=["maximize"] * len(self._objectives),
            sampler=OPTUNA_SAMPLERS[self._sampler](derive_seed(self._seed, "proposal", number)),
        )
        scored = [trial for trial in trials if trial.state == "SCORED" and self._in_space(trial)]
        for index, (trial, values) in enumerate(
            zip(scored, maximized(scored, self._objectives) if scored else (), strict=True)
        ):
            study.add_trial(
                create_trial(
                    values=[float(value) for value in values],
                    params=self._params(trial),
                    distributions=self._distributions,
                    system_attrs=_generation_tag(self._sampler, index),
                )
            )
        for trial in trials:
            if trial.state == "PENDING" and self._in_space(trial):
                study.add_trial(
                    create_trial(
                        state=TrialState.RUNNING,
                        params=self._params(trial),
                        distributions=self._distributions,
                    )
                )
        params = study.ask(self._distributions).params
        weights, options = decode(self._space, params)
        return Proposal(
            number=number, weights=weights, options=options, params=tuple(sorted(params.items()))
        )

    def _in_space(self, trial: Trial) -> bool:
        return trial.recipe.members == self._space.members and len(trial.recipe.weights) in (
            1,
            len(self._space.groups),
        )

    def _params(self, trial: Trial) -> dict[str, float]:
        return dict(trial.params) if trial.params else encode(self._space, trial)


class RandomProposer:
    """Sparse Dirichlet draws (concentration 0.2, 0.5, 1 or 2 over the members), sums log-uniform:

    the honest baseline.
    """

    def __init__(self, space: SearchSpace, *, seed: int):
        self._space, self._seed = space, seed

    def ask(self, number: int, trials: Sequence[Trial]) -> Proposal:
        rng = np.random.default_rng(derive_seed(self._seed, "proposal", number))
        low, high = self._space.total
        rows = []
        for _ in self._space.groups:
            total = (
                math.exp(rng.uniform(math.log(low), math.log(high)))
                if 0 < low < high
                else rng.uniform(low, high)
            )
            rows.append(
                self._space.project(
                    rng.dirichlet(
                        np.full(len(self._space.members), rng.choice([0.2, 0.5, 1.0, 2.0]))
                    )
                    * total,
                    total,
                )
            )
        options = tuple(
            (name, float(rng.uniform(low, high))) for name, (low, high) in self._space.options
        )
        return Proposal(number=number, weights=tuple(rows), options=options)


OPTUNA_SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(
        seed=seed, multivariate=False, n_startup_trials=0
    ),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=NSGA_POPULATION),
    "nsga3": lambda seed: optuna.samplers.NSGAIIISampler(
        seed=seed, population_size=NSGA_POPULATION
    ),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed, n_startup_trials=0),
}


def _optuna_sampler(name: str) -> Callable[[SearchTask], Proposer]:
    return lambda task: OptunaProposer(name, task.space, task.objectives, seed=task.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchTask:
    """Everything that a sampler may want to know of a job; each takes what it needs.

    `gram` (K, K) holds the inner products of the members' deltas, where known. `known_costs` tells
    what merges cost before they are made. `num_merges` is how many proposals the budget allows.
    """

    space: SearchSpace
    objectives: Sequence[Objective]
    seed: int
    gram: Gram | None = None
    known_costs: Costs | None = None
    num_merges: int = 0


SAMPLERS: dict[str, Callable[[SearchTask], Proposer]] = {
    "simplex_gp": lambda task: SimplexProposer(
        task.space, task.objectives, seed=task.seed, gram=task.gram, known_costs=task.known_costs
    ),
    "random": lambda task: RandomProposer(task.space, seed=task.seed),
    "grid": lambda task: GridProposer(task.space, task.num_merges),
    "paper": lambda task: CmaProposer(task.space, benchmarks(task.objectives), seed=task.seed),
    **{name: _optuna_sampler(name) for name in OPTUNA_SAMPLERS},
}


def make_proposer(
    sampler: str,
    space: SearchSpace,
    objectives: Sequence[Objective],
    *,
    seed: int,
    gram: Gram | None = None,
    known_costs: Costs | None = None,
    num_merges: int = 0,
) -> Proposer:
    """Make the proposer that a job names.

    `gram` (K, K) holds the inner products of the members' deltas, where known; with `known_costs`,
    the costs, `simplex_gp` knows what merges cost before they are made, while the other samplers
    learn it from scores. `paper` averages scores only. `grid` proposes at most `num_merges` merges.
    """
    task = SearchTask(
        space=space,
        objectives=objectives,
        seed=seed,
        gram=gram,
        known_costs=known_costs,
        num_merges=num_merges,
    )
    return SAMPLERS[sampler](task)


def decode(
    space: SearchSpace, params: dict[str, float]
) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[str, float], ...]]:
    """Parameters -> weights (G, K) inside the space, and options."""
    rows = []
    for group in space.groups:
        free = [name for name in space.members if name not in space.frozen]
        shares = dict(
            zip(free, _softmax([params[f"w.{group.name}.{name}"] for name in free]), strict=True)
        )
        total = params.get(f"sum.{group.name}", space.total[0])
        rest = total - sum(space.frozen.values())
        rows.append(
            space.project(
                [space.frozen.get(name, shares.get(name, 0.0) * rest) for name in space.members],
                total,
            )
        )
    return tuple(rows), tuple((name, params[f"option.{name}"]) for name, _ in space.options)


def encode(space: SearchSpace, trial: Trial) -> dict[str, float]:
    """The parameters nearest to a trial that was not proposed in this space: a member, a soup."""
    params: dict[str, float] = {}
    for index, group in enumerate(space.groups):
        row = trial.recipe.weights[index if len(trial.recipe.weights) > 1 else 0]
        weights = {
            name: max(weight, 0.0)
            for name, weight in zip(space.members, row, strict=True)
            if name not in space.frozen
        }
        total = sum(weights.values())
        logs = {
            name: math.log(max(weight / total, 1e-9)) if total > 0 else 0.0
            for name, weight in weights.items()
        }
        top = max(logs.values(), default=0.0)
        params |= {
            f"w.{group.name}.{name}": min(max(value - top + LOGIT, -LOGIT), LOGIT)
            for name, value in logs.items()
        }
        if space.total[0] < space.total[1]:
            params[f"sum.{group.name}"] = min(max(sum(row), space.total[0]), space.total[1])
    return params | {
        f"option.{name}": float(trial.recipe.option(name, (low + high) / 2))
        for name, (low, high) in space.options
    }


def _distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    found: dict[str, BaseDistribution] = {}
    low, high = space.total
    for group in space.groups:
        found |= {
            f"w.{group.name}.{name}": FloatDistribution(-LOGIT, LOGIT)
            for name in space.members
            if name not in space.frozen
        }
        if low < high:
            found[f"sum.{group.name}"] = FloatDistribution(low, high, log=low > 0)
    return found | {
        f"option.{name}": FloatDistribution(low, high) for name, (low, high) in space.options
    }


def _generation_tag(sampler: str, index: int) -> dict[str, int]:
    """Attributes without which Optuna's genetic samplers ignore a trial (seen in 5.0.0).

    With them warm starts count.
    """
    names = {"nsga2": "NSGAIISampler", "nsga3": "NSGAIIISampler"}
    return {f"{names[sampler]}:generation": index // NSGA_POPULATION} if sampler in names else {}


def _softmax(logits: Sequence[float]) -> np.ndarray:
    exponentials = np.exp(np.asarray(logits) - np.max(logits)) if len(logits) else np.zeros(0)
    return exponentials / exponentials.sum() if len(logits) else exponentials
