"""The front of a run with its error bars, the baselines beside it, and a choice from it.

Everything is read off the trials of the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recycler.errors import NotFoundError, Problem, did_you_mean
from recycler.objectives import costs, pareto
from recycler.search.baselines import greedy_soup, maximized
from recycler.search.floors import above_floors, floors
from recycler.types import (
    Objective,
    Pool,
    Recipe,
    Role,
    Smoothed,
    Trial,
    TrialKind,
    scored_members,
    scored_trials,
)

NOT_SMOOTHED = Smoothed()  # no posterior scores: the search goes on


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """Merges that a run ships, baselines that they must beat, and the reference point of volumes.

    `front` is non-dominated by posterior score where the search has ended and by search score
    (`observed`) before: a lucky score enters the observed front, and all trials together know that
    it was luck. Trials below a floor are left out.
    """

    objectives: tuple[Objective, ...]
    trials: tuple[Trial, ...]  # everything scored
    lost: tuple[Trial, ...]  # failed through no fault of theirs: the next driver tries them again
    # the same in groups of equal weights, of which the first stands for all
    alike: tuple[tuple[Trial, ...], ...]
    front: tuple[Trial, ...]
    observed: tuple[Trial, ...]
    floors_kept: bool  # False where no trial keeps every floor: then `front` is that of all trials
    smoothed: Smoothed  # posterior scores; none while the search runs
    members: tuple[Trial, ...]
    uniform: Trial | None
    greedy: Trial | None
    base: Trial | None
    reference: tuple[float, ...]  # in the objectives' own directions

    @property
    def informative(self) -> tuple[Objective, ...]:
        """The objectives that decide dominance: those that some weights move beyond noise."""
        return _informative(self.objectives, self.smoothed)

    @property
    def probability(self) -> dict[int, float]:
        """Probability of each scored trial to be non-dominated, by number.

        Its (posterior) scores are taken as independent Gaussians.
        """
        unique = [alike[0] for alike in self.alike]
        known = _with_posterior(unique, self.smoothed)
        stderrs = np.array(
            [[trial.score(one.name).stderr for one in self.informative] for trial in known]
        )
        values = maximized(known, self.informative)
        chances = pareto.probability_non_dominated(values, stderrs, seed=0)
        numbers = [trial.number for trial in unique]
        return dict(zip(numbers, (round(float(chance), 3) for chance in chances), strict=True))

    @property
    def names(self) -> dict[int, str]:
        """Names of the trials, by number of the first of those with the same weights.

        Trials with the same weights share a name: all that they are, joined by =.
        """
        names = {}
        for alike in self.alike:
            first = alike[0]
            own = [name for trial in alike for name in self._names_of(trial, trial is first)]
            names[first.number] = " = ".join(dict.fromkeys(own))
        return names

    def _names_of(self, trial: Trial, is_first: bool) -> list[str]:
        is_soup = self.greedy is not None and trial.number == self.greedy.number
        soup = ["greedy soup"] if is_soup else []
        if trial.kind == "greedy_soup":
            return soup or ["greedy step"]
        merge = "merge" if is_first else f"merge {trial.number}"
        own = {
            "member": f"member {trial.label}",
            "base": "base",
            "merge": trial.label or merge,
        }
        return [own.get(trial.kind, trial.label), *soup]

    @property
    def baselines(self) -> tuple[Trial, ...]:
        """Members, soups and base in that order, those with the same weights once."""
        first = {trial.number: alike[0] for alike in self.alike for trial in alike}
        return _unique(first[trial.number] for trial in self._own_baselines)

    @property
    def finalists(self) -> tuple[Trial, ...]:
        """Trials to score on the holdout items: both fronts and the baselines, each once."""
        chosen = _unique((*self.front, *self.observed, *self._own_baselines))
        return tuple(sorted(chosen, key=lambda trial: trial.number))

    @property
    def _own_baselines(self) -> list[Trial]:
        found = (*self.members, self.uniform, self.greedy, self.base)
        return [trial for trial in found if trial is not None]

    def hypervolume(self, trials: Sequence[Trial | None], role: Role) -> float | None:
        """Volume dominated by `trials` above the reference point.

        None while one of them lacks scores of that role.
        """
        there = [trial for trial in trials if trial is not None]
        if not there or not all(trial.scores(role) for trial in there):
            return None
        directions = [objective.direction for objective in self.objectives]
        return pareto.hypervolume(
            maximized(there, self.objectives, role),
            pareto.as_maximized([self.reference], directions)[0],
        )


def read_front(
    trials: Sequence[Trial],
    objectives: Sequence[Objective],
    pool: Pool,
    dtype: str,
    *,
    smoothed: Smoothed = NOT_SMOOTHED,
) -> Front:
    """The front of a ledger's trials. Raises NotFoundError before the first trial is scored."""
    scored, members = tuple(scored_trials(trials)), tuple(scored_members(trials))
    if not members:
        raise NotFoundError(
            Problem(
                thing="front",
                cause="no member has been scored yet",
                remedy="Wait for the first trials; recycler status RUN tells how far it is",
            )
        )
    alike = same_weights(scored)
    unique = [group[0] for group in alike]
    kept = _above_floors(unique, scored, objectives, smoothed)
    values = _best_known(kept or unique, _informative(objectives, smoothed), smoothed)
    is_complete = len(members) == len(pool.members)
    soup = greedy_soup(pool, dtype, trials, objectives) if is_complete else None
    return Front(
        objectives=tuple(objectives),
        trials=scored,
        lost=tuple(trial for trial in trials if _was_lost(trial)),
        alike=alike,
        front=_non_dominated(kept or unique, values),
        observed=_non_dominated(unique, maximized(unique, objectives)),
        smoothed=smoothed,
        floors_kept=bool(kept),
        members=members,
        uniform=_first_of_kind("uniform_soup", scored),
        greedy=soup if isinstance(soup, Trial) else None,
        base=_first_of_kind("base", scored),
        reference=_reference(objectives, members),
    )


def _above_floors(
    unique: Sequence[Trial],
    scored: Sequence[Trial],
    objectives: Sequence[Objective],
    smoothed: Smoothed,
) -> list[Trial]:
    """The trials that keep every floor."""
    above = above_floors(_best_known(unique, objectives, smoothed), floors(objectives, scored))
    return [trial for trial, is_above in zip(unique, above, strict=True) if is_above]


def _reference(objectives: Sequence[Objective], members: Sequence[Trial]) -> tuple[float, ...]:
    """The reference point (T,), from the members' scores, in the objectives' own directions."""
    worst = pareto.reference_point(maximized(members, objectives))
    lowest = costs.cost_reference(objectives, members, worst)
    return tuple(
        float(value * objective.sign) for value, objective in zip(lowest, objectives, strict=True)
    )


def _was_lost(trial: Trial) -> bool:
    return trial.failure is not None and trial.failure.blame == "system"


def _first_of_kind(kind: TrialKind, trials: Sequence[Trial]) -> Trial | None:
    return next((trial for trial in trials if trial.kind == kind), None)


def _informative(objectives: Sequence[Objective], smoothed: Smoothed) -> tuple[Objective, ...]:
    return tuple(
        objective for objective in objectives if objective.name not in smoothed.uninformative
    )


def _unique(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """Trials without repetition, in the order of their first mention."""
    return tuple({trial.number: trial for trial in trials}.values())


def knee(front: Front) -> Trial:
    """The front's trial farthest from the plane through its extremes.

    There giving up more of one objective stops paying. Beside costs the base is not taken, whose
    costs of nothing alone would make it the knee.
    """
    chosen = front.front
    if costs.costs(front.objectives):
        merges = tuple(trial for trial in front.front if trial.kind != "base")
        chosen = merges or chosen
    return chosen[pareto.knee(_best_known(chosen, front.informative, front.smoothed))]


def choose(front: Front, what: str) -> Trial:
    """A trial by number, `knee`, or `best:OBJECTIVE` (best on the front). Raises NotFoundError."""
    if what == "knee":
        return knee(front)
    if what.startswith("best:"):
        return _best(front, what.removeprefix("best:"))
    found = next((trial for trial in front.trials if str(trial.number) == what), None)
    if found is None:
        raise NotFoundError(
            Problem(
                thing=f"trial {what!r}",
                cause="not a scored trial of this run",
                remedy="Give a number of `recycler front`, knee, or best:OBJECTIVE",
            )
        )
    return found


def _best(front: Front, name: str) -> Trial:
    """The best of the front by one objective."""
    by_name = {objective.name: objective for objective in front.objectives}
    if name not in by_name:
        raise NotFoundError(
            Problem(
                thing=f"objective {name!r}",
                cause="not one of this run's",
                remedy=did_you_mean(name, by_name),
            )
        )
    values = _best_known(front.front, [by_name[name]], front.smoothed)
    return front.front[int(np.argmax(values[:, 0]))]


def _best_known(
    trials: Sequence[Trial], objectives: Sequence[Objective], smoothed: Smoothed
) -> np.ndarray:
    """Posterior scores (n, T) to be made large, search scores where a trial has none."""
    return maximized(_with_posterior(trials, smoothed), objectives)


def _with_posterior(trials: Sequence[Trial], smoothed: Smoothed) -> list[Trial]:
    """Trials with posterior scores in place of their search scores, where they have some."""
    return [replace(trial, search=smoothed.get(trial.number, trial.search)) for trial in trials]


def _non_dominated(trials: Sequence[Trial], values: np.ndarray) -> tuple[Trial, ...]:
    return tuple(
        trial for trial, chosen in zip(trials, pareto.non_dominated(values), strict=True) if chosen
    )


def shown_kind(trial: Trial) -> str:
    """The kind of a trial as a front shows it: a step of the greedy soup is a merge."""
    is_step = trial.kind == "greedy_soup" and trial.label.startswith("greedy soup: ")
    return "merge" if is_step else trial.kind


def same_weights(trials: Sequence[Trial]) -> tuple[tuple[Trial, ...], ...]:
    """Trials in groups that have the same weights, groups and trials in the order given.

    The same are those of one digest, and those of one recipe: weights to six digits, and one row
    where all groups of tensors have the same.
    """
    seen: dict[Any, list[Trial]] = {}
    groups: list[list[Trial]] = []
    for trial in trials:
        keys: list[Any] = [_recipe_key(trial.recipe)]
        if trial.weights_digest:
            keys.append(trial.weights_digest)
        group = next((seen[key] for key in keys if key in seen), None)
        if group is None:
            groups.append(group := [])
        group.append(trial)
        for key in keys:
            seen.setdefault(key, group)
    return tuple(map(tuple, groups))


def _recipe_key(recipe: Recipe) -> tuple[Any, ...]:
    rows = tuple(tuple(round(weight, 6) for weight in row) for row in recipe.weights)
    has_groups = len(set(rows)) > 1 or any("@" in name for name, _ in recipe.options)
    weights = (rows, recipe.groups) if has_groups else (rows[0],)
    names = (recipe.method, recipe.members, recipe.base)
    return (*names, recipe.options, recipe.dtype, recipe.seed, *weights)
