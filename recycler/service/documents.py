"""JSON documents of the API, made from a snapshot by plain functions.

Numbers that JSON cannot say become null.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from recycler.errors import NotFoundError, Problem, UsageError
from recycler.objectives.stats import Flips, mcnemar, paired_difference
from recycler.pool.checks.lineage import lineage
from recycler.results.documents import weights_by_group
from recycler.service.frozen_items import clusters_and_weights
from recycler.service.store import Snapshot
from recycler.types import Item, Objective, Outcome, Role, Score, Trial

MAX_FLIPS = 200
MAX_OUTPUT = 4_000
ROLES: tuple[Role, ...] = ("search", "holdout")


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def trial_entry(trial: Trial) -> dict[str, Any]:
    """One trial as the lists and the events show it."""
    return {
        "trial": trial.number,
        "kind": trial.kind,
        "label": trial.label,
        "state": trial.state,
        "method": trial.recipe.method,
        "weights": weights_by_group(trial),
        "options": dict(trial.recipe.options),
        "scores": {
            role: {score.objective: _score(score) for score in trial.scores(role)} for role in ROLES
        },
        "failure": {"blame": trial.failure.blame, "reason": trial.failure.reason}
        if trial.failure
        else None,
    }


def trials_document(snapshot: Snapshot, cursor: str) -> dict[str, Any]:
    """All trials, who is on the front, and where the events go on after this document."""
    front, volumes, chosen = [], [], None
    if has_front(snapshot):
        front, volumes, chosen = (
            [trial.number for trial in snapshot.front.front],
            snapshot.volumes,
            snapshot.knee,
        )
    return {
        "schema_version": 1,
        "objectives": objectives_document(snapshot.objectives),
        "members": list(snapshot.pool.names),
        "base": snapshot.pool.base.name if snapshot.pool.base else None,
        "front": front,
        "knee": chosen,
        "hypervolume": volumes,
        "cursor": cursor,
        "trials": [trial_entry(trial) for trial in snapshot.trials],
    }


def objectives_document(objectives: Sequence[Objective]) -> list[dict[str, Any]]:
    """Names and directions; `exact` marks what a merge costs, which has no items and no error."""
    return [
        {
            "name": objective.name,
            "direction": objective.direction,
            **({"exact": True} if objective.is_cost else {}),
        }
        for objective in objectives
    ]


def items_document(trial: Trial, role: Role, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "trial": trial.number,
        "role": role,
        "items": [
            {
                "item": outcome.item,
                "values": {name: finite(value) for name, value in outcome.values},
                "output": outcome.output[:MAX_OUTPUT],
                "num_tokens": outcome.num_tokens,
            }
            for outcome in outcomes
        ],
    }


def compare_document(
    snapshot: Snapshot,
    trials: Sequence[Trial],
    role: Role,
    outcomes: Sequence[Sequence[Outcome]],
    items: Mapping[str, Item],
) -> dict[str, Any]:
    """Each trial against the first: differences of scores, paired and flipped items.

    `items` are the run's frozen ones: their clusters are the units of the errors and their weights
    those of the scores. Where they are not known every item is one independent vote, and the note
    says so.
    """
    tables = [{outcome.item: outcome for outcome in own} for own in outcomes]
    against = [
        {
            "trial": trial.number,
            "objectives": [
                _difference(objective, trials[0], trial, role, tables[0], table, items)
                for objective in snapshot.objectives
            ],
        }
        for trial, table in zip(trials[1:], tables[1:], strict=True)
    ]
    known = all(name in items for table in tables for name in table)
    note = (
        "errors of paired differences take clusters of items as units, as the scores' own do"
        if known
        else "the run's suites are not here: paired figures take every item as independent and "
        "equally weighted"
    )
    return {
        "schema_version": 1,
        "role": role,
        "reference": trials[0].number,
        "objectives": objectives_document(snapshot.objectives),
        "members": list(snapshot.pool.names),
        "trials": [trial_entry(trial) for trial in trials],
        "against": against,
        "clustered": known,
        "note": note,
    }


def pool_document(
    snapshot: Snapshot, gram: Sequence[Sequence[float]] | None = None
) -> dict[str, Any]:
    """Members: own scores, use by the front, and the front's worth without them, as observed.

    `gram` (K, K), inner products of the members' deltas, gives `similarity`: the length of each
    delta relative to the base, and the cosines between them (null where a delta has no length).
    """
    front = snapshot.front if has_front(snapshot) else None
    own_trials = {trial.label: trial for trial in snapshot.trials if trial.kind == "member"}
    members = [
        _member_entry(snapshot, index, own_trials.get(member.name))
        for index, member in enumerate(snapshot.pool.members)
    ]
    similarity = None
    if gram and len(gram) == len(members):
        similarity = _similarity(gram)
    return {
        "schema_version": 1,
        "objectives": objectives_document(snapshot.objectives),
        "num_front": len(front.front) if front else 0,
        "hypervolume": front.hypervolume(front.front, "search") if front else None,
        "base": _base_entry(snapshot),
        "members": members,
        "similarity": similarity,
        "note": "hypervolume_without is the volume of the trials that give the member no weight: a "
        "lower bound of what a search without it would reach",
    }


def _base_entry(snapshot: Snapshot) -> dict[str, Any] | None:
    base = snapshot.pool.base
    if base is None:
        return None
    return {
        "name": base.name,
        "location": str(base.location),
        "lineage": lineage(base.location),
    }


def _member_entry(snapshot: Snapshot, index: int, own: Trial | None) -> dict[str, Any]:
    """One member of the pool; `own` is the trial that scored it by itself."""
    member = snapshot.pool.members[index]
    using: list[Trial] = []
    volume_without = None
    if has_front(snapshot):
        using = [trial for trial in snapshot.front.front if _uses(trial, index)]
        volume_without = _volume_without(snapshot, index)
    return {
        "name": member.name,
        "front_trials": [trial.number for trial in using],
        "location": str(member.location),
        "lineage": lineage(member.location),
        "trial": own.number if own else None,
        "scores": trial_entry(own)["scores"] if own else None,
        "front_uses": len(using),
        "mean_weight": finite(_mean_weight(using, index)),
        "hypervolume_without": volume_without,
    }


def _uses(trial: Trial, index: int) -> bool:
    return any(row[index] != 0.0 for row in trial.recipe.weights)


def _mean_weight(trials: Sequence[Trial], index: int) -> float:
    """Mean weight of a member over trials, each by the mean of its groups; 0 without trials."""
    if not trials:
        return 0.0
    means = []
    for trial in trials:
        rows = trial.recipe.weights
        means.append(sum(row[index] for row in rows) / len(rows))
    return sum(means) / len(means)


def _similarity(gram: Sequence[Sequence[float]]) -> dict[str, Any]:
    lengths = [math.sqrt(max(gram[index][index], 0.0)) for index in range(len(gram))]

    def cosine(a: int, b: int) -> float | None:
        if not (lengths[a] > 0 and lengths[b] > 0):
            return None
        return round(gram[a][b] / (lengths[a] * lengths[b]), 4)

    indices = range(len(gram))
    return {
        "relative_length": [finite(length) for length in lengths],
        "cosines": [[cosine(a, b) for b in indices] for a in indices],
    }


def read_numbers(text: str) -> list[int]:
    """2 to 4 distinct trial numbers. Raises UsageError."""
    words = text.split(",")
    if (
        not 2 <= len(words) <= 4
        or not all(word.isascii() and word.isdigit() and len(word) < 9 for word in words)
        or len(set(map(int, words))) != len(words)
    ):
        raise UsageError(
            Problem(
                thing="trials",
                cause="not 2 to 4 different trial numbers",
                remedy="Write trials=3,17",
            )
        )
    return [int(word) for word in words]


def read_number(text: str) -> int:
    """A trial's number as it stands in an address: 3, and neither 3.0 nor 03.

    Raises NotFoundError.
    """
    if not re.fullmatch("0|[1-9][0-9]{0,7}", str(text)):
        raise NotFoundError(
            Problem(
                thing=f"trial {str(text)[:40]!r}",
                cause="is no trial's number",
                remedy="GET trials lists them",
            )
        )
    return int(text)


def has_front(snapshot: Snapshot) -> bool:
    return snapshot.has_front


def _volume_without(snapshot: Snapshot, index: int) -> float | None:
    rest = [trial for trial in snapshot.front.trials if not _uses(trial, index)]
    return snapshot.front.hypervolume(rest, "search") if rest else 0.0


def _score(score: Score) -> dict[str, Any]:
    return {"value": finite(score.value), "stderr": finite(score.stderr), "n": score.n}


def _difference(
    objective: Objective,
    first: Trial,
    other: Trial,
    role: Role,
    a: dict[str, Outcome],
    b: dict[str, Outcome],
    items: Mapping[str, Item],
) -> dict[str, Any]:
    reference = find_score(first, role, objective.name)
    score = find_score(other, role, objective.name)
    if reference is None or score is None:
        raise NotFoundError(
            Problem(
                thing=f"trials {first.number} and {other.number}",
                cause=f"are not both scored on {role}",
                remedy="Holdout is scored for the front when the budget is spent",
            )
        )
    found: dict[str, Any] = {
        "objective": objective.name,
        "score_difference": finite(score.value - reference.value),
        "paired": None,
        "flips": None,
    }
    if objective.is_cost:  # it has no items
        return found
    values, reference_values = _values_of(objective, b), _values_of(objective, a)
    common = values.keys() & reference_values.keys()
    if not common:
        return found
    known = clusters_and_weights(items, common, objective.metric)
    clusters, weights = known or (None, None)
    paired = paired_difference(values, reference_values, clusters, weights)
    num_clusters = len(set(clusters.values())) if clusters else paired.n
    found["paired"] = {
        "difference": finite(paired.difference),
        "stderr": finite(paired.stderr),
        "low": finite(paired.low),
        "high": finite(paired.high),
        "p_value": finite(paired.p_value),
        "n": paired.n,
        "num_clusters": num_clusters,
        "distinguishable": paired.distinguishable,
    }
    if {*values.values(), *reference_values.values()} <= {0.0, 1.0}:
        flips = mcnemar(values, reference_values)
        found["flips"] = _flips(flips, b, a, items, independent=num_clusters == paired.n)
    return found


def _flips(
    flips: Flips,
    b: dict[str, Outcome],
    a: dict[str, Outcome],
    items: Mapping[str, Item],
    *,
    independent: bool,
) -> dict[str, Any]:
    """Flipped items with question, right answer and both outputs.

    McNemar's p is null where clusters make it too small.
    """

    def told(names: Sequence[Any]) -> list[dict[str, str]]:
        return [
            {
                "item": name,
                "prompt": items[name].prompt[-MAX_OUTPUT:] if name in items else "",
                "gold": items[name].gold[:MAX_OUTPUT] if name in items else "",
                "reference_output": a[name].output[:MAX_OUTPUT],
                "output": b[name].output[:MAX_OUTPUT],
            }
            for name in names[:MAX_FLIPS]
        ]

    return {
        "num_gained": len(flips.a_only),
        "num_lost": len(flips.b_only),
        "num_both": flips.both,
        "num_neither": flips.neither,
        "p_value": flips.p_value if independent else None,
        "gained": told(flips.a_only),
        "lost": told(flips.b_only),
    }


def find_score(trial: Trial, role: Role, name: str) -> Score | None:
    """Score of a trial for an objective by its name; None when it has none."""
    return next((score for score in trial.scores(role) if score.objective == name), None)


def _values_of(objective: Objective, table: dict[str, Outcome]) -> dict[Hashable, float]:
    """Item to value, of the items of an objective: an item's id is SUITE/TASK/NAME."""
    prefix = f"{objective.suite}/{objective.task}/" if objective.task else f"{objective.suite}/"
    found: dict[Hashable, float] = {}
    for item, outcome in table.items():
        values = dict(outcome.values)
        if item.startswith(prefix) and objective.metric in values:
            found[item] = values[objective.metric]
    return found
