"""The bench of weights in groups: its merges are those of the plain bench where all rows are alike,
and its arms cost the same.
"""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.search.groups import LAYERS, GroupedPool, cell, search, table
from benchmarks.search.networks import SIZES, network_pool


@pytest.mark.parametrize("groups", [2, 3, 4])
def test_rows_that_are_alike_are_one_row(groups: int) -> None:
    assert sorted(sum(LAYERS[groups], [])) == list(range(len(SIZES)))
    plain, pool, rng = network_pool(3, 0), GroupedPool(3, groups, 0), np.random.default_rng(0)
    rows = rng.dirichlet(np.ones(3), 4)
    assert pool.truth(np.tile(rows, groups)) == pytest.approx(
        plain.truth(rows), abs=2e-3
    )  # an item or two of 2,000: sums in another order
    assert pool.score(np.tile(rows[0], groups))[0] == pytest.approx(
        plain.score(rows[0], rng)[0], abs=1e-2
    )
    apart = pool.truth(np.concatenate([rows[0], *[rows[1]] * (groups - 1)])[None])
    assert (
        np.abs(apart - plain.truth(rows[:1])).max() > 1e-3
        or np.abs(apart - plain.truth(rows[1:2])).max() > 1e-3
    )


def test_every_arm_has_the_same_trials_and_a_row_is_one_until_the_switch() -> None:
    pool = GroupedPool(3, 2, 0)
    points, shipped, _ = search(pool, 5, 8, (1.0, 1.0), 0)
    rows = points.reshape(len(points), 2, 3)
    assert len(points) == 4 + 8 and list(shipped) == [8] and rows.sum(axis=2) == pytest.approx(1.0)
    assert (rows[: 4 + 5, 0] == rows[: 4 + 5, 1]).all() and (
        rows[4 + 5 :, 0] != rows[4 + 5 :, 1]
    ).any()
    done = cell(2, 3, 6, {"global": 6, "cold": 0, "warm 3": 3}, (1.0, 1.0), 0)
    assert [row["arm"] for row in done] == ["global", "cold", "warm 3"] and {
        row["trials"] for row in done
    } == {6}
    assert (
        all(0 < row["shipped"] <= row["all"] + 1e-9 <= 1 + 2e-9 for row in done)
        and done[0]["apart"] == 0.0
    )
    assert "| 2 | 6 | cold |" in table(done)
