"""Subset scores with control variates against full scores, from a ledger: nothing is decoded again.

    python benchmarks/subsets/run.py LEDGER FROZEN_SUITE.jsonl [SHARE ...]

Every merge of the ledger was scored on all search items. For each share (0.25 and 0.5 by default) and 20 seeds a subset of
its outcomes is drawn, its score estimated with the members' outcomes as controls, and held against the score on all items.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from recycler.evaluate import aggregate
from recycler.ledger.ledger import Ledger
from recycler.scoring.frozen import read_frozen
from recycler.scoring.scorers import item_metrics
from recycler.scoring.subsets import draw, estimate
from recycler.stats import Z95
from recycler.types import Objective

NUM_SEEDS = 20


def main(ledger_path: str, suite_path: str, *shares: str) -> None:
    ledger = Ledger(Path(ledger_path), create=False)
    items = read_frozen(Path(suite_path)).select("search")
    scored = [trial for trial in ledger.trials() if trial.state == "SCORED"]
    outcomes = {trial.number: ledger.outcomes(trial.number, "search") for trial in scored}
    members = [trial for trial in scored if trial.kind == "member"]
    merges = [trial for trial in scored if trial.kind == "merge"]
    print("task metric share items trials coverage bias/stderr variance_ratio_claimed variance_ratio_real rmse")
    for task, metric in sorted({(item.task, metric) for item in items for metric in item_metrics(item)}):
        own = [item for item in items if item.task == task]
        objective = Objective(suite=own[0].suite, task=task, metric=metric, direction="maximize")
        controls = [{outcome.item: dict(outcome.values)[metric] for outcome in outcomes[trial.number] if metric in dict(outcome.values)} for trial in members]
        for share in map(float, shares or ("0.25", "0.5")):
            told = [_gap(own, outcomes[trial.number], objective, controls, 1000 * trial.number + seed, share) for trial in merges for seed in range(NUM_SEEDS)]
            gaps, errors, plain_gaps, claimed, count = map(np.array, zip(*told, strict=True))
            real = (gaps**2).mean() / max(1e-18, (plain_gaps**2).mean())
            print(task, metric, share, int(count.mean()), len(merges), f"{(np.abs(gaps) <= Z95 * errors + 1e-12).mean():.3f}", f"{gaps.mean() / max(1e-12, errors.mean()):+.3f}",
                  f"{claimed.mean():.3f}", f"{real:.3f}", f"{np.sqrt((gaps**2).mean()):.4f}")


def _gap(items, outcomes, objective, controls, seed, share):
    """(estimate minus truth, its error, plain subset mean minus truth, claimed variance ratio, items scored)."""
    (truth,) = aggregate(items, outcomes, [objective])
    chosen = {item.id for item in draw(items, seed, share)}
    told = [outcome for outcome in outcomes if outcome.item in chosen]
    found, plain = estimate(items, told, objective, controls), estimate(items, told, objective)
    return found.score.value - truth.value, found.score.stderr, plain.score.value - truth.value, found.variance_ratio, found.score.n


if __name__ == "__main__":
    main(*sys.argv[1:])
