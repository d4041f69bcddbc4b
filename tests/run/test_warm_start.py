"""Trials of other runs count where they can be compared, cost nothing, and are refused where they
cannot.
"""

import os
import re
from contextlib import closing

import pytest
import yaml

from fakes import JobWorkers
from recycler.errors import NotFoundError, UnsafeInputError, UsageError
from recycler.ledger import Ledger
from recycler.results.open import open_front
from recycler.run.bundle import bundle_job, check_travels
from recycler.run.driver import run_job
from recycler.run.leave_out import job_without, outcome, outcome_text, without_id
from recycler.run.prepare import prepare
from recycler.run.warm_start import LABEL
from recycler.specs.job import JobSpec, read_job
from small_job import JOB, set_job

pytestmark = pytest.mark.long


def run(folder, name, **changes):
    """The run's workers and all its trials, told on one line each."""
    set_job(folder, sampler="random", **changes)
    workers, said = JobWorkers(), []

    def make(work, num_workers):
        workers.work = work
        return workers

    run_job(
        folder / "job.yaml",
        folder / name,
        make_workers=make,
        started=lambda prepared, trials: said.extend(prepared.warnings),
    )
    with closing(Ledger(folder / name / "ledger.sqlite")) as ledger:
        return workers, ledger.trials(), said


def test_an_earlier_run_of_the_same_members_costs_nothing_and_its_merges_are_not_of_the_budget(job):
    first, before, _ = run(job, "first", budget={"trials": 4})
    second, after, said = run(job, "second", earlier=["first"], seed=1, budget={"trials": 3})
    known = {trial.recipe: trial.search for trial in before}
    taken = {trial.recipe: trial.search for trial in after if trial.recipe in known}
    assert taken == known  # with the same scores
    asked = [recipe for role, recipe in second.scored if role == "search"]
    assert len(asked) == 3 and not set(asked) & set(known)
    assert (
        sum(trial.is_proposed for trial in after) == 3
        and sum(trial.label.startswith(LABEL) for trial in after) >= 4
    )  # the soups too
    assert {trial.kind for trial in after} >= {"member", "base", "uniform_soup", "merge"} and any(
        f"{len(before)} trials of first are known already" in line for line in said
    )


def test_a_member_more_keeps_what_the_others_did(job):
    run(job, "first", pool={"members": ["pool/members/m0", "pool/members/m1"], "base": "pool/base"})
    second, after, _ = run(job, "second", earlier=["first"])
    members = [trial for trial in after if trial.kind == "member"]
    assert [trial.label for trial in members] == ["m0", "m1", "m2"]
    asked = [recipe for role, recipe in second.scored if role == "search"]
    assert [recipe.weights for recipe in asked].count(members[2].recipe.weights) == 1 and members[
        0
    ].recipe not in asked
    third, after, said = run(
        job,
        "third",
        earlier=["second"],
        pool={"members": ["pool/members/m0", "pool/members/m1"], "base": "pool/base"},
    )
    assert any("cannot be used here" in line for line in said) and all(
        len(trial.recipe.members) == 2 for trial in after
    )


def test_a_member_left_out_for_certain_spends_nothing_on_what_did_not_use_it(
    job, monkeypatch, capsys
):
    """The run's job without m1: the others' trials cost nothing, the names stay, the budget is as
    large, the front has no m1, and both fronts are measured above one corner.
    """
    (job / "space.yaml").write_text(
        "version: 1\nmembers: {m1: {min: 0.0, max: 1.0}, m2: {max: 2.0}}\nmax_nonzero: 2\n"
    )
    _, before, _ = run(job, "first", budget={"trials": 8}, space="space.yaml")
    derived = job_without(job / "first", "m1")
    assert derived.id == "first-without-m1" and job_without(str(job / "first"), "m1") == derived
    elsewhere = job / "elsewhere"  # its paths hold from anywhere
    elsewhere.mkdir()
    (elsewhere / "job.yaml").write_text(derived.text)
    workers, said = JobWorkers(), []

    def make(work, num_workers):
        workers.work = work
        return workers

    other = run_job(
        elsewhere / "job.yaml",
        elsewhere / "run",
        make_workers=make,
        data_folders=derived.data,
        started=lambda prepared, trials: said.extend(prepared.warnings),
    )
    kept = [trial for trial in before if trial.recipe.weights[0][1] == 0.0]
    asked = [recipe for role, recipe in workers.scored if role == "search"]
    assert 3 <= len(kept) < len(before) and any(
        f"{len(kept)} trials of {job / 'first'} are known already" in line for line in said
    )
    assert all(recipe.members == ("m0", "m2") for recipe in asked) and not {
        recipe.weights[0] for recipe in asked
    } & {(trial.recipe.weights[0][0], trial.recipe.weights[0][2]) for trial in kept}
    assert sum(trial.is_proposed for trial in other.trials) == 8
    front = open_front(job / "first")
    found = outcome(front, other)
    for role in ("search", "holdout"):
        assert found[role]["hypervolume"] == front.hypervolume(front.front, role) and found[role][
            "without"
        ] == front.hypervolume(other.front, role)
        assert found[role]["lost"] == 1 - found[role]["without"] / found[role]["hypervolume"]
    assert outcome(front, front)["search"]["lost"] == 0.0
    assert "search: hypervolume" in outcome_text(
        "m1", found, (0.1, 0.05, 0.2)
    ) and "expected 10.0% lost (5% to 20%)" in outcome_text("m1", found, (0.1, 0.05, 0.2))


def test_a_member_that_cannot_be_left_out_is_told(job):
    run(job, "first", budget={"trials": 1})
    with pytest.raises(NotFoundError, match="Did you mean 'm1'"):
        job_without(job / "first", "m_1")
    set_job(job, pool={"members": ["pool/members"], "without": ["m7"]})
    with pytest.raises(
        UsageError, match=r"job\.yaml:\d+: member 'm7': is to be left out, and not in the pool"
    ):
        prepare(job / "job.yaml")
    (job / "first/started.json").unlink()
    with pytest.raises(UsageError, match="has no job file here any more"):
        job_without(job / "first", "m1")
    run(
        job,
        "second",
        budget={"trials": 1},
        pool={"members": ["pool/members"], "base": "pool/base", "without": ["m1"]},
    )
    with pytest.raises(UsageError, match="is one of two"):
        job_without(job / "second", "m2")


@pytest.mark.parametrize(
    "run_id, member",
    [
        ("demo", "math-v3"),
        ("demo", "Math v3"),
        ("demo", "math_v3/x"),
        ("a" * 63, "b" * 80),
        ("Demo", "x"),
        ("--", "…"),
    ],
)
def test_the_job_without_a_member_has_one_plain_id(run_id, member):
    found = without_id(run_id, member)
    assert (
        JobSpec.model_fields["name"].metadata
        and re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", found)
        and found == without_id(run_id, member)
    )
    assert found != without_id(run_id, member + "2") and found != without_id(run_id + "2", member)


def test_resumed_it_takes_nothing_twice(job):
    run(job, "first")
    _, once, _ = run(job, "second", earlier=["first"], budget={"trials": 1})
    workers, twice, _ = run(job, "second", earlier=["first"], budget={"trials": 2})
    assert len(twice) == len(once) + 1 and sum(role == "search" for role, _ in workers.scored) == 1


def test_weights_that_changed_on_disk_are_other_weights(job):
    run(job, "first")
    path = job / "pool/members/m1/model.safetensors"
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1_000_000_000))
    second, after, said = run(job, "second", earlier=["first"])
    asked = [recipe for role, recipe in second.scored if role == "search"]
    assert all(
        recipe in asked
        for recipe in (
            trial.recipe for trial in after if trial.kind == "member" and trial.label == "m1"
        )
    )
    assert not any(
        trial.recipe in asked for trial in after if trial.kind == "member" and trial.label == "m0"
    ) and any("cannot be used here" in line for line in said)


def test_other_items_and_other_engines_are_refused_and_leave_nothing(job):
    run(job, "first")
    for changes, cause in (
        ({"engine": {"dtype": "float32"}}, "other engine: dtype bfloat16 there and float32 here"),
        (
            {
                "suites": ["other.yaml"],
                "objectives": [{**entry, "suite": "other"} for entry in JOB["objectives"]],
            },
            "other items",
        ),
    ):
        suite = yaml.safe_load((job / "echo.yaml").read_text())
        suite["tasks"]["echo"]["search"] = {"rows": [0, 4]}
        (job / "other.yaml").write_text(yaml.safe_dump(suite))
        with pytest.raises(UsageError, match=cause):
            run(job, "second", earlier=["first"], **changes)
        with closing(Ledger(job / "second/ledger.sqlite")) as ledger:
            assert ledger.trials() == ()
        (job / "second").rename(job / f"second-{cause[:10]}")
    with pytest.raises(NotFoundError):
        run(job, "third", earlier=["nowhere"])


def test_a_job_that_travels_names_earlier_runs_by_their_database(job):
    set_job(job, earlier=["first"], pool={"members": ["s3://pool/a", "s3://pool/b"]})
    with pytest.raises(UsageError, match="earlier run 'first': is a folder of this machine"):
        check_travels(read_job(job / "job.yaml")[0])
    one = bundle_job(job / "job.yaml").id
    set_job(job, pool={"members": ["s3://pool/a", "s3://pool/b"]})
    assert bundle_job(job / "job.yaml").id == one  # the same job, better informed


def test_a_run_is_not_earlier_than_itself_and_a_damaged_one_is_named_with_its_line(job):
    with pytest.raises(UsageError, match=r"job\.yaml:\d+: earlier run first: is this very run"):
        run(job, "first", earlier=["first"])
    (job / "empty").mkdir()
    (job / "empty/ledger.sqlite").write_bytes(b"")
    with pytest.raises(NotFoundError, match="earlier run empty: .*was never started"):
        run(job, "second", earlier=["empty"])
    (job / "damaged").mkdir()
    (job / "damaged/ledger.sqlite").write_bytes(b"garbage" * 1000)
    with pytest.raises(UnsafeInputError, match="earlier run damaged: "):
        run(job, "third", earlier=["damaged"])


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_run_folder_that_cannot_be_made_is_told(job, place):
    (job / "file").write_text("here already")
    with pytest.raises(UsageError, match="cannot be made"):
        run(job, place)
    assert (job / "file").read_text() == "here already"
