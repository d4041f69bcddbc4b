"""`paper`: the search of Khalifa et al. 2024, CMA-ES on the plain average of all objectives.

It looks for one best merge and not for a front, so it is here to compare with, and for people who
want exactly that. Weights are |x| / sum |x| as in the paper; where the space searches their sum,
the sum of |x| is that sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cmaes import CMA

from recycler.digest import derive_seed
from recycler.search.baselines import maximized
from recycler.specs.space import SearchSpace
from recycler.types import Objective, Proposal, Trial

SIGMA = 1 / 6  # of the unit box, as mergekit-evolve starts


class CmaProposer:
    """Propose one point at a time from a CMA-ES distribution.

    Every full population of scored trials, by number, moves the distribution that the next proposal
    is drawn from. Nothing waits for the slowest worker, and a resumed run proposes the same.
    """

    def __init__(self, space: SearchSpace, objectives: Sequence[Objective], *, seed: int):
        self._space, self._objectives, self._seed = space, tuple(objectives), seed
        self._size = len(space.groups) * len(space.members) + len(space.options)

    def ask(self, number: int, trials: Sequence[Trial]) -> Proposal:
        optimiser = CMA(
            mean=self._start(),
            sigma=SIGMA,
            bounds=np.tile([-1.0, 1.0], (self._size, 1)),
            seed=derive_seed(self._seed, "proposal", number) % 2**31,
        )
        scored = sorted(
            (
                trial
                for trial in trials
                if trial.state == "SCORED" and len(trial.params) == self._size
            ),
            key=lambda trial: trial.number,
        )
        losses = -maximized(scored, self._objectives).mean(axis=1) if scored else ()
        told = [
            (np.array([value for _, value in sorted(trial.params)]), float(loss))
            for trial, loss in zip(scored, losses, strict=True)
        ]
        for first in range(0, len(told) - optimiser.population_size + 1, optimiser.population_size):
            optimiser.tell(told[first : first + optimiser.population_size])
        return self._proposal(number, optimiser.ask())

    def _start(self) -> np.ndarray:
        shares = np.full(
            len(self._space.groups) * len(self._space.members), 1.0 / len(self._space.members)
        )
        return np.concatenate([shares, np.full(len(self._space.options), 0.5)])

    def _proposal(self, number: int, point: np.ndarray) -> Proposal:
        rows = np.abs(point[: self._size - len(self._space.options)]).reshape(
            len(self._space.groups), -1
        )
        low, high = self._space.total
        weights = []
        for row in rows:
            total = float(np.clip(row.sum(), low, high))
            weights.append(self._space.project(row / max(float(row.sum()), 1e-9) * total, total))
        shares = np.abs(point[rows.size :])
        options = tuple(
            (name, float(least + share * (most - least)))
            for (name, (least, most)), share in zip(self._space.options, shares, strict=True)
        )
        return Proposal(
            number=number,
            weights=tuple(weights),
            options=options,
            params=tuple((f"x{index:05d}", float(value)) for index, value in enumerate(point)),
        )
