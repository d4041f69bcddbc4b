"""Read a run into pandas: a row for each trial, or a row for each item that a trial answered.

    python examples/run_to_pandas.py RUN
    python examples/run_to_pandas.py RUN --items 17 --parquet items.parquet

RUN is a run folder, `postgresql://...?job=ID`, or a job's id. A ledger may be read while its run
goes on.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd

from recycler.ledger import Ledger
from recycler.ledger.runs import open_ledger
from recycler.types import Trial


def main() -> None:
    parser = argparse.ArgumentParser(description="Read a run into pandas.")
    parser.add_argument("run")
    parser.add_argument("--items", type=int, metavar="N", help="the items of trial N")
    parser.add_argument("--parquet", type=Path, metavar="FILE", help="write the table there")
    arguments = parser.parse_args()
    with closing(open_ledger(arguments.run)) as ledger:
        table = trials(ledger) if arguments.items is None else items(ledger, arguments.items)
    print(table.to_string(max_rows=20, max_cols=12))
    if arguments.parquet:
        table.to_parquet(arguments.parquet)


def trials(ledger: Ledger) -> pd.DataFrame:
    """A row for each trial: state, weights (NaN for the base), scores and their errors."""
    return pd.DataFrame([trial_row(trial) for trial in ledger.trials()]).set_index("trial")


def trial_row(trial: Trial) -> dict[str, Any]:
    row = {
        "trial": trial.number,
        "kind": trial.kind,
        "label": trial.label,
        "state": trial.state,
        "method": trial.recipe.method,
    }
    for group, weights in zip(trial.recipe.groups, trial.recipe.weights, strict=True):
        for member, weight in zip(trial.recipe.members, weights, strict=True):
            row[f"weight {group.name}/{member}"] = weight
    for role in ("search", "holdout"):
        for score in trial.scores(role):
            row[f"{role} {score.objective}"] = score.value
            row[f"{role} {score.objective} stderr"] = score.stderr
    return row


def items(ledger: Ledger, number: int) -> pd.DataFrame:
    """A row for each search item that trial `number` answered: its values, and what was said."""
    rows = [
        {"item": outcome.item, **dict(outcome.values), "output": outcome.output}
        for outcome in ledger.outcomes(number, "search")
    ]
    return pd.DataFrame(rows).set_index("item")


if __name__ == "__main__":
    main()
