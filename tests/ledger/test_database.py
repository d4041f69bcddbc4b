"""A ledger in a real PostgreSQL: one driver at a time, by the database's clock; a restart loses
nothing.
"""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from fake_search import run
from fakes import FakeWorkers, Killed, fake_scorecard, named_pool
from postgres import needs_postgres, postgres_server
from recycler.errors import InfrastructureError, NotFoundError, UsageError
from recycler.io.redact import redacted, without_password
from recycler.ledger import Ledger
from recycler.ledger.database import job_ids
from recycler.ledger.place import find_ledger, has_password, job_place, split_place, with_password
from recycler.search.baselines import blend

RECIPE = blend(named_pool(), "bfloat16", {"m0": 1.0})


@pytest.fixture(scope="module")
def server():
    with postgres_server() as running:
        os.environ["PGPASSWORD"] = running.password
        yield running
        del os.environ["PGPASSWORD"]


@pytest.fixture
def place(server, request, monkeypatch):
    """A job of its own, with a lease of a second."""
    monkeypatch.setenv("RECYCLER_LEASE_SECONDS", "1")
    return job_place(server.url, f"{abs(hash(request.node.name)):x}")


@needs_postgres
def test_a_killed_search_resumes_to_the_same_front_in_a_database(place, tmp_path):
    whole = run(tmp_path / "whole.sqlite", FakeWorkers())
    for kill_after in (0, 3, 5):
        with pytest.raises(Killed):
            run(place, FakeWorkers(kill_after=kill_after))
    assert run(place, FakeWorkers()) == whole
    assert Ledger(place).trials() == Ledger(tmp_path / "whole.sqlite").trials()
    assert Ledger(place).counts() == {
        "SCORED": len(Ledger(place).trials()),
        "PENDING": 0,
        "FAILED": 0,
    }


@needs_postgres
@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL],
    ids=["fast shutdown", "immediate shutdown", "crash"],
)
def test_a_restart_in_mid_job_loses_and_doubles_nothing(server, place, number):
    ledger = Ledger(place)
    ledger.hold()
    stopped = threading.Event()

    def restart():
        server.stop(number)
        stopped.set()
        time.sleep(1.5)
        server.start()

    restarting = threading.Thread(target=restart)
    for trial in range(60):
        if trial == 20:
            restarting.start()
        ledger.open_trial(trial, "merge", RECIPE)
        ledger.close_trial(trial, fake_scorecard(RECIPE, "search"))
        ledger.add_holdout(trial, fake_scorecard(RECIPE, "holdout"))
        ledger.set_fact("last", str(trial))
    restarting.join()
    assert stopped.is_set()
    found = ledger.trials()
    assert [trial.number for trial in found] == list(range(60)) and {
        trial.state for trial in found
    } == {"SCORED"}
    assert (
        all(len(trial.search) == len(trial.holdout) == 2 for trial in found)
        and ledger.fact("last") == "59"
    )
    ledger.close()


@needs_postgres
def test_a_write_whose_answer_was_lost_is_not_done_twice(place, monkeypatch):
    """The transaction is committed, and then the connection breaks: the second attempt finds its
    own work.
    """
    from sqlalchemy.exc import OperationalError

    from recycler.ledger import ledger as module

    real = module.retried

    def lossy(act, database, *patience):
        lost = []

        def once(again):
            result = act(again)
            if not lost:
                lost.append(True)
                raise OperationalError(
                    "commit", {}, Exception("server closed the connection unexpectedly")
                )
            return result

        return real(once, database, *patience)

    ledger = Ledger(place)
    monkeypatch.setattr(module, "retried", lossy)
    ledger.open_trial(0, "member", RECIPE)
    ledger.close_trial(0, fake_scorecard(RECIPE, "search"))
    ledger.add_holdout(0, fake_scorecard(RECIPE, "holdout"))
    ledger.set_fact("a", "1")
    monkeypatch.undo()
    (trial,) = ledger.trials()
    assert (trial.state, len(trial.search), len(trial.holdout), ledger.fact("a")) == (
        "SCORED",
        2,
        2,
        "1",
    )


@needs_postgres
def test_of_two_drivers_one_goes_on_and_the_other_says_who_has_it(place):
    first, second = Ledger(place), Ledger(place)
    first.hold()
    with pytest.raises(InfrastructureError, match=f"is being driven by process {os.getpid()} on"):
        second.hold()
    assert second.holder().is_alive
    first.open_trial(0, "member", RECIPE)
    first.close()
    assert second.holder() is None
    second.hold()
    second.close()


@needs_postgres
def test_of_many_drivers_at_once_exactly_one_gets_the_lease(place):
    won, lost = [], []
    Ledger(place)

    def drive():
        ledger = Ledger(place)
        try:
            ledger.hold()
            won.append(ledger)
        except InfrastructureError:
            lost.append(ledger)

    threads = [threading.Thread(target=drive) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    won[0].close()


@needs_postgres
def test_a_driver_that_was_thought_dead_writes_nothing(place):
    """It hangs past its term, another takes over; when it wakes up, its token is old."""
    asleep = Ledger(place)
    asleep.hold()
    asleep._lease._stop.set()  # no more heartbeats
    asleep._lease._thread.join()
    successor = Ledger(place)
    successor.hold()
    for write in (
        lambda: asleep.open_trial(0, "member", RECIPE),
        lambda: asleep.set_fact("a", "b"),
        lambda: asleep.close_trial(0, fake_scorecard(RECIPE, "search")),
    ):
        with pytest.raises(InfrastructureError, match="was taken over by"):
            write()
    assert successor.trials() == () and successor.fact("a") is None
    successor.open_trial(0, "member", RECIPE)
    asleep.close()
    assert successor.holder().is_alive  # its release does not take the lease away from another
    successor.close()


@needs_postgres
@pytest.mark.parametrize("jump", [-1e7, 1e7], ids=["back", "forward"])
def test_a_driver_whose_clock_jumps_keeps_its_lease_and_its_times(place, monkeypatch, jump):
    before = time.time()
    ledger, other = Ledger(place), Ledger(place)
    ledger.hold()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    time.sleep(1.2)
    assert other.holder().is_alive and other.holder().seconds_since_renewal < 1.2
    with pytest.raises(InfrastructureError, match="is being driven"):
        other.hold()
    ledger.open_trial(0, "member", RECIPE)
    from sqlalchemy import select

    from recycler.ledger import schema

    with ledger._database.engine.connect() as connection:
        opened = connection.execute(select(schema.trials.c.opened_at)).scalar()
    assert 0 <= opened - before < 600
    ledger.close()


@needs_postgres
def test_many_may_open_a_new_ledger_at_once(tmp_path):
    """A reader that comes while the driver makes the tables sees all of them, or waits."""
    code = (
        "import sys; from recycler.ledger import Ledger; ledger = Ledger(sys.argv[1]); "
        "print(sum(ledger.counts().values()), ledger.fact('job'))"
    )
    for attempt in range(3):
        started = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(tmp_path / f"{attempt}.sqlite")],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(6)
        ]
        for process in started:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0 and out.strip() == "0 None", err[-1000:]


@needs_postgres
def test_jobs_share_a_database_and_a_reader_makes_none(server, place):
    Ledger(place).set_fact("a", "b")
    other = f"{place}-2"
    with pytest.raises(NotFoundError, match="recycler list"):
        Ledger(other, create=False)
    assert split_place(place)[1] in job_ids(server.url) and split_place(other)[1] not in job_ids(
        server.url
    )
    Ledger(other)
    assert Ledger(other).fact("a") is None and Ledger(place, create=False).fact("a") == "b"


@needs_postgres
def test_a_wrong_password_is_told_at_once_and_not_shown(server, place, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "surely-wrong")
    start = time.monotonic()
    with pytest.raises(InfrastructureError, match="authentication failed") as caught:
        Ledger(place.replace("recycler@", "recycler:hunter2@"))
    assert "hunter2" not in str(caught.value) and time.monotonic() - start < 10


@needs_postgres
def test_system_failures_are_tried_again_and_broken_recipes_are_not(place):
    from recycler.types import Failure

    ledger = Ledger(place)
    for number, blame in enumerate(("system", "recipe")):
        ledger.open_trial(number, "merge", RECIPE)
        ledger.fail_trial(number, Failure(blame=blame, reason="x"))
    assert ledger.retry_system_failures() == (0,)
    assert [trial.state for trial in ledger.trials()] == [
        "PENDING",
        "FAILED",
    ] and ledger.retry_system_failures() == ()


# ---------------------------------------------------------------- places


def test_places_of_ledgers(tmp_path, monkeypatch):
    url = "postgresql://u@h:5432/db?sslmode=require"
    assert split_place(job_place(url, "a-1")) == (url, "a-1")
    assert split_place("postgres://u@h/db") == ("postgresql://u@h/db", None)
    monkeypatch.setenv("RECYCLER_LEDGER", "postgresql://u:secret-word@h:5432/db")
    assert (
        with_password("postgresql://u@h:5432/db?job=a-1")
        == "postgresql://u:secret-word@h:5432/db?job=a-1"
    )
    assert with_password("postgresql://u@other/db?job=a-1") == "postgresql://u@other/db?job=a-1"
    assert find_ledger("a-1") == "postgresql://u:secret-word@h:5432/db?job=a-1"
    (tmp_path / "ledger.url").write_text("postgresql://u@h/db?job=b\n")
    assert find_ledger(tmp_path) == "postgresql://u@h/db?job=b"
    for wrong in ("postgresql://u@h/db", "mysql://u@h/db?job=a"):
        with pytest.raises((UsageError, NotFoundError)):
            find_ledger(wrong)
    for name in ("../x", "A", "", "a" * 60, 'a"b'):
        with pytest.raises(UsageError):
            job_place(url, name)


@pytest.mark.parametrize(
    ("url", "bare"),
    [
        ("postgresql://u:p@h/db", "postgresql://u@h/db"),
        ("postgresql://u@h/db?password=x", "postgresql://u@h/db"),
        ("postgresql://u@h/db?password=x&job=b", "postgresql://u@h/db?job=b"),
        ("postgresql://u@h/db?job=b&PassWord=x&c=d", "postgresql://u@h/db?job=b&c=d"),
        ("postgresql://u@h/db?job=b", "postgresql://u@h/db?job=b"),
        ("postgresql://u@h/db?", "postgresql://u@h/db?"),
    ],
)
def test_a_url_is_stored_without_its_password_wherever_it_stands(url, bare):
    assert without_password(url) == bare
    assert has_password(url) == (url != bare)
    assert "x" not in redacted(url).partition("db")[2].replace("***", "")


def test_keys_of_every_cloud_and_escaped_secrets_are_redacted(monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "az+key/value==")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountName=a;AccountKey=b")
    assert (
        redacted("az+key/value== az%2Bkey%2Fvalue%3D%3D AccountName=a;AccountKey=b")
        == "*** *** ***"
    )


def test_secrets_are_redacted(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abc/def+ghi")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef")
    text = "postgresql://u:hunter2@h/db said abc/def+ghi and Bearer 0123456789abcdef"
    assert redacted(text) == "postgresql://u:***@h/db said *** and Bearer ***"
    assert without_password("postgresql://u:p@ss@h/db") == "postgresql://u@h/db"
