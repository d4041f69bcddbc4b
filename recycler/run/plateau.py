"""When more trials stop paying: what the last ones added to the front, luck taken out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recycler.objectives import costs, pareto
from recycler.search.baselines import maximized
from recycler.search.simplex.proposer import SimplexProposer
from recycler.types import Objective, Trial

MIN_GAIN = 0.01  # of the front's hypervolume


@dataclass(frozen=True, slots=True, kw_only=True)
class Plateau:
    """Says whether the last `patience` proposals raised the posterior hypervolume by less than
    MIN_GAIN of it.

    The posterior's and not the observed one, which goes on rising on luck alone. The corner is the
    members' worst score per objective. Decides from the trials alone, so a resumed run stops where
    it would have stopped.
    """

    patience: int
    smoother: SimplexProposer
    objectives: tuple[Objective, ...]

    def reached(self, trials: Sequence[Trial]) -> bool:
        """False while fewer than 2 `patience` proposals are scored."""
        proposed = [
            trial.number for trial in trials if trial.is_proposed and trial.state == "SCORED"
        ]
        if len(proposed) < 2 * self.patience:
            return False
        before, now = self._volumes(trials, proposed[-self.patience])
        return now - before < MIN_GAIN * now

    def _volumes(self, trials: Sequence[Trial], first_late: int) -> tuple[float, float]:
        """Posterior hypervolume of the trials before number `first_late`, and of all."""
        smoothed = self.smoother.smoothed(trials)
        scored = [trial for trial in trials if trial.state == "SCORED"]
        signs = np.array([objective.sign for objective in self.objectives])
        values = signs * [
            [
                next(
                    score.value
                    for score in smoothed.get(trial.number, trial.search)
                    if score.objective == objective.name
                )
                for objective in self.objectives
            ]
            for trial in scored
        ]
        members = [trial for trial in scored if trial.kind == "member"]
        reference = costs.cost_reference(
            self.objectives,
            members or scored,
            maximized(members, self.objectives).min(axis=0) if members else values.min(axis=0),
        )
        early = np.array([trial.number < first_late for trial in scored])
        return pareto.hypervolume(values[early], reference), pareto.hypervolume(values, reference)
