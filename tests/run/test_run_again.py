"""A run that is started again: one that lost trials to the system says so and mends itself, and no
file of it is ever half written.
"""

import os

import pytest

from fakes import JobWorkers
from postgres import needs_postgres, postgres_server
from recycler.cli import main
from small_job import set_job

pytestmark = pytest.mark.long


@pytest.fixture
def breaks(job, monkeypatch):
    """Which trials fail, and who is to blame, in the runs of `recycler run`."""
    ray_workers = pytest.importorskip("recycler.cluster.ray_workers")
    set_job(job, sampler="random")
    broken = {"numbers": frozenset([8]), "blame": "system"}
    monkeypatch.setattr(
        ray_workers,
        "RayWorkers",
        lambda work, **options: JobWorkers(
            work=work, break_numbers=broken["numbers"], blame=broken["blame"]
        ),
    )
    return broken


def test_a_run_without_lost_trials_is_told_apart_and_mended_by_the_same_command(
    job, breaks, capsys
):
    """The table of what was scored is on stdout either way."""
    command = ["run", str(job / "job.yaml"), "--dir", str(job / "lost")]
    assert main(command) == 5 == main(command), "as often as it fails"
    said = capsys.readouterr()
    assert (
        "ended without trial 8, lost through no fault of theirs (trial 8: broken on purpose)"
        in said.err
        and "m1" in said.out
    )
    breaks |= {"numbers": frozenset()}
    assert main(command) == 0 and "ended without" not in capsys.readouterr().err
    breaks |= {"numbers": frozenset([7, 8]), "blame": "recipe"}
    assert main([*command[:-1], str(job / "hopeless")]) == 0, "a broken merge is a finding"


def test_many_lost_trials_are_counted_in_one_line(job, breaks, capsys):
    set_job(job, sampler="random", budget={"trials": 30})
    breaks |= {"numbers": frozenset(range(8, 38, 2))}
    assert main(["run", str(job / "job.yaml"), "--dir", str(job / "lost")]) == 5
    assert "without trials 8, 10, 12, 14, 16, 18, 20, 22, 24, 26 and " in capsys.readouterr().err


@needs_postgres
def test_the_ledger_that_was_written_is_asked_wherever_it_lies(job, breaks, capsys, monkeypatch):
    """A driver on a cluster runs in a folder called run, its ledger in a database that only its own
    --ledger names.
    """
    monkeypatch.chdir(job)
    with postgres_server() as server:
        monkeypatch.setenv("PGPASSWORD", server.password)
        command = ["run", "job.yaml", "--dir", "run", "--ledger", server.url]
        assert main(command) == 5 and "ended without trial 8" in capsys.readouterr().err
        breaks |= {"numbers": frozenset()}
        assert main(command) == 0


def test_what_a_run_was_started_with_is_replaced_whole(job, breaks):
    """Whoever has the old file open, as a service may, never reads half of the new one."""
    command = ["run", str(job / "job.yaml"), "--dir", str(job / "run")]
    assert main(command) == 5
    before = (job / "run/started.json").read_text()
    os.link(job / "run/started.json", job / "old.json")
    assert main([*command, "--data", str(job / "pool")]) == 5
    assert (job / "old.json").read_text() == before and str(job / "pool") in (
        job / "run/started.json"
    ).read_text()
    assert not list((job / "run").glob(".*.tmp"))


@pytest.mark.long
def test_what_more_trials_would_bring_is_worked_out_once_a_look(job, breaks, capsys, monkeypatch):
    """What is told and what may end the search are one figure; a run that goes on looks where it
    would have looked.
    """
    from recycler.search import outlook

    worked_out, real = [], outlook.expected_gain
    monkeypatch.setattr(
        outlook,
        "expected_gain",
        lambda gp, observed, *rest, **options: (
            worked_out.append(len(observed.weights)) or real(gp, observed, *rest, **options)
        ),
    )
    breaks |= {"numbers": frozenset()}
    for name, sittings in (("whole", (25,)), ("again", (12, 25))):
        for trials in sittings:
            set_job(job, sampler="random", budget={"trials": trials, "least_gain": 1e-9})
            assert main(["run", str(job / "job.yaml"), "--dir", str(job / name)]) == 0
    assert len(worked_out) == 4 and worked_out[:2] == worked_out[2:]
    assert capsys.readouterr().err.count("the next 20 merges are expected to add") == 4
