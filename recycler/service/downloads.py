"""All trials of a run as files:

CSV for spreadsheets, Parquet for pandas. The same columns in both.
"""

from __future__ import annotations

import csv
import io

from recycler.service.documents import ROLES
from recycler.service.store import Snapshot

Cell = int | float | str | None


def trial_columns(snapshot: Snapshot) -> dict[str, list[Cell]]:
    """One value per trial, by column.

    Number, kind, label, state, method, each score's value, stderr and items, each weight by group.
    """
    columns: dict[str, list[Cell]] = {
        "trial": [t.number for t in snapshot.trials],
        "kind": [t.kind for t in snapshot.trials],
        "label": [t.label for t in snapshot.trials],
        "state": [t.state for t in snapshot.trials],
    }
    scores = [
        {(role, score.objective): score for role in ROLES for score in trial.scores(role)}
        for trial in snapshot.trials
    ]
    for objective in snapshot.objectives:
        for role in ROLES:
            for part in ("value", "stderr", "n"):
                key = role, objective.name
                columns[f"{objective.name} {role} {part}"] = [
                    getattr(own[key], part) if key in own else None for own in scores
                ]
    columns["method"] = [trial.recipe.method for trial in snapshot.trials]
    weights = [
        {
            f"weight {group.name}/{member}": weight
            for group, row in zip(trial.recipe.groups, trial.recipe.weights, strict=True)
            for member, weight in zip(trial.recipe.members, row, strict=True)
        }
        for trial in snapshot.trials
    ]
    for name in dict.fromkeys(name for own in weights for name in own):
        columns[name] = [own.get(name) for own in weights]
    return columns


def trials_csv_text(snapshot: Snapshot) -> str:
    """One line a trial.

    Text cells that a spreadsheet would run as a formula get a quote before them.
    """
    columns, text = trial_columns(snapshot), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_cell(name) for name in columns])
    for row in zip(*columns.values(), strict=True):
        writer.writerow([_cell(value) for value in row])
    return text.getvalue()


def trials_parquet_bytes(snapshot: Snapshot) -> bytes:
    """One row a trial; figures that are not there are null."""
    # loads pyarrow
    import pyarrow as pa
    from pyarrow import parquet

    out = pa.BufferOutputStream()
    parquet.write_table(pa.table(trial_columns(snapshot)), out)
    return out.getvalue().to_pybytes()


def _cell(value: Cell) -> int | float | str:
    if value is None:
        return ""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value
