"""Laws of scoring in part: honest errors, members as controls, no item asked twice, finalists
whole, and resume as ever.
"""

import numpy as np
import pytest

from fakes import OBJECTIVES, Killed
from item_search import POOL, SEARCH, ItemWorkers, fidelity, run
from recycler.objectives.stats import Z95
from recycler.results.front import read_front
from recycler.scoring.outcomes import aggregate
from recycler.specs.job import FidelitySpec


def test_killed_and_resumed_it_writes_the_same_ledger_and_asks_nothing_twice(tmp_path):
    workers = ItemWorkers()
    whole = run(tmp_path / "whole.sqlite", workers, fidelity())
    searched = [entry for entry in workers.asked if "/search" in entry[1]]
    assert len(searched) == len(set(searched))
    for kill_after in (0, 3, 9, 4, 6, 2, 1):
        with pytest.raises(Killed):
            run(tmp_path / "killed.sqlite", ItemWorkers(kill_after=kill_after), fidelity())
    assert run(tmp_path / "killed.sqlite", ItemWorkers(), fidelity()) == whole


def test_merges_see_their_own_items_baselines_and_finalists_all_of_them(tmp_path):
    trials, outcomes, _ = run(tmp_path / "run.sqlite", ItemWorkers(), fidelity())
    merges = [trial for trial in trials if trial.kind == "merge" and not trial.label]
    finalists = {
        trial.number for trial in read_front(trials, OBJECTIVES, POOL, "bfloat16").finalists
    }
    partial = [trial for trial in merges if trial.number not in finalists]
    assert partial and all(
        len(outcomes[trial.number]) == 320 for trial in trials if trial not in partial
    )
    assert all(score.n == 60 for trial in partial for score in trial.search)
    assert len(
        {frozenset(outcome.item for outcome in outcomes[trial.number]) for trial in partial}
    ) == len(partial)
    assert finalists >= {trial.number for trial in trials if trial.holdout}


@pytest.mark.long
def test_stated_errors_hold_and_members_shrink_them(tmp_path):
    trials, outcomes, _ = run(tmp_path / "run.sqlite", ItemWorkers(), fidelity(), num_merges=40)
    merges = [trial for trial in trials if trial.kind == "merge" and not trial.label]
    inside, total = 0, 0
    for trial in merges:
        truth = {
            score.objective: score.value
            for score in aggregate(
                SEARCH, ItemWorkers().answer(trial.recipe, "search", None).outcomes, OBJECTIVES
            )
        }
        for score in trial.search:
            total += score.n < 160
            inside += (
                score.n < 160 and abs(score.value - truth[score.objective]) <= Z95 * score.stderr
            )
    assert total > 40 and inside / total > 0.9
    full = {
        score.objective: score.stderr
        for trial in trials
        if trial.kind == "member"
        for score in trial.search
    }
    bits = [
        score.stderr
        for trial in merges
        for score in trial.search
        if score.n < 160 and "bits" in score.objective
    ]
    assert np.median(bits) < 1.15 * full["fake:b/bits_per_byte"], (
        "with 37 % of the items, nearly the error of all of them"
    )


def test_a_task_smaller_than_the_wish_is_asked_whole_and_all_items_are_no_draw():
    trial = type("T", (), {"is_proposed": True, "number": 3})
    assert (
        fidelity(160).drawn(trial) is None
        and fidelity(None).drawn(trial) is None
        and len(fidelity(50).drawn(trial)) == 100
    )


def test_fewer_than_fifty_items_are_refused():
    with pytest.raises(ValueError, match="50"):
        FidelitySpec(items_per_task=49)
