"""Laws of the loop: killed and restarted it writes the ledger it would have written; failures never
become scores.
"""

from dataclasses import replace

import numpy as np
import pytest

from fake_search import POOL, planner, run
from fakes import OBJECTIVES, FakeWorkers, Killed
from recycler.errors import InfrastructureError
from recycler.ledger import Ledger
from recycler.results.documents import front_document
from recycler.results.front import read_front
from recycler.run.loop import search
from recycler.run.plateau import Plateau
from recycler.search.floors import floors
from recycler.search.outlook import GainForecast, SmallGain
from recycler.search.simplex.proposer import SimplexProposer
from recycler.specs.job import ObjectiveSpec
from recycler.types import Smoothed


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3", "random", "paper", "simplex_gp"])
def test_killed_search_resumes_with_the_same_front_and_ledger(tmp_path, sampler):
    whole = run(tmp_path / "whole.sqlite", FakeWorkers(), sampler)
    path = tmp_path / "killed.sqlite"
    for kill_after in (0, 1, 2, 5, 3, 4):
        with pytest.raises(Killed):
            run(path, FakeWorkers(kill_after=kill_after), sampler)
    assert run(path, FakeWorkers(), sampler) == whole
    ours, theirs = Ledger(path).trials(), Ledger(tmp_path / "whole.sqlite").trials()
    assert ours == theirs
    assert [trial.number for trial in ours] == list(range(len(ours)))
    assert {trial.state for trial in ours} == {"SCORED"}


def test_each_trial_is_scored_once_by_many_workers(tmp_path):
    workers = FakeWorkers(num_workers=5)
    run(tmp_path / "many.sqlite", workers)
    searched = [number for number, role in workers.seen if role == "search"]
    assert len(searched) == len(set(searched))


def test_baselines_come_first_and_the_budget_counts_only_proposals(tmp_path):
    run(tmp_path / "run.sqlite", FakeWorkers(), num_merges=3)
    trials = Ledger(tmp_path / "run.sqlite").trials()
    assert [trial.kind for trial in trials[:6]] == ["member"] * 4 + ["base", "uniform_soup"]
    assert sum(trial.kind == "merge" and trial.label == "" for trial in trials) == 3


def test_a_broken_recipe_fails_for_good_and_is_not_told_as_a_score(tmp_path):
    run(tmp_path / "run.sqlite", FakeWorkers(break_numbers=frozenset({11})))
    trial = Ledger(tmp_path / "run.sqlite").trials()[11]
    assert trial.state == "FAILED" and trial.search == () and trial.failure.blame == "recipe"


def test_a_system_that_keeps_failing_stops_the_job_and_keeps_what_is_scored(tmp_path):
    with pytest.raises(InfrastructureError, match="broken on purpose"):
        run(
            tmp_path / "run.sqlite",
            FakeWorkers(break_numbers=frozenset(range(11, 99)), blame="system"),
        )
    assert sum(trial.state == "SCORED" for trial in Ledger(tmp_path / "run.sqlite").trials()) == 11


def test_front_beats_members_and_soups_by_volume(tmp_path):
    import json

    document = json.loads(run(tmp_path / "run.sqlite", FakeWorkers(), num_merges=30))
    assert document["hypervolume"]["holdout"] > max(
        volume["holdout"] for volume in document["baseline_hypervolume"].values()
    )


def test_the_shipped_front_is_picked_by_all_trials_together_and_a_lucky_score_is_seen_through(
    tmp_path,
):
    ledger = Ledger(tmp_path / "run.sqlite")
    trials = list(
        search(
            planner("random", 40),
            ledger,
            FakeWorkers(),
            within_budget=lambda: True,
            listen=lambda event: None,
        )
    )
    plain = read_front(trials, OBJECTIVES, POOL, "bfloat16")
    best = max(trial.search[0].value for trial in trials)
    lucky = next(
        trial
        for trial in trials
        if trial.kind == "merge"
        and trial not in plain.observed
        and best - 0.2 < trial.search[0].value < best - 0.1
    )
    rng = np.random.default_rng(0)
    noisy = [
        replace(
            trial,
            search=tuple(
                replace(
                    score,
                    stderr=0.05,
                    value=best + 0.1
                    if trial is lucky and score is trial.search[0]
                    else score.value + 0.05 * rng.standard_normal(),
                )
                for score in trial.search
            ),
        )
        for trial in trials
    ]
    smoother = SimplexProposer(planner().space, OBJECTIVES, seed=0)
    ledger.facts.smoothed = smoother.smoothed(noisy)
    front = read_front(noisy, OBJECTIVES, POOL, "bfloat16", smoothed=ledger.facts.smoothed)
    ledger.close()
    assert front.smoothed == smoother.smoothed(noisy)
    assert lucky.number in [trial.number for trial in front.observed]
    told, posterior = best + 0.1, front.smoothed.get(lucky.number)[0].value
    assert abs(posterior - lucky.search[0].value) < abs(told - lucky.search[0].value) / 2
    assert {trial.number for trial in (*front.front, *front.observed)} <= {
        trial.number for trial in front.finalists
    }
    document = front_document(front)
    assert document["picked_by"] == "posterior" and lucky.number in document["observed_front"]
    assert all(
        entry["scores"][OBJECTIVES[0].name]["posterior"]["stderr"] > 0
        for entry in document["front"]
        if entry["kind"] == "merge"
    )
    assert front_document(plain)["picked_by"] == "search score"


def test_few_trials_are_not_smoothed(tmp_path):
    ledger = Ledger(tmp_path / "run.sqlite")
    trials = search(
        planner("random", 1),
        ledger,
        FakeWorkers(),
        within_budget=lambda: True,
        listen=lambda event: None,
    )
    ledger.close()
    assert SimplexProposer(planner().space, OBJECTIVES, seed=0).smoothed(trials[:7]) == Smoothed()


def test_the_papers_search_climbs_the_average(tmp_path):
    """Khalifa et al. 2024 maximise the mean of the benchmarks: the second half of the proposals is
    better at that than the first.
    """
    ledger = Ledger(tmp_path / "run.sqlite")
    trials = search(
        planner("paper", 96),
        ledger,
        FakeWorkers(),
        within_budget=lambda: True,
        listen=lambda event: None,
    )
    ledger.close()
    proposed = [trial for trial in trials if trial.params]
    means = [
        sum(
            score.value if objective.direction == "maximize" else -score.value
            for objective, score in zip(OBJECTIVES, trial.search, strict=True)
        )
        / 2
        for trial in proposed
    ]
    assert len(proposed) == 96
    assert np.mean(means[48:]) > np.mean(means[:48]) + np.std(means[:48]) / 2


def test_what_lies_below_a_floor_is_not_shipped_and_not_searched_for(tmp_path):
    ledger = Ledger(tmp_path / "run.sqlite")
    trials = search(
        planner("random", 30),
        ledger,
        FakeWorkers(),
        within_budget=lambda: True,
        listen=lambda event: None,
    )
    ledger.close()
    first, second = OBJECTIVES
    best = max(trial.search[0].value for trial in trials if trial.kind == "member")
    demanding = (replace(first, floor="best - 0.05"), second)
    assert floors(demanding, trials)[0] == pytest.approx(best - 0.05) and np.isnan(
        floors(demanding, trials)[1]
    )
    assert np.isnan(floors(demanding, ())).all()  # nothing is scored yet
    front = read_front(trials, demanding, POOL, "bfloat16")
    assert front.floors_kept and all(trial.search[0].value >= best - 0.05 for trial in front.front)
    assert any(trial.search[0].value < best - 0.05 for trial in front.observed)
    assert [entry.get("floor") for entry in front_document(front)["objectives"]] == [
        "best - 0.05",
        None,
    ]
    hopeless = read_front(trials, (replace(first, floor="2"), second), POOL, "bfloat16")
    assert not hopeless.floors_kept and hopeless.front == hopeless.observed
    worst = second.direction == "minimize" and replace(second, floor="base + 0.1")
    base = next(trial for trial in trials if trial.kind == "base")
    assert floors((first, worst), trials)[1] == pytest.approx(-(base.search[1].value + 0.1))


@pytest.mark.parametrize(
    "text, accepted",
    [
        ("base - 0.01", True),
        ("best", True),
        (0.4, True),
        (-3, True),
        ("-0.5", True),
        ("", False),
        ("base 0.1", False),
        ("worst - 1", False),
        ("base - x", False),
        (float("nan"), False),
    ],
)
def test_floors_are_read_or_refused(text, accepted):
    entry = {"suite": "a", "metric": "m", "direction": "maximize", "floor": text}
    if accepted:
        assert ObjectiveSpec.model_validate(entry).objective().floor
    else:
        with pytest.raises(ValueError):
            ObjectiveSpec.model_validate(entry)


SMOOTHER = SimplexProposer(planner().space, OBJECTIVES, seed=0)


@pytest.mark.long
@pytest.mark.parametrize(
    ("stop", "least"),
    [
        (Plateau(patience=6, smoother=SMOOTHER, objectives=OBJECTIVES), 12),
        (SmallGain(least_gain=0.05, forecast=GainForecast(proposer=SMOOTHER)), 20),
    ],
)
def test_a_search_stops_where_more_trials_add_nothing_and_stops_there_again(tmp_path, stop, least):
    settled = replace(planner("simplex_gp", 200), stops=(stop,))

    def searched(path, workers):
        ledger = Ledger(path)
        try:
            return search(
                settled, ledger, workers, within_budget=lambda: True, listen=lambda event: None
            )
        finally:
            ledger.close()

    trials = searched(tmp_path / "run.sqlite", FakeWorkers())
    proposed = [trial for trial in trials if trial.kind == "merge" and not trial.label]
    assert least <= len(proposed) < 100
    assert stop.reached(trials) and not stop.reached(trials[:-1])
    with pytest.raises(Killed):
        searched(tmp_path / "killed.sqlite", FakeWorkers(kill_after=15))
    assert searched(tmp_path / "killed.sqlite", FakeWorkers()) == trials


def test_the_driver_bench_drives(monkeypatch):
    """Its figures stand in docs/log.md; simulated workers must stay workers."""
    from benchmarks.driver import run as bench

    monkeypatch.setattr(bench, "MEAN_SECONDS", 0.004)
    figures = bench.drive("random", trials=30, num_workers=4, num_items=6, members=4)
    assert figures["trials"] > 30 and 0 < figures["busy"] <= 1
