"""A rule that ends a search whose last trials added next to nothing to the front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recycler.objectives import costs, pareto
from recycler.search.baselines import maximized
from recycler.search.simplex.proposer import SimplexProposer
from recycler.types import Objective, Trial, scored_members, scored_trials

MIN_GAIN = 0.01  # of the front's hypervolume


@dataclass(frozen=True, slots=True, kw_only=True)
class Plateau:
    """Ends a search when its last `patience` proposals gained less than MIN_GAIN.

    The gain is a share of the posterior hypervolume; the observed one goes on rising on luck alone.
    The reference point is the members' worst score per objective. The rule depends on the trials
    alone, so a resumed run stops where it would have stopped.
    """

    patience: int
    smoother: SimplexProposer
    objectives: tuple[Objective, ...]

    def reached(self, trials: Sequence[Trial]) -> bool:
        """True when the rule holds; never before 2 `patience` proposals are scored."""
        proposed = [trial.number for trial in scored_trials(trials) if trial.is_proposed]
        if len(proposed) < 2 * self.patience:
            return False
        before, now = self._volumes(trials, proposed[-self.patience])
        return now - before < MIN_GAIN * now

    def _volumes(self, trials: Sequence[Trial], first_late: int) -> tuple[float, float]:
        """Posterior hypervolume of the trials before number `first_late`, and of all."""
        smoothed = self.smoother.smoothed(trials)
        scored = scored_trials(trials)
        signs = np.array([objective.sign for objective in self.objectives])
        rows = []
        for trial in scored:
            scores = smoothed.get(trial.number, trial.search)
            by_name = {score.objective: score.value for score in scores}
            rows.append([by_name[objective.name] for objective in self.objectives])
        values = signs * np.array(rows)
        members = scored_members(scored)
        observed = maximized(members, self.objectives) if members else values
        reference = costs.cost_reference(self.objectives, members or scored, observed.min(axis=0))
        early = np.array([trial.number < first_late for trial in scored])
        return pareto.hypervolume(values[early], reference), pareto.hypervolume(values, reference)
