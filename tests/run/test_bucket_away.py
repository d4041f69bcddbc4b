"""A whole job whose bucket goes away in its middle, while a worker dies: it waits, goes on, and
nothing is lost or told twice.
"""

import os
import shutil
import signal
import time
from contextlib import closing

import pytest

from bucket_place import put_folder
from driver_process import finish, front_json, start
from recycler.ledger import Ledger
from small_job import write_job

psutil = pytest.importorskip("psutil", reason="see the test extra")
pytestmark = pytest.mark.ray


@pytest.mark.parametrize("seconds", [10, pytest.param(60, marks=pytest.mark.slow)])
def test_a_bucket_that_goes_away_in_mid_job_costs_time_and_nothing_else(
    sound, place, chaos, tmp_path, monkeypatch, seconds
):
    monkeypatch.setenv("RECYCLER_BUCKET_TIMEOUT", "2")
    for part in ("base", "members/m0", "members/m1", "members/m2"):
        put_folder(sound / "pool" / part, f"{place}/{part}")
    job = write_job(sound, tmp_path, {"members": [f"{place}/members"], "base": f"{place}/base"})
    finish(job, tmp_path / "whole")
    shutil.rmtree(tmp_path / "cache")
    process = start(job, tmp_path / "run")
    wait_for(lambda: scored(tmp_path / "run") >= 2, process)
    chaos.plan = lambda method, path, number: "reset"
    shutil.rmtree(tmp_path / "cache")
    worker = next(
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "_Actor" in " ".join(child.cmdline())
    )
    os.kill(worker.pid, signal.SIGKILL)
    time.sleep(seconds)
    assert process.poll() is None and scored(tmp_path / "run") < scored(
        tmp_path / "whole"
    )  # it waits
    asked_before = len(chaos.log)
    chaos.reset()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and asked_before > 0, err[-3000:]
    assert front_json(tmp_path / "run") == front_json(tmp_path / "whole")
    with closing(Ledger(tmp_path / "run/ledger.sqlite")) as ledger:
        assert [trial.number for trial in ledger.trials()] == list(
            range(len(ledger.trials()))
        ) and {trial.state for trial in ledger.trials()} == {"SCORED"}


def scored(run):
    path = run / "ledger.sqlite"
    if not path.exists():
        return 0
    with closing(Ledger(path)) as ledger:
        return ledger.counts().get("SCORED", 0)


def wait_for(condition, process, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, (
            process.stderr.read()[-3000:] if process.poll() is not None else "too slow"
        )
        time.sleep(0.1)
