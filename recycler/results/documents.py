"""A front as one JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from recycler.objectives import costs
from recycler.results.front import Front, _kind, choose, knee
from recycler.search.baselines import best_member, maximized
from recycler.types import Objective, Smoothed, Trial

SCHEMA_VERSION = 1


def front_document(front: Front) -> dict[str, Any]:
    """The front as the one JSON document of `recycler front --json`; equal runs give equal bytes."""
    baselines = [_entry(trial, "member", front.objectives) for trial in front.members]
    baselines += [
        _entry(trial, kind, front.objectives)
        for trial, kind in ((front.uniform, "uniform_soup"), (front.greedy, "greedy_soup"))
        if trial is not None
    ]
    baselines += [
        {
            **_entry(best_member(front.trials, objective), "best_per_task", front.objectives),
            "objective": objective.name,
        }
        for objective in costs.benchmarks(front.objectives)
    ]
    probability = front.probability
    alike = {group[0].number: [trial.number for trial in group[1:]] for group in front.alike}
    sets = {
        "members": front.members,
        "uniform_soup": [front.uniform],
        "greedy_soup": [front.greedy],
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "objectives": [
            {"name": objective.name, "direction": objective.direction}
            | ({"floor": objective.floor} if objective.floor else {})
            for objective in front.objectives
        ],
        "floors_kept": front.floors_kept,
        "reference_point": list(front.reference),
        "hypervolume": {
            role: front.hypervolume(front.front, role) for role in ("search", "holdout")
        },
        "baseline_hypervolume": {
            name: {role: front.hypervolume(trials, role) for role in ("search", "holdout")}
            for name, trials in sets.items()
        },
        "num_trials": len(front.trials),
        "knee": knee(front).number,
        "front": [
            {
                **_entry(trial, _kind(trial), front.objectives, front.smoothed),
                "probability": probability[trial.number],
                "same_weights": alike[trial.number],
            }
            for trial in front.front
        ],
        "picked_by": "posterior" if front.smoothed else "search score",
        "dead_objectives": list(front.smoothed.dead),
        "observed_front": [trial.number for trial in front.observed],
        "search_to_holdout": {
            name: {"value": gap, "stderr": stderr, "trials": number}
            for name, gap, stderr, number in search_to_holdout(front)
        },
        "baselines": baselines,
        "base": _entry(front.base, "base", front.objectives) if front.base else None,
    }


def search_to_holdout(front: Front) -> tuple[tuple[str, float, float, int], ...]:
    """By benchmark: its name, the mean of holdout less search score over the front's merges and its
    standard error, and how many they are.

    Empty before the holdout is scored. All merges answer the same items, so the mean's error is no
    smaller than each one's.
    """
    held = [trial for trial in front.front if trial.holdout]
    found = []
    for objective in costs.benchmarks(front.objectives) if held else ():
        pairs = [
            [
                next(score for score in trial.scores(role) if score.objective == objective.name)
                for role in ("search", "holdout")
            ]
            for trial in held
        ]
        gap = float(np.mean([after.value - before.value for before, after in pairs]))
        found.append(
            (
                objective.name,
                gap,
                float(np.mean([np.hypot(before.stderr, after.stderr) for before, after in pairs])),
                len(held),
            )
        )
    return tuple(found)


def choice_document(front: Front, what: str) -> dict[str, Any]:
    """The trial that `choose` gives, by what it was chosen, and its scores of both kinds; for best:OBJECTIVE also whose search
    score is the best, which a lucky one may be."""
    chosen = choose(front, what)
    document = {
        "asked": what,
        "trial": chosen.number,
        "by": "number"
        if what.isdecimal()
        else "posterior score"
        if front.smoothed
        else "search score",
        "scores": _entry(chosen, "", front.objectives, front.smoothed)["scores"],
        "best_by_search_score": None,
    }
    if what.startswith("best:"):
        objective = next(
            objective
            for objective in front.objectives
            if objective.name == what.removeprefix("best:")
        )
        luckiest = front.observed[int(np.argmax(maximized(front.observed, [objective])[:, 0]))]
        document["best_by_search_score"] = {
            "trial": luckiest.number,
            "scores": _entry(luckiest, "", [objective], front.smoothed)["scores"],
        }
    return document


def weights_by_group(trial: Trial) -> dict[str, dict[str, float]]:
    """{group: {member: weight}} without the zeros."""
    return {
        group.name: {
            name: weight
            for name, weight in zip(trial.recipe.members, row, strict=True)
            if weight != 0.0
        }
        for group, row in zip(trial.recipe.groups, trial.recipe.weights, strict=True)
    }


def _entry(
    trial: Trial, kind: str, objectives: Sequence[Objective], smoothed: Smoothed = Smoothed()
) -> dict[str, Any]:
    kinds = {
        "search": trial.search,
        "holdout": trial.holdout,
        **({"posterior": smoothed.get(trial.number, ())} if smoothed else {}),
    }
    by_role = {
        role: {
            score.objective: {"value": score.value, "stderr": score.stderr, "n": score.n}
            for score in scores
        }
        for role, scores in kinds.items()
    }
    return {
        "trial": trial.number,
        "kind": kind,
        "label": trial.label,
        "method": trial.recipe.method,
        "weights": weights_by_group(trial),
        "options": dict(trial.recipe.options),
        "scores": {
            objective.name: {role: found.get(objective.name) for role, found in by_role.items()}
            for objective in objectives
        },
    }
