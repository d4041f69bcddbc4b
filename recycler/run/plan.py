"""What a job will ask, cost and be able to tell apart, before anything heavy is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any

from recycler.ledger import Ledger
from recycler.objectives.stats import MDE_FACTOR, minimal_detectable_difference, paired_difference
from recycler.run.prepared import PreparedJob
from recycler.scoring.frozen import expected_tokens
from recycler.scoring.scorers import SCORERS, item_weight, items_of
from recycler.scoring.subsets import draw
from recycler.types import Item, Objective, Role

DISCORDANCE = (
    0.15  # share of items on which two merges of a pool disagree, until members have been scored
)
MAX_TRIALS = 60  # of an earlier run that are read for its speed
Outcomes = Mapping[str, Mapping[str, Mapping[str, float]]]  # member -> item -> metric -> value


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What an earlier run of the same items tells: seconds a search item took, and the members'
    outcomes by item.
    """

    seconds_per_item: float | None
    members: Outcomes


def read_earlier(ledger: Ledger, prepared: PreparedJob) -> Earlier:
    """Figures of a run over the same items; none where its suites are others."""
    known = {item.id for item in prepared.items}
    scored = [trial for trial in ledger.trials() if trial.state == "SCORED"]
    members, asked = {}, 0
    for trial in [trial for trial in scored if trial.kind == "member"] + [
        trial for trial in scored if trial.kind != "member"
    ][:MAX_TRIALS]:
        outcomes = {
            outcome.item: dict(outcome.values)
            for outcome in ledger.outcomes(trial.number, "search")
        }
        if not outcomes.keys() <= known:
            return Earlier(seconds_per_item=None, members={})
        asked += len(outcomes)
        if trial.kind == "member":
            members[trial.label] = outcomes
    read = len(members) + min(MAX_TRIALS, len(scored) - len(members))
    seconds = ledger.spent()[1]
    return Earlier(
        seconds_per_item=seconds * read / len(scored) / asked if asked and seconds else None,
        members=members,
    )


def plan_job(prepared: PreparedJob, earlier: Earlier | None = None) -> dict[str, Any]:
    """The plan as the one JSON document of `recycler plan --json`: trials, items, tokens, what can
    be told apart, and time.

    Tokens: `prompt` are read, `new_at_most` generated when every answer runs to its limit,
    `expected` is a guess from the lengths of the gold answers, `forced` are read to be scored. Time
    only with an earlier run that took some.
    """
    search, holdout = (
        [item for item in prepared.items if item.role == role] for role in ("search", "holdout")
    )
    per_task, members = prepared.job.fidelity.items_per_task, len(prepared.pool.members)
    drawn = draw(search, prepared.job.seed, least=per_task) if per_task else search
    fixed = (
        members + bool(prepared.pool.base) + 1 + 1 + (members - 1)
    )  # members, base, uniform soup, best of each, steps of the greedy soup
    trials = {
        "baselines_at_most": fixed,
        "proposed": prepared.job.budget.trials,
        "finalists_at_least": members + 2,
    }
    asked = (
        fixed * len(search)
        + trials["proposed"] * len(drawn)
        + trials["finalists_at_least"] * len(holdout)
    )
    seconds = earlier.seconds_per_item if earlier else None
    return {
        "schema_version": 1,
        "name": prepared.job.name,
        "trials": trials,
        "baseline_trial": _cost(search),
        "proposed_trial": _cost(drawn),
        "holdout_trial": _cost(holdout),
        "job": {
            "items": asked,
            **{
                key: fixed * whole + trials["proposed"] * part + trials["finalists_at_least"] * held
                for (key, whole), part, held in zip(
                    _cost(search)["tokens"].items(),
                    _cost(drawn)["tokens"].values(),
                    _cost(holdout)["tokens"].values(),
                    strict=True,
                )
            },
        },
        "tasks": _tasks(prepared.items),
        "objectives": [
            visible_difference(objective, prepared.items, earlier.members if earlier else {})
            for objective in prepared.benchmarks
        ],
        "seconds": None
        if seconds is None
        else {
            "baseline_trial": round(seconds * len(search)),
            "proposed_trial": round(seconds * len(drawn)),
            "job_on_one_worker": round(seconds * asked),
            "job": round(seconds * asked / prepared.job.engine.workers),
        },
    }


def visible_difference(
    objective: Objective, items: Sequence[Item], members: Outcomes
) -> dict[str, Any]:
    """Smallest difference between two merges that a paired test on these items finds four times in
    five, by split.

    From the members' outcomes where there are some (median over pairs of them); else for a
    right-or-wrong metric from a guessed discordance; None for other metrics, whose spread nobody
    knows yet.
    """
    own = items_of(objective, items)
    splits: dict[str, Any] = {}
    for role in ("search", "holdout"):
        chosen = [item for item in own if item.role == role]
        splits[role] = {
            "items": len(chosen),
            "problems": len({item.cluster for item in chosen}),
            "difference": _smallest(objective, chosen, own, role, members),
        }
    return {"name": objective.name, **splits, "measured": bool(members)}


def plan_text(plan: Mapping[str, Any]) -> str:
    """The plan for people."""
    trials, job = plan["trials"], plan["job"]
    lines = [
        f"{plan['name']}: {trials['baselines_at_most']} baselines at most, {trials['proposed']} "
        f"proposed merges, {trials['finalists_at_least']} finalists at least on the holdout"
    ]
    for what, title in (
        ("baseline_trial", "a baseline"),
        ("proposed_trial", "a proposed merge"),
        ("holdout_trial", "a finalist on the holdout"),
    ):
        cost = plan[what]
        lines.append(f"{title}: {cost['items']:,} items, {_tokens(cost['tokens'])}")
    lines.append(f"the job: {job['items']:,} items, {_tokens(job)}")
    lines += visible_lines(plan["objectives"])
    seconds = plan["seconds"]
    lines.append(
        "time: unknown until members have been scored; then recycler plan JOB --dir RUN tells"
        if seconds is None
        else f"time: {seconds['baseline_trial']:,} s a baseline, {seconds['proposed_trial']:,} s "
        f"a proposed merge; about {_hours(seconds['job'])} in all"
    )
    return "\n".join(lines)


def visible_lines(objectives: Sequence[Mapping[str, Any]]) -> list[str]:
    """One sentence an objective on what its items can tell apart."""
    return [
        f"{entry['name']}: with these {entry['search']['items']:,} search items "
        f"{_seen(entry['search'])}; with {entry['holdout']['items']:,} holdout items "
        f"{_seen(entry['holdout'])}"
        f"{'' if entry['measured'] or entry['search']['difference'] is None else f' (two merges that disagree on {DISCORDANCE:.0%})'}"
        for entry in objectives
    ]


def _seen(split: Mapping[str, Any]) -> str:
    found = split["difference"]
    return (
        "what can be seen is known once members are scored"
        if found is None
        else f"you cannot see less than {found['points']:.1f} points"
        if "points" in found
        else f"you cannot see less than {found['value']:.3f}"
    )


def _smallest(
    objective: Objective, chosen: Sequence[Item], own: Sequence[Item], role: Role, members: Outcomes
) -> dict[str, float] | None:
    weights, clusters = (
        {item.id: item_weight(item, objective.metric) for item in own},
        {item.id: item.cluster for item in own},
    )
    problems = len({item.cluster for item in chosen})
    known = [
        {
            item: values[objective.metric]
            for item, values in outcomes.items()
            if item in weights and objective.metric in values
        }
        for outcomes in members.values()
    ]
    known = [values for values in known if values]
    is_share = not any(SCORERS[item.scorer].weight_by_bytes for item in own)
    if len(known) > 1:
        pairs = [
            paired_difference(a, b, clusters, weights).stderr for a, b in combinations(known, 2)
        ]
        asked = len({clusters[item] for item in known[0]})
        value = MDE_FACTOR * median(pairs) * (asked / problems) ** 0.5
    elif is_share:
        value = minimal_detectable_difference(problems, discordance=DISCORDANCE)
    else:
        return None
    return {"value": value, "points": 100 * value} if is_share else {"value": value}


def _cost(items: Sequence[Item]) -> dict[str, Any]:
    generated, forced = (
        [item for item in items if item.kind == "generate"],
        [item for item in items if item.kind == "loglikelihood"],
    )
    return {
        "items": len(items),
        "tokens": {
            "prompt": sum(len(item.prompt_ids) for item in generated)
            + sum(len(item.prompt_ids) * len(item.continuations) for item in forced),
            "new_at_most": sum(item.max_new_tokens for item in generated),
            "expected": sum(expected_tokens(item) - len(item.prompt_ids) for item in generated),
            "forced": sum(len(ids) for item in forced for ids in item.continuations),
        },
    }


def _tasks(items: Sequence[Item]) -> list[dict[str, Any]]:
    found: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        if item.role == "search":
            found.setdefault((item.suite, item.task), []).append(item)
    return [{"suite": suite, "task": task, **_cost(own)} for (suite, task), own in found.items()]


def _tokens(tokens: Mapping[str, Any]) -> str:
    return (
        f"{tokens['prompt']:,} prompt tokens, {tokens['new_at_most']:,} new ones at most (about "
        f"{tokens['expected']:,}), {tokens['forced']:,} scored ones"
    )


def _hours(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} h"
        if seconds >= 5400
        else f"{seconds / 60:.0f} min"
        if seconds >= 90
        else f"{seconds:.0f} s"
    )
