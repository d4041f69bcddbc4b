"""One damaged, slow or absent run takes no other with it: it is a state with a reason, and its own
pages say so.
"""

import os
import shutil
import sqlite3
import sys
import threading
import time

import pytest

pytest.importorskip("fastapi", reason="needs recycler[service]")
pytest.importorskip("plotly", reason="needs recycler[service]")
pytest.importorskip("httpx", reason="FastAPI's test client needs httpx")

from fastapi.testclient import TestClient

from recycler.errors import InfrastructureError, Problem
from recycler.ledger import Ledger
from recycler.service import create_app, store
from recycler.service.processes import Ended, Processes
from recycler.service.store import Store
from service_client import API, client_of
from service_runs import make_run

PAGES = (
    "",
    "/source",
    "/front",
    "/trials",
    "/table",
    "/pool",
    "/pool/without",
    "/pool/deltas",
    "/exports",
    "/exports/trial-8",
    "/compare?trials=6,8",
    "/trials/8",
    "/trials/8/items",
    "/trials/8/recipe",
    "/report.html",
    "/trials.csv",
    "/trials.parquet",
    "/events",
)


def written(name, content):
    def damage(folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return damage


def pointing(content):
    def damage(folder):
        (folder / "ledger.sqlite").unlink()
        (folder / "ledger.url").write_bytes(content)

    return damage


def fact(key, value):
    def damage(folder):
        with sqlite3.connect(folder / "ledger.sqlite") as ledger:
            ledger.execute(
                "INSERT INTO facts (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET "
                "value = excluded.value",
                (key, value),
            )
        ledger.close()

    return damage


def cell(table, column, value):
    def damage(folder):
        with sqlite3.connect(folder / "ledger.sqlite") as ledger:
            ledger.execute(f"UPDATE {table} SET {column} = ?", (value,))
        ledger.close()

    return damage


def ordered(*more):
    def damage(folder):
        for act in (written("exports/trial-8.log", b"x"), *more):
            act(folder)

    return damage


BROKEN = {
    "url-binary": pointing(b"\xff\xfe\x00"),
    "url-empty": pointing(b""),
    "url-file": pointing(b"/etc/passwd\n"),
    "url-nul": pointing(b"postgresql://u@h/\x00?job=x"),
    "url-no-job": pointing(b"postgresql://u@h/db"),
    "ledger-text": written("ledger.sqlite", b"not a database at all" * 100),
    "job-list": fact("job", "[]"),
    "job-torn": fact("job", "{"),
    "job-word": fact("job", '{"members": 3}'),
    "elapsed": fact("elapsed_seconds", "abc"),
    "recipe": cell("trials", "recipe", "{"),
    "failure": cell("trials", "failure", "[1]"),
}
WHOLE = {
    "gram": fact("gram", "{"),
    "gram-shape": fact("gram", "[[1]]"),
    "gram-words": fact("gram", '[["a", "b", "c", "d"], 1, 2, 3]'),
    "elapsed-nan": fact("elapsed_seconds", "nan"),
    "outcomes": cell("outcomes", "payload", b"\x00"),
    "space": fact("space", "["),
    "record": ordered(written("exports/trial-8.json", b"{")),
    "record-words": ordered(written("exports/trial-8.json", b'{"trial": "8", "zz": 1}')),
    "record-list": ordered(written("exports/trial-8.json", b"[]")),
    "record-binary": ordered(written("exports/trial-8.json", b"\xff")),
    "record-trial": ordered(written("exports/trial-8.json", b'{"trial": "8"}')),
    "manifest": ordered(written("exports/trial-8/recycler-manifest.json", b"{}")),
    "manifest-list": ordered(written("exports/trial-8/recycler-manifest.json", b"[]")),
    "manifest-files": ordered(
        written(
            "exports/trial-8/recycler-manifest.json",
            b'{"recipe_digest": "", "files": {"a": 1}, "weights_digest": ""}',
        )
    ),
    "no-trial": written("exports/trial-99999.log", b"x"),
    "started": written("started.json", b"[1]"),
    "started-nul": written("started.json", b'{"job": "\\u0000", "data": []}'),
    "started-binary": written("started.json", b"\xff"),
    "deltas": written("pool-deltas.json", b"[]"),
    "log": written("driver.log", b"\xff\x00<script>" * 2000),
    "log-folder": written("driver.log/x", b""),
    "lock-folder": written("driver.lock/x", b""),
    "suites": written("suites/demo.jsonl", b"\xff{"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    root = tmp_path_factory.mktemp("sound")
    make_run(root, "demo", merges=8, checkpoints=True)
    return root


@pytest.fixture
def damaged(sound, tmp_path, request):
    root = tmp_path / "root"
    shutil.copytree(sound, root)
    shutil.copytree(root / "demo", root / "damaged")
    request.param(root / "damaged")
    return client_of(root)


def answers(client):
    return {page: client.get(f"{API}/jobs/damaged{page}") for page in PAGES}


@pytest.mark.parametrize("damaged", BROKEN.values(), ids=BROKEN, indirect=True)
def test_a_run_that_cannot_be_read_is_broken_with_a_reason_and_alone(damaged):
    jobs = {job["id"]: job for job in damaged.get(f"{API}/jobs").json()["jobs"]}
    assert (
        jobs["demo"]["state"] == "finished"
        and jobs["damaged"]["state"] == "broken"
        and jobs["damaged"]["reason"]
    )
    assert 'recycler_jobs{state="broken"} 1' in damaged.get("/metrics").text
    told = answers(damaged)
    assert told[""].json()["state"] == "broken" and told["/front"].status_code in (422, 503)
    for page, answer in told.items():
        assert (
            answer.status_code == 200
            or answer.status_code in (404, 422, 503)
            and answer.json()["problems"][0]["cause"]
        ), page


@pytest.mark.parametrize("damaged", WHOLE.values(), ids=WHOLE, indirect=True)
def test_a_damaged_part_of_a_run_takes_only_its_own_pages(damaged):
    jobs = {job["id"]: job for job in damaged.get(f"{API}/jobs").json()["jobs"]}
    assert (
        jobs["damaged"]["state"] == jobs["demo"]["state"] == "finished"
        and damaged.get("/metrics").status_code == 200
    )
    told = answers(damaged)
    assert all(
        told[page].status_code == 200 for page in ("", "/front", "/table", "/exports", "/events")
    )
    for page, answer in told.items():
        assert (
            answer.status_code == 200
            or answer.status_code in (404, 422, 503)
            and answer.json()["problems"][0]["cause"]
        ), page


@pytest.mark.parametrize("damaged", [ordered(written("exports/trial-8.json", b"{"))], indirect=True)
def test_an_export_whose_record_is_damaged_is_listed_as_failed(damaged):
    found = damaged.get(f"{API}/jobs/damaged/exports").json()["exports"]
    assert [(entry["id"], entry["state"]) for entry in found] == [
        ("trial-8", "failed")
    ] and "damaged" in found[0]["reason"]


# ---------------------------------------------------------------- databases that are away

AWAY = InfrastructureError(Problem(thing="ledger", cause="cannot be used (refused)", remedy=""))


def test_a_run_that_waits_for_its_database_holds_up_no_other(sound, tmp_path, monkeypatch):
    shutil.copytree(sound, tmp_path / "root")
    (tmp_path / "root/far").mkdir()
    (tmp_path / "root/far/ledger.url").write_text("postgresql://u@h/db?job=far\n")
    waits, go_on, outcome = threading.Event(), threading.Event(), []

    def opened(place, **options):
        if "postgresql" not in place:
            return Ledger(place, **options)
        waits.set()
        outcome.append(go_on.wait(60))
        raise AWAY

    monkeypatch.setattr(store, "Ledger", opened)
    runs = Store(tmp_path / "root")
    asking = threading.Thread(
        target=lambda: pytest.raises(InfrastructureError, runs.snapshot, runs.run("far"))
    )
    asking.start()
    assert waits.wait(60)
    assert runs.snapshot(runs.run("demo")).trials  # while the other one waits
    go_on.set()
    asking.join(60)
    assert outcome == [True]


def test_a_database_that_was_away_is_asked_once_for_all_its_jobs_and_not_again_for_a_while(
    tmp_path, monkeypatch
):
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ledger.url").write_text(f"postgresql://u@h/db?job={name}\n")
    asked = []

    def opened(place, *, create, patience):
        asked.append((place, patience))
        raise AWAY

    monkeypatch.setattr(store, "Ledger", opened)
    client = client_of(tmp_path)
    for _ in range(2):
        jobs = client.get(f"{API}/jobs").json()["jobs"]
        assert [(job["state"], job["reason"]) for job in jobs] == [
            ("broken", "cannot be used (refused)")
        ] * 3
        assert client.get(f"{API}/jobs/two/front").status_code == 503
    assert len(asked) == 1 and asked[0][1] == store.PATIENCE_SECONDS
    monkeypatch.setattr(
        store.time, "monotonic", lambda now=store.time.monotonic: now() + store.AWAY_SECONDS
    )
    client.get(f"{API}/jobs")
    assert len(asked) == 2


# ---------------------------------------------------------------- how drivers ended


def until_it_ends(client, job="demo"):
    deadline = time.monotonic() + 120
    while (found := client.get(f"{API}/jobs/{job}").json())[
        "running"
    ] and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def test_a_job_that_failed_has_failed_for_every_later_service_too(tmp_path):
    text = (
        "version: 1\nname: lost\npool: nowhere/*\nsuites: [demo]\nobjectives:\n- {suite: demo, "
        "metric: exact_match, direction: maximize}\n- {suite: demo, metric: bits_per_byte, "
        "direction: minimize}\nbudget: {trials: 2}\n"
    )
    first = client_of(tmp_path)
    assert first.post(f"{API}/jobs", json={"text": text}).status_code == 201
    found = until_it_ends(first, "lost")
    assert found["state"] == "failed" and "lost.job.yaml:7" in found["reason"]
    assert client_of(tmp_path).get(f"{API}/jobs/lost").json() == found
    (tmp_path / "lost/driver.log").unlink()  # the reason is kept with the code
    assert client_of(tmp_path).get(f"{API}/jobs/lost").json() == found


@pytest.mark.parametrize(
    "code, state",
    [(5, "failed"), (-9, "failed"), (130, "stopped"), (-15, "stopped"), (0, "interrupted")],
)
def test_how_a_driver_ended_is_kept_until_the_next_one_starts(tmp_path, code, state):
    folder = make_run(tmp_path, merges=1, finished=False)
    own, run = Processes(), Store(tmp_path).run("demo")
    ends = [
        sys.executable,
        "-S",
        "-c",
        f"import os; print('recycler: so it was', flush=True); os._exit({code}) if {code} >= 0 "
        f"else os.kill(os.getpid(), {-code})",
    ]
    assert own.start("demo", ends, folder / "driver.log", tmp_path, driver_of=folder)
    own._children["demo"].wait()
    assert own.ended(run) == Processes().ended(run) == Ended(code, "so it was")
    assert client_of(tmp_path).get(f"{API}/jobs/demo").json()["state"] == state
    os.utime(folder / "driver.ended.json", (1, 1))
    (folder / "started.json").write_text(
        "{}"
    )  # started again by hand: what was before says nothing of it
    assert Processes().ended(run) is None
    (folder / "driver.ended.json").write_bytes(b"\xff{")
    assert Processes().ended(run) is None
    assert own.start(
        "demo",
        [sys.executable, "-S", "-c", "input()"],
        folder / "driver.log",
        tmp_path,
        driver_of=folder,
    )
    own._children["demo"].wait()
    assert own.ended(run).code == 1


def test_a_driver_s_end_is_kept_though_nobody_asks(tmp_path):
    folder, own = make_run(tmp_path, merges=1, finished=False), Processes()
    own.start(
        "demo",
        [sys.executable, "-S", "-c", "import os; os._exit(7)"],
        folder / "driver.log",
        tmp_path,
        driver_of=folder,
    )
    deadline = time.monotonic() + 60
    while not (folder / "driver.ended.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert Processes().ended(Store(tmp_path).run("demo")) == Ended(7, "")


# ---------------------------------------------------------------- exports and addresses


def test_an_export_is_not_written_into_another_one(sound, tmp_path):
    (tmp_path / "a/recycler").mkdir(parents=True)
    (tmp_path / "a/recycler-manifest.json").write_text("{}")
    client = client_of(sound, export_place=str(tmp_path))
    for place in ("a/b", "a/recycler/c", "a/b/c/d"):
        answer = client.post(f"{API}/jobs/demo/export", json={"trial": "8", "destination": place})
        assert (
            answer.status_code == 422
            and "inside an exported model, a" in answer.json()["problems"][0]["cause"]
        )
        assert not (tmp_path / place).exists()
    assert client.get(f"{API}/jobs/demo/exports").json()["exports"] == []
    assert (
        client.get(f"{API}/jobs/demo/trials/8/recipe", params={"destination": "b/c"}).status_code
        == 200
    )


@pytest.mark.parametrize("first, second", [("a", "a/b"), ("a/b", "a"), ("a/b", "a/b/c")])
def test_exports_under_way_do_not_lie_in_each_other(sound, tmp_path, monkeypatch, first, second):
    root = tmp_path / "root"
    shutil.copytree(sound, root)
    (tmp_path / "out").mkdir()
    app = create_app(root, token=None, export_place=str(tmp_path / "out"))
    under_way = set()
    monkeypatch.setattr(
        app.state.jobs.processes,
        "start",
        lambda name, command, log, cwd: (under_way.add(name), log.touch()),
    )
    monkeypatch.setattr(app.state.jobs.processes, "alive", under_way.__contains__)
    client = TestClient(app, base_url="http://127.0.0.1:8765")
    assert (
        client.post(
            f"{API}/jobs/demo/export", json={"trial": "8", "destination": first}
        ).status_code
        == 202
    )
    assert (
        client.post(
            f"{API}/jobs/demo/export", json={"trial": "8", "destination": second}
        ).status_code
        == 409
    )
    assert (
        client.post(f"{API}/jobs/demo/export", json={"trial": "8", "destination": "ab"}).status_code
        == 202
    )


@pytest.mark.parametrize(
    "number", ["3.0", "-1", "+3", "03", "1e0", "٣", "3_0", "x", "9" * 5000, "99999999"]
)
def test_an_address_that_is_no_trial_s_number_is_not_found(sound, number):
    client = client_of(sound)
    for rest in ("", "/items", "/recipe"):
        answer = client.get(f"{API}/jobs/demo/trials/{number}{rest}")
        assert answer.status_code == 404 and answer.json()["problems"]
