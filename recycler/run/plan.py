"""The plan of a job before anything heavy starts: its items, tokens, time, and power to compare."""

from __future__ import annotations

from collections.abc import Container, Hashable, Mapping, Sequence
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
from recycler.types import Item, Objective, Role, scored_members, scored_trials

# share of items on which two merges of a pool disagree, until members have been scored
DISCORDANCE = 0.15
MAX_TRIALS = 60  # of an earlier run that are read for its speed
Outcomes = Mapping[str, Mapping[str, Mapping[str, float]]]  # member -> item -> metric -> value


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """Figures of an earlier run of the same items.

    They are the seconds that a search item took, and the members' outcomes by item.
    """

    seconds_per_item: float | None
    members: Outcomes


def read_earlier(ledger: Ledger, prepared: PreparedJob) -> Earlier:
    """Figures of a run over the same items; none where its suites are others."""
    known = {item.id for item in prepared.items}
    scored = scored_trials(ledger.trials())
    own = scored_members(scored)
    others = [trial for trial in scored if trial.kind != "member"]
    members, asked = {}, 0
    for trial in (*own, *others[:MAX_TRIALS]):
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
    seconds, seconds_per_item = ledger.spent()[1], None
    if asked and seconds:
        seconds_per_item = seconds * read / len(scored) / asked
    return Earlier(seconds_per_item=seconds_per_item, members=members)


def plan_job(prepared: PreparedJob, earlier: Earlier | None = None) -> dict[str, Any]:
    """The plan as the one JSON document of `recycler plan --json`.

    It tells trials, items, tokens, the differences that can be seen, and time. Tokens: `prompt` are
    read, `new_at_most` generated when every answer runs to its limit, `expected` is a guess from
    the lengths of the gold answers, `forced` are read to be scored. Time is told only with an
    earlier run that took some.
    """
    job, num_members = prepared.job, len(prepared.pool.members)
    search = [item for item in prepared.items if item.role == "search"]
    holdout = [item for item in prepared.items if item.role == "holdout"]
    per_task = job.fidelity.items_per_task
    drawn = draw(search, job.seed, least=per_task) if per_task else search
    # members, base, uniform soup, best of each, steps of the greedy soup
    fixed = num_members + bool(prepared.pool.base) + 1 + 1 + (num_members - 1)
    proposed, finalists = job.budget.trials, num_members + 2

    def over_all(baseline: int, proposal: int, final: int) -> int:
        return fixed * baseline + proposed * proposal + finalists * final

    costs = [_cost(items) for items in (search, drawn, holdout)]
    tokens = [cost["tokens"] for cost in costs]
    asked = over_all(len(search), len(drawn), len(holdout))
    return {
        "schema_version": 1,
        "name": job.name,
        "trials": {
            "baselines_at_most": fixed,
            "proposed": proposed,
            "finalists_at_least": finalists,
        },
        "baseline_trial": costs[0],
        "proposed_trial": costs[1],
        "holdout_trial": costs[2],
        "job": {
            "items": asked,
            **{key: over_all(*(own[key] for own in tokens)) for key in tokens[0]},
        },
        "tasks": _tasks(prepared.items),
        "objectives": [
            visible_difference(objective, prepared.items, earlier.members if earlier else {})
            for objective in prepared.benchmarks
        ],
        "seconds": _seconds(earlier, job.engine.workers, len(search), len(drawn), asked),
    }


def _seconds(
    earlier: Earlier | None, num_workers: int, baseline: int, proposal: int, whole: int
) -> dict[str, int] | None:
    """Seconds for the items of a baseline, of a proposal and of the whole job."""
    if earlier is None or earlier.seconds_per_item is None:
        return None
    each = earlier.seconds_per_item
    return {
        "baseline_trial": round(each * baseline),
        "proposed_trial": round(each * proposal),
        "job_on_one_worker": round(each * whole),
        "job": round(each * whole / num_workers),
    }


def visible_difference(
    objective: Objective, items: Sequence[Item], members: Outcomes
) -> dict[str, Any]:
    """Minimal detectable difference of two merges at 80 % power, by split, for a paired test.

    It comes from the members' outcomes where there are some (median over pairs of them); else for a
    right-or-wrong metric from a guessed discordance; None for other metrics, whose spread is not
    known yet.
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
    """The plan in words."""
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
    lines.append(_time_line(plan["seconds"]))
    return "\n".join(lines)


def _time_line(seconds: Mapping[str, int] | None) -> str:
    if seconds is None:
        return (
            "time: unknown until members have been scored; then recycler plan JOB --dir RUN tells"
        )
    return (
        f"time: {seconds['baseline_trial']:,} s a baseline, {seconds['proposed_trial']:,} s a "
        f"proposed merge; about {_hours(seconds['job'])} in all"
    )


def visible_lines(objectives: Sequence[Mapping[str, Any]]) -> list[str]:
    """One sentence per objective on the smallest difference that its items can show."""
    lines = []
    for entry in objectives:
        search, holdout, guess = entry["search"], entry["holdout"], ""
        if not entry["measured"] and search["difference"] is not None:
            guess = f" (two merges that disagree on {DISCORDANCE:.0%})"
        lines.append(
            f"{entry['name']}: with these {search['items']:,} search items {_seen(search)}; with "
            f"{holdout['items']:,} holdout items {_seen(holdout)}{guess}"
        )
    return lines


def _seen(split: Mapping[str, Any]) -> str:
    found = split["difference"]
    if found is None:
        return "what can be seen is known once members are scored"
    least = f"{found['points']:.1f} points" if "points" in found else f"{found['value']:.3f}"
    return f"you cannot see less than {least}"


def _smallest(
    objective: Objective, chosen: Sequence[Item], own: Sequence[Item], role: Role, members: Outcomes
) -> dict[str, float] | None:
    weights: dict[Hashable, float] = {item.id: item_weight(item, objective.metric) for item in own}
    clusters: dict[Hashable, str] = {item.id: item.cluster for item in own}
    problems = len({item.cluster for item in chosen})
    known = [
        values
        for outcomes in members.values()
        if (values := _values(outcomes, objective.metric, weights))
    ]
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


def _values(
    outcomes: Mapping[str, Mapping[str, float]], metric: str, items: Container[Hashable]
) -> dict[Hashable, float]:
    """Values of one metric by item, for those items that have one."""
    return {
        item: values[metric]
        for item, values in outcomes.items()
        if item in items and metric in values
    }


def _cost(items: Sequence[Item]) -> dict[str, Any]:
    tokens = {"prompt": 0, "new_at_most": 0, "expected": 0, "forced": 0}
    for item in items:
        num_prompt = len(item.prompt_ids)
        if item.kind == "generate":
            tokens["prompt"] += num_prompt
            tokens["new_at_most"] += item.max_new_tokens
            tokens["expected"] += expected_tokens(item) - num_prompt
        else:
            tokens["prompt"] += num_prompt * len(item.continuations)
            tokens["forced"] += sum(map(len, item.continuations))
    return {"items": len(items), "tokens": tokens}


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
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 90:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s"
