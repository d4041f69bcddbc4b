"""The bench's tables: means over pools, pairs of the pools that both samplers have, and the
families that ours loses.
"""

from __future__ import annotations

import sys

import pandas as pd
import pytest

from benchmarks.search import tables

ROWS = [
    *(("simplex_gp", "bumps", pool, 50, 0.8 + 0.1 * pool) for pool in (0, 1)),
    *(("tpe", "bumps", pool, trials, 0.7) for pool in (0, 1, 2) for trials in (50, 200)),
    *(("nsga2", "bumps", pool, 200, 0.6) for pool in (0, 1)),
    ("simplex_gp", "ridges", 0, 50, 0.5),
    ("tpe", "ridges", 0, 50, 0.4),
    ("tpe", "ridges", 0, 200, 0.55),
    ("nsga2", "ridges", 0, 200, 0.3),
]


def test_few_trials_against_the_best_others_many_and_everybody_at_equal_trials(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    rows = pd.DataFrame(ROWS, columns=["sampler", "family", "pool", "trials", "shipped"]).assign(
        members=16
    )
    rows.to_csv(tmp_path / "rows.csv", index=False)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "tables",
            str(tmp_path / "rows.csv"),
            "--families",
            "bumps",
            "ridges",
            "--others",
            "tpe",
            "nsga2",
        ],
    )
    tables.main()
    printed = capsys.readouterr().out
    assert (
        "| bumps | 0.850 ± 0.050 | 0.700 ± 0.000 | 0.600 ± 0.000 | +0.150 ± 0.050 (tpe, 2 of 2) |"
        in printed
    )
    assert "| ridges | 0.500 | 0.550 | 0.300 | -0.050 (tpe, 0 of 1) |" in printed
    assert "| **mean** | **0.675** | **0.625** | **0.450** | **+0.050 ± 0.025** (2/3) |" in printed
    assert "| tpe | 1-2 | - | - | - | 0.550 | +0.125 ± 0.025 | 3/3 |" in printed
    assert "Lost families: none." in printed
