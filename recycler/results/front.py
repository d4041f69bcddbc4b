"""Read a run: the front with its error bars, the baselines beside it, and how far it got.

Everything from the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recycler.errors import NotFoundError, Problem, did_you_mean
from recycler.objectives import costs, pareto
from recycler.search.baselines import greedy_soup, maximized
from recycler.search.floors import above_floors, floors
from recycler.types import Objective, Pool, Recipe, Role, Smoothed, Trial

BASELINE_KINDS = ("member", "uniform_soup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """What a run ships, what that must beat, and the reference point of all volumes.

    `front` is non-dominated by posterior score where the search has ended and by search score
    (`observed`) before: a lucky score enters the observed front, and all trials together know that
    it was luck. Trials below a floor are left out.
    """

    objectives: tuple[Objective, ...]
    trials: tuple[Trial, ...]  # everything scored
    lost: tuple[Trial, ...]  # failed through no fault of theirs: the next driver tries them again
    alike: tuple[
        tuple[Trial, ...], ...
    ]  # the same in groups of equal weights, of which the first stands for all
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
    def alive(self) -> tuple[Objective, ...]:
        """The objectives that have a say in who dominates whom: those that some weights move beyond
        noise.
        """
        return tuple(
            objective for objective in self.objectives if objective.name not in self.smoothed.dead
        )

    @property
    def probability(self) -> dict[int, float]:
        """Chance of each scored trial to be non-dominated, its (posterior) scores taken as
        independent Gaussians, by number.
        """
        distinct = [alike[0] for alike in self.alike]
        scores = [
            {score.objective: score for score in self.smoothed.get(trial.number, trial.search)}
            for trial in distinct
        ]
        stderrs = [[found[objective.name].stderr for objective in self.alive] for found in scores]
        chances = pareto.probability_non_dominated(
            _best_known(distinct, self.alive, self.smoothed), stderrs, seed=0
        )
        return {
            trial.number: round(float(chance), 3)
            for trial, chance in zip(distinct, chances, strict=True)
        }

    @property
    def names(self) -> dict[int, str]:
        """What the trials are called, by number of the first of those with the same weights: all
        that these are, joined by =.
        """
        return {
            alike[0].number: " = ".join(
                dict.fromkeys(
                    name for trial in alike for name in self._names_of(trial, trial is alike[0])
                )
            )
            for alike in self.alike
        }

    def _names_of(self, trial: Trial, is_first: bool) -> list[str]:
        soup = (
            ["greedy soup"]
            if self.greedy is not None and trial.number == self.greedy.number
            else []
        )
        if trial.kind == "greedy_soup":
            return soup or ["greedy step"]
        own = {
            "member": f"member {trial.label}",
            "base": "base",
            "merge": trial.label or ("merge" if is_first else f"merge {trial.number}"),
        }
        return [own.get(trial.kind, trial.label), *soup]

    @property
    def baselines(self) -> tuple[Trial, ...]:
        """Members, soups and base in that order, those with the same weights once."""
        first = {trial.number: alike[0] for alike in self.alike for trial in alike}
        return tuple(
            {
                first[trial.number].number: first[trial.number]
                for trial in (*self.members, self.uniform, self.greedy, self.base)
                if trial is not None
            }.values()
        )

    @property
    def finalists(self) -> tuple[Trial, ...]:
        """Trials to score on the holdout items: both fronts and the baselines, each once, by
        number.
        """
        chosen = {
            trial.number: trial
            for trial in (
                *self.front,
                *self.observed,
                *self.members,
                self.uniform,
                self.greedy,
                self.base,
            )
            if trial is not None
        }
        return tuple(chosen[number] for number in sorted(chosen))

    def hypervolume(self, trials: Sequence[Trial | None], role: Role) -> float | None:
        """Volume dominated by `trials` above the reference point; None while one of them lacks
        scores of that role.
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
    smoothed: Smoothed = Smoothed(),
) -> Front:
    """The front of a ledger's trials. Raises NotFoundError before the first trial is scored."""
    scored = tuple(trial for trial in trials if trial.state == "SCORED")
    members = tuple(trial for trial in scored if trial.kind == "member")
    if not members:
        raise NotFoundError(
            Problem(
                thing="front",
                cause="no member has been scored yet",
                remedy="Wait for the first trials; recycler status RUN tells how far it is",
            )
        )
    alike = same_weights(scored)
    distinct = [group[0] for group in alike]
    observed = _non_dominated(distinct, maximized(distinct, objectives))
    alive = [objective for objective in objectives if objective.name not in smoothed.dead]
    lowest = floors(objectives, scored)
    kept = [
        trial
        for trial, above in zip(
            distinct, above_floors(_best_known(distinct, objectives, smoothed), lowest), strict=True
        )
        if above
    ]
    front = _non_dominated(kept or distinct, _best_known(kept or distinct, alive, smoothed))
    soup = (
        greedy_soup(pool, dtype, trials, objectives) if len(members) == len(pool.members) else None
    )
    uniform = next((trial for trial in scored if trial.kind == "uniform_soup"), None)
    member_values = maximized(members, objectives)
    worst = costs.cost_reference(objectives, members, pareto.reference_point(member_values))
    signs = np.array([objective.sign for objective in objectives])
    lost = tuple(
        trial for trial in trials if trial.failure is not None and trial.failure.blame == "system"
    )
    return Front(
        objectives=tuple(objectives),
        trials=scored,
        lost=lost,
        alike=alike,
        front=front,
        observed=observed,
        smoothed=smoothed,
        floors_kept=bool(kept),
        members=members,
        uniform=uniform,
        greedy=soup if isinstance(soup, Trial) else None,
        base=next((trial for trial in scored if trial.kind == "base"), None),
        reference=tuple(float(value) for value in worst * signs),
    )


def knee(front: Front) -> Trial:
    """The front's trial farthest from the line (plane) through its extremes: where giving up more of one stops paying. Not the base
    for costing nothing: beside costs that alone would make it one."""
    merges = (
        [trial for trial in front.front if trial.kind != "base"]
        if costs.costs(front.objectives)
        else []
    )
    chosen = merges or front.front
    return chosen[pareto.knee(_best_known(chosen, front.alive, front.smoothed))]


def choose(front: Front, what: str) -> Trial:
    """A trial by number, `knee`, or `best:OBJECTIVE` (best on the front). Raises NotFoundError."""
    if what == "knee":
        return knee(front)
    if what.startswith("best:"):
        name = what.removeprefix("best:")
        objective = next(
            (objective for objective in front.objectives if objective.name == name), None
        )
        if objective is None:
            raise NotFoundError(
                Problem(
                    thing=f"objective {name!r}",
                    cause="not one of this run's",
                    remedy=did_you_mean(name, [objective.name for objective in front.objectives]),
                )
            )
        return front.front[
            int(np.argmax(_best_known(front.front, [objective], front.smoothed)[:, 0]))
        ]
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


def _best_known(
    trials: Sequence[Trial], objectives: Sequence[Objective], smoothed: Smoothed
) -> np.ndarray:
    """Posterior scores (n, T) to be made large, search scores where a trial has none."""
    return maximized(
        [replace(trial, search=smoothed.get(trial.number, trial.search)) for trial in trials],
        objectives,
    )


def _non_dominated(trials: Sequence[Trial], values: np.ndarray) -> tuple[Trial, ...]:
    return tuple(
        trial for trial, chosen in zip(trials, pareto.non_dominated(values), strict=True) if chosen
    )


def _kind(trial: Trial) -> str:
    return (
        "merge"
        if trial.kind == "greedy_soup" and trial.label.startswith("greedy soup: ")
        else trial.kind
    )


def same_weights(trials: Sequence[Trial]) -> tuple[tuple[Trial, ...], ...]:
    """Trials in groups that have the same weights, groups and trials in the order given.

    The same are those of one digest, and those of one recipe: weights to six digits, as spaces give
    them, and one row where all groups of tensors have the same.
    """
    seen: dict[Any, list[Trial]] = {}
    groups: list[list[Trial]] = []
    for trial in trials:
        keys = [
            _recipe_key(trial.recipe),
            *([trial.weights_digest] if trial.weights_digest else []),
        ]
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
    return (
        recipe.method,
        recipe.members,
        recipe.base,
        recipe.options,
        recipe.dtype,
        recipe.seed,
        *((rows, recipe.groups) if has_groups else (rows[0],)),
    )
