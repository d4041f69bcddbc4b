"""Baselines: members, base, uniform soup, greedy soup, best of each task.

They are scored first, on the same items, and every search must beat them.

Pure functions of the ledger's trials, so that a restarted driver goes on where the last one was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recycler.objectives.costs import benchmarks, clamp_to_bound
from recycler.objectives.pareto import Floats, as_maximized
from recycler.types import Objective, Pool, Recipe, Role, Trial, TrialKind

MERGE_BEST = "best of each task, averaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A trial to open: what it is, and how to merge it."""

    kind: TrialKind
    label: str
    recipe: Recipe


def blend(pool: Pool, dtype: str, weights: dict[str, float]) -> Recipe:
    """Linear recipe over the whole pool with one weight per named member, 0 for the rest."""
    row = tuple(float(weights.get(name, 0.0)) for name in pool.names)
    return Recipe(
        method="linear",
        members=pool.names,
        weights=(row,),
        base=pool.base.name if pool.base else None,
        dtype=dtype,
    )


def average(pool: Pool, dtype: str, names: Sequence[str]) -> Recipe:
    """Uniform soup of the named members (Wortsman et al. 2022)."""
    return blend(pool, dtype, {name: 1.0 / len(names) for name in names})


def fixed_baselines(pool: Pool, dtype: str) -> tuple[Planned, ...]:
    """Every member, the base when there is one, and the uniform soup."""
    planned = [
        Planned(kind="member", label=name, recipe=blend(pool, dtype, {name: 1.0}))
        for name in pool.names
    ]
    if pool.base:
        planned.append(Planned(kind="base", label=pool.base.name, recipe=blend(pool, dtype, {})))
    planned.append(
        Planned(kind="uniform_soup", label="uniform soup", recipe=average(pool, dtype, pool.names))
    )
    return tuple(planned)


def merge_best(
    pool: Pool, dtype: str, trials: Sequence[Trial], objectives: Sequence[Objective]
) -> Planned:
    """The average of the best members of each objective: what one would try by hand."""
    names = sorted({best_member(trials, objective).label for objective in benchmarks(objectives)})
    return Planned(kind="merge", label=MERGE_BEST, recipe=average(pool, dtype, names))


def best_member(trials: Sequence[Trial], objective: Objective) -> Trial:
    """Scored member that is best at one objective by search score; the earlier of equals."""
    sign = objective.sign
    members = [trial for trial in trials if trial.kind == "member" and trial.state == "SCORED"]
    return max(members, key=lambda trial: (sign * _value(trial, objective), -trial.number))


def greedy_soup(
    pool: Pool, dtype: str, trials: Sequence[Trial], objectives: Sequence[Objective]
) -> Planned | Trial | None:
    """Next step of the greedy soup: a trial to open, or the finished soup's trial.

    Returns None while a step is pending.

    Members are tried from best to worst by macro-average and kept when the soup with them is no
    worse (Wortsman et al. 2022, recipe 1); the average is of scores scaled to the members' range,
    so that no benchmark drowns another.
    """
    by_recipe = {trial.recipe: trial for trial in trials}
    members = sorted(
        (trial for trial in trials if trial.kind == "member" and trial.state == "SCORED"),
        key=lambda trial: (-macro_average(trial, trials, objectives), trial.number),
    )
    names, soup = [members[0].label], members[0]
    for member in members[1:]:
        recipe = average(pool, dtype, [*names, member.label])
        step = by_recipe.get(recipe)
        if step is None:
            return Planned(
                kind="greedy_soup",
                label=f"greedy soup: {' + '.join([*names, member.label])}",
                recipe=recipe,
            )
        if step.state == "PENDING":
            return None
        if step.state == "SCORED" and macro_average(step, trials, objectives) >= macro_average(
            soup, trials, objectives
        ):
            names, soup = [*names, member.label], step
    return soup


def macro_average(trial: Trial, trials: Sequence[Trial], objectives: Sequence[Objective]) -> float:
    """Mean over objectives of the search score, scaled to the members' range.

    0 is the worst member, 1 the best. Costs are left out.
    """
    objectives = benchmarks(objectives)
    members = [other for other in trials if other.kind == "member" and other.state == "SCORED"]
    total = 0.0
    for objective in objectives:
        values = [_value(member, objective) for member in members]
        low, high = min(values), max(values)
        scaled = (_value(trial, objective) - low) / (high - low) if high > low else 0.0
        total += scaled if objective.direction == "maximize" else 1.0 - scaled
    return total / len(objectives)


def _value(trial: Trial, objective: Objective) -> float:
    return next(score.value for score in trial.search if score.objective == objective.name)


def maximized(
    trials: Sequence[Trial], objectives: Sequence[Objective], role: Role = "search"
) -> Floats:
    """Scores of trials as an (n, T) array in which more is better.

    Columns are in the order of the objectives. A cost that is only bounded is clamped to its bound.
    """
    table = np.array(
        [
            [
                next(
                    score.value for score in trial.scores(role) if score.objective == objective.name
                )
                for objective in objectives
            ]
            for trial in trials
        ]
    ).reshape(len(trials), len(objectives))
    for column, objective in enumerate(objectives):
        table[:, column] = clamp_to_bound(objective, table[:, column])
    return as_maximized(table, [objective.direction for objective in objectives])
