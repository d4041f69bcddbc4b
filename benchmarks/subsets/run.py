"""Subset scores with control variates against full scores, from a ledger: nothing is decoded again.

    python benchmarks/subsets/run.py LEDGER FROZEN_SUITE.jsonl [ITEMS_PER_TASK ...]

Every merge and soup of the ledger was scored on all search items, its finalists on the holdout
items too. For each number of items (16 and 50 by default) and 20 seeds a subset of its outcomes is
drawn, its score estimated with the members' outcomes as controls, and held against the score on all
items: of search, and of search and holdout together where there are both.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from recycler.ledger.ledger import Ledger
from recycler.objectives.stats import Z95
from recycler.scoring.frozen import read_frozen
from recycler.scoring.outcomes import aggregate
from recycler.scoring.scorers import item_metrics
from recycler.scoring.subsets import draw, estimate
from recycler.types import Objective

NUM_SEEDS = 20


def main(ledger_path: str, suite_path: str, *counts: str) -> None:
    ledger, suite = Ledger(Path(ledger_path), create=False), read_frozen(Path(suite_path))
    scored = [trial for trial in ledger.trials() if trial.state == "SCORED"]
    print(
        "population task metric items drawn recipes coverage bias/stderr variance_ratio_claimed "
        "variance_ratio_real rmse_plain rmse"
    )
    for roles in (("search",), ("search", "holdout")):
        items = [item for role in roles for item in suite.select(role)]
        whole = [trial for trial in scored if all(trial.scores(role) for role in roles)]
        outcomes = {
            trial.number: tuple(
                outcome for role in roles for outcome in ledger.outcomes(trial.number, role)
            )
            for trial in whole
        }
        members = [trial for trial in whole if trial.kind == "member"]
        others = [trial for trial in whole if trial.kind != "member"]
        for task, metric in sorted(
            {(item.task, metric) for item in items for metric in item_metrics(item)}
        ):
            own = [item for item in items if item.task == task]
            objective = Objective(
                suite=own[0].suite, task=task, metric=metric, direction="maximize"
            )
            controls = [
                {
                    outcome.item: dict(outcome.values)[metric]
                    for outcome in outcomes[trial.number]
                    if metric in dict(outcome.values)
                }
                for trial in members
            ]
            for count in map(int, counts or ("16", "50")):
                if count < len(own):
                    told = [
                        _gap(
                            own,
                            outcomes[trial.number],
                            objective,
                            controls,
                            1000 * trial.number + seed,
                            count,
                        )
                        for trial in others
                        for seed in range(NUM_SEEDS)
                    ]
                    print(
                        "+".join(roles),
                        task,
                        metric,
                        len(own),
                        *_figures(told, len(others)),
                        flush=True,
                    )


def _figures(told, num_recipes):
    gaps, errors, plain_gaps, claimed, count = map(np.array, zip(*told, strict=True))
    plain, own = (plain_gaps**2).mean(), (gaps**2).mean()
    return (
        int(count.mean()),
        num_recipes,
        f"{(np.abs(gaps) <= Z95 * errors + 1e-12).mean():.3f}",
        f"{gaps.mean() / max(1e-12, errors.mean()):+.3f}",
        f"{claimed.mean():.3f}",
        f"{own / max(1e-18, plain):.3f}",
        f"{np.sqrt(plain):.4f}",
        f"{np.sqrt(own):.4f}",
    )


def _gap(items, outcomes, objective, controls, seed, count):
    """(estimate minus truth, its error, plain subset mean minus truth, claimed variance ratio,
    items scored).
    """
    (truth,) = aggregate(items, outcomes, [objective])
    chosen = {item.id for item in draw(items, seed, least=count)}
    told = [outcome for outcome in outcomes if outcome.item in chosen]
    found, plain = estimate(items, told, objective, controls), estimate(items, told, objective)
    return (
        found.score.value - truth.value,
        found.score.stderr,
        plain.score.value - truth.value,
        found.variance_ratio,
        found.score.n,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
