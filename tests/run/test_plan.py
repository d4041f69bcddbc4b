"""A plan says what is asked, what it costs and what it can tell apart, and starts nothing."""

import json

import pytest

from recycler.cli import main
from recycler.ledger import Ledger
from recycler.objectives.stats import minimal_detectable_difference
from recycler.run.plan import plan_job, read_earlier, visible_difference
from recycler.run.prepare import prepare
from recycler.search.baselines import fixed_baselines
from recycler.types import Outcome, Score, Scorecard

ACCURACY, BITS = "echo:echo/exact_match", "echo:bits/bits_per_byte"


def planned(folder, capsys, *flags):
    assert main(["plan", str(folder / "job.yaml"), "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_plan_counts_what_is_asked_and_reads_no_weights(job, capsys):
    for path in job.rglob("model.safetensors"):
        blob = bytearray(path.read_bytes())
        blob[-4096:] = b"\xff" * 4096  # NaN: a run would refuse them
        path.write_bytes(blob)
    plan = planned(job, capsys)
    assert plan["trials"] == {"baselines_at_most": 8, "proposed": 2, "finalists_at_least": 5}
    tokens = plan["baseline_trial"]["tokens"]
    assert (
        plan["baseline_trial"]["items"] == plan["holdout_trial"]["items"] == 10
        and tokens["new_at_most"] == 20
        and 0 < tokens["expected"] <= 20
        and tokens["forced"] >= 5
    )
    assert (
        plan["job"]["items"] == 10 * 10 + 5 * 10
        and plan["job"]["new_at_most"] == 10 * 20 + 5 * 20
        and plan["seconds"] is None
    )
    assert main(["plan", str(job / "job.yaml")]) == 0
    shown = capsys.readouterr().out
    assert (
        "with these 5 search items you cannot see less than 30.3 points" in shown
        and "known once members are scored" in shown
    )


def test_a_plan_warns_of_what_a_run_warns_of(job, capsys):
    path = job / "echo.jsonl"
    path.write_text(path.read_text().replace('"7+7"', '"2 + 2"'))
    planned(job, capsys)
    assert main(["plan", str(job / "job.yaml")]) == 0
    found = capsys.readouterr()
    notes = [line for line in found.err.splitlines() if line.startswith("recycler: note: ")]
    assert (
        any("ask the same" in line for line in notes)
        and any(
            "echo:bits, echo:echo (5 search and 5 holdout problems): over fewer" in line
            for line in notes
        )
        and "note" not in found.out
    )
    assert notes == [
        f"recycler: note: {warning}"
        for warning in prepare(job / "job.yaml", look_inside=False).warnings
    ]


def test_a_score_warns_of_few_problems_in_the_split_that_it_scores(job, capsys):
    assert (
        main(
            [
                "score",
                str(job / "pool/members/m1"),
                "--suite",
                str(job / "echo.yaml"),
                "--role",
                "search",
                "--engine",
                "transformers",
                "--dtype",
                "float32",
                "--json",
            ]
        )
        == 0
    )
    found = capsys.readouterr()
    notes = [
        line.partition(": over")[0]
        for line in found.err.splitlines()
        if "independent problems" in line
    ]
    assert notes == ["recycler: note: echo:bits, echo:echo (5 search problems)"]
    assert json.loads(found.out)["role"] == "search"


def test_what_can_be_seen_is_guessed_before_and_measured_after_members_are_scored(
    job, capsys, tmp_path
):
    prepared = prepare(job / "job.yaml", look_inside=False)
    guesses = {
        entry["name"]: entry["search"]["difference"] for entry in planned(job, capsys)["objectives"]
    }
    assert (
        guesses[ACCURACY]["value"]
        == pytest.approx(minimal_detectable_difference(5, discordance=0.15))
        and guesses[BITS] is None
    )
    ledger = Ledger(tmp_path / "ledger.sqlite")
    search = [item for item in prepared.items if item.role == "search"]
    for number, baseline in enumerate(fixed_baselines(prepared.pool, "bfloat16")[:3]):
        ledger.open_trial(number, baseline.kind, baseline.recipe, label=baseline.label)
        outcomes = tuple(
            Outcome(
                item=item.id,
                values=(
                    (
                        "exact_match" if item.kind == "generate" else "bits_per_byte",
                        float((index + number) % 2),
                    ),
                ),
            )
            for index, item in enumerate(search)
        )
        scores = tuple(
            Score(objective=objective.name, value=0.5, stderr=0.1, n=5)
            for objective in prepared.objectives
        )
        ledger.close_trial(
            number,
            Scorecard(
                role="search",
                scores=scores,
                outcomes=outcomes,
                weights_digest="w",
                engine_fingerprint="f",
                merge_seconds=4.0,
                score_seconds=16.0,
            ),
        )
    plan = plan_job(prepared, read_earlier(ledger, prepared))
    assert plan["seconds"] == {
        "baseline_trial": 20,
        "proposed_trial": 20,
        "job_on_one_worker": 300,
        "job": 300,
    }
    found = {entry["name"]: entry["search"]["difference"]["value"] for entry in plan["objectives"]}
    assert found[BITS] > 0 and found[ACCURACY] > guesses[ACCURACY]["value"], (
        "these members disagree on every item, not on 15 %"
    )


def test_items_of_one_problem_count_once(job):
    prepared = prepare(job / "job.yaml", look_inside=False)
    import dataclasses

    merged = [
        dataclasses.replace(item, cluster=f"{item.role}-{index // 2}")
        for index, item in enumerate(prepared.items)
    ]
    assert visible_difference(prepared.objectives[0], merged, {})["search"]["problems"] < 5
