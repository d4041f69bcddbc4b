"""Real Ray, real engine, real signals: whatever is killed, the ledger ends as it would have."""

import json
import os
import random
import signal
import subprocess
import time
from dataclasses import replace

import pytest

from driver_process import finish, front_json, start
from recycler.cluster.workers import Request
from recycler.errors import UnsafeInputError
from recycler.ledger import Ledger
from recycler.location import parse_location
from recycler.search.baselines import blend
from recycler.types import Item, Pool, Scorecard
from small_job import JOB
from workers_contract import WorkersContract

pytestmark = pytest.mark.ray


def write_job(sound, folder, trials):
    import yaml

    folder.mkdir()
    job = {
        **JOB,
        "pool": {"members": [str(sound / "pool/members")], "base": str(sound / "pool/base")},
        "suites": [str(sound / "echo.yaml")],
        "budget": {"trials": trials},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder / "job.yaml"


def check_kill_and_resume(sound, tmp_path, kills, trials):
    job = write_job(sound, tmp_path / "job", trials)
    began = time.monotonic()
    finish(job, tmp_path / "whole")
    usual = time.monotonic() - began
    rng, killed = random.Random(0), 0
    while killed < kills:
        process = start(job, tmp_path / "killed")
        try:
            process.wait(timeout=rng.uniform(0.2, 0.9) * usual)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
        process.stdout.close(), process.stderr.close()
        if (
            process.returncode == 0
        ):  # it got through before the kill: begin anew, so that every kill hits a run
            (tmp_path / "killed").rename(tmp_path / f"through-{killed}-{time.monotonic_ns()}")
    finish(job, tmp_path / "killed")
    assert front_json(tmp_path / "killed") == front_json(tmp_path / "whole")
    trials_after = Ledger(tmp_path / "killed" / "ledger.sqlite").trials()
    assert [trial.number for trial in trials_after] == list(range(len(trials_after)))
    assert {trial.state for trial in trials_after} == {"SCORED"}
    return len(trials_after)


@pytest.mark.usefixtures("shared_ray")
def test_killed_driver_resumes_to_the_same_bytes(sound, tmp_path):
    assert check_kill_and_resume(sound, tmp_path, kills=2, trials=5) >= 5


@pytest.mark.slow
def test_driver_killed_twenty_times_resumes_to_the_same_bytes(sound, tmp_path):
    assert check_kill_and_resume(sound, tmp_path, kills=20, trials=12) >= 12


def test_a_killed_worker_loses_nothing_and_tells_no_score(sound, tmp_path):
    """The actor dies in mid-trial: the trial is retried on a new actor and comes back with its real
    scores.
    """
    from recycler.cluster.ray_workers import RayWorkers
    from recycler.run.prepare import prepare
    from recycler.run.wiring import work_of

    prepared = prepare(write_job(sound, tmp_path / "job", 2))
    recipe = blend(prepared.pool, "bfloat16", {"m1": 1.0})
    workers = RayWorkers(work_of(prepared), num_workers=1)
    try:
        workers.submit(Request(number=0, recipe=recipe, role="search"))
        workers.wait()
        started = time.monotonic()
        workers.submit(Request(number=1, recipe=recipe, role="search"))
        (undisturbed,) = workers.wait()
        whole = time.monotonic() - started
        number, moments, ended_before = 2, [0.0, 0.3, 0.6], 0
        while moments:
            (victim,) = workers.process_ids()
            workers.submit(Request(number=number, recipe=recipe, role="search"))
            time.sleep(moments[0] * whole)  # its batch is being decoded
            os.kill(victim, signal.SIGKILL)
            (disturbed,) = workers.wait()
            assert isinstance(disturbed.answer, Scorecard) and disturbed.number == number
            assert (
                disturbed.answer.scores == undisturbed.answer.scores
                and disturbed.answer.outcomes == undisturbed.answer.outcomes
            )
            assert disturbed.answer.weights_digest == undisturbed.answer.weights_digest
            number += 1
            if workers.process_ids() != [victim]:
                moments.pop(0)
            # the trial was over before the kill: kill sooner, once another trial has found the
            # actor dead and replaced it
            else:
                moments[0], ended_before = moments[0] / 2, ended_before + 1
                workers.submit(Request(number=number, recipe=recipe, role="search"))
                workers.wait()
                number += 1
                assert ended_before < 10
    finally:
        workers.close()


def work_over(sound, folder, **changes):
    from recycler.run.prepare import prepare
    from recycler.run.wiring import work_of

    return replace(work_of(prepare(write_job(sound, folder, 2))), **changes)


def test_a_node_without_a_sandbox_is_refused_as_the_driver_would_be(sound, tmp_path, monkeypatch):
    """The driver has one; no engine is loaded on the node, no trial is failed, and the error is the
    driver's own with the node's address.
    """
    from recycler.cluster import ray_workers

    program = Item(
        id="p",
        suite="s",
        task="t",
        role="search",
        kind="generate",
        scorer="humaneval",
        prompt="p",
        prompt_ids=(1,),
        gold="g",
    )
    work = work_over(sound, tmp_path / "job", items=(program,))
    monkeypatch.setattr(ray_workers, "probe_sandbox", lambda items: None)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/bwrap").symlink_to("/bin/false")
    monkeypatch.setattr(
        ray_workers,
        "_resources",
        lambda *asked: {
            "num_cpus": 0.5,
            "runtime_env": {"env_vars": {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}},
        },
    )
    workers = ray_workers.RayWorkers(work, num_workers=1)
    try:
        workers.submit(
            Request(number=0, recipe=blend(work.pool, "bfloat16", {"m1": 1.0}), role="search")
        )
        with pytest.raises(
            UnsafeInputError,
            match=r"code sandbox: bubblewrap does not hold or does not start here .*\(on node "
            r"[0-9.]+\)\. Allow user namespaces",
        ):
            workers.wait()
    finally:
        workers.close()


def test_an_engine_that_cannot_start_on_any_node_costs_the_trial_and_is_not_tried_for_ever(
    sound, tmp_path
):
    from recycler.cluster.ray_workers import RayWorkers

    work = work_over(sound, tmp_path / "job")
    gone = tuple(
        replace(member, location=parse_location(tmp_path / "gone" / member.name))
        for member in work.pool.members
    )
    workers = RayWorkers(replace(work, pool=Pool(members=gone, base=work.pool.base)), num_workers=1)
    try:
        workers.submit(
            Request(number=0, recipe=blend(work.pool, "bfloat16", {"m1": 1.0}), role="search")
        )
        (result,) = workers.wait()
        assert result.answer.blame == "system" and "is not on this machine" in result.answer.reason
    finally:
        workers.close()


@pytest.mark.usefixtures("shared_ray")
def test_two_drivers_of_one_run_do_not_fight(sound, tmp_path):
    import fcntl

    job = write_job(sound, tmp_path / "job", 2)
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "driver.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        process = start(job, tmp_path / "run")
        _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "driven by another process" in err


@pytest.mark.usefixtures("shared_ray")
def test_a_run_whose_suite_changed_is_refused(sound, tmp_path):
    import shutil

    shutil.copytree(sound, tmp_path / "own")
    job = write_job(tmp_path / "own", tmp_path / "job", 2)
    finish(job, tmp_path / "run")
    rows = (tmp_path / "own" / "echo.jsonl").read_text().splitlines()
    (tmp_path / "own" / "echo.jsonl").write_text(
        "\n".join([json.dumps({"q": "31+31", "a": "62"}), *rows[1:]]) + "\n"
    )
    process = start(job, tmp_path / "run")
    _, err = process.communicate(timeout=120)
    assert (
        process.returncode == 2
        and "suite 'echo'" in err
        and "is not the one the job began with" in err
        and "31+31" in err
    )


class TestRayWorkers(WorkersContract):
    """Workers on a cluster keep the laws of all workers."""

    @pytest.fixture(scope="class")
    def work(self, sound, tmp_path_factory):
        return work_over(sound, tmp_path_factory.mktemp("contract") / "job")

    @pytest.fixture(scope="class")
    def workers(self, work):
        from recycler.cluster.ray_workers import RayWorkers

        workers = RayWorkers(work, num_workers=1)
        yield workers
        workers.close()

    @pytest.fixture
    def recipe(self, work):
        return blend(work.pool, "bfloat16", {"m1": 1.0})
