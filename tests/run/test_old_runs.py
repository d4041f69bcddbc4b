"""Runs of an older commit are shown, exported and resumed by this one.

`tests/old_runs` was made by commit 7800898 with `benchmarks/golden/old_runs.py`.
"""

import json
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest

from postgres import needs_postgres, postgres_server
from recycler.cli import main

OLD = Path(__file__).resolve().parents[1] / "old_runs"
PLACE = "/old-place"
TRIALS = 6


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A copy of the fixture at a place of its own, which is the working directory."""
    folder = tmp_path / "place"
    shutil.copytree(OLD, folder)
    for run in ("finished", "unfinished"):
        with sqlite3.connect(folder / run / "ledger.sqlite") as connection:
            connection.execute(
                "UPDATE facts SET value = replace(value, ?, ?)", (PLACE, str(folder))
            )
        for path in (folder / run).glob("*.json"):
            path.write_text(path.read_text().replace(PLACE, str(folder)))
    monkeypatch.chdir(folder)
    return folder


def front_of(run, capsys):
    capsys.readouterr()
    assert main(["front", str(run), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def expected(place):
    return json.loads((place / "front.json").read_text())


def test_a_finished_run_is_shown_as_it_was(place, capsys):
    assert front_of("finished", capsys) == expected(place)
    assert main(["status", "finished", "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["state"] == "finished" and status["budget_trials"] == TRIALS


@pytest.mark.parametrize("command", ["preview", "why", "front"])
def test_a_finished_run_is_explained(place, capsys, command):
    assert main([command, "finished"]) == 0
    assert "echo:words/bits_per_byte" in capsys.readouterr().out


def test_a_merge_of_a_finished_run_is_exported_with_the_digest_that_was_scored(place, capsys):
    assert main(["export", "finished", "--trial", "knee", "--to", "out", "--json"]) == 0
    exported = json.loads(capsys.readouterr().out)
    with sqlite3.connect(place / "finished/ledger.sqlite") as connection:
        query = "SELECT weights_digest FROM trials WHERE number = ?"
        scored = connection.execute(query, (exported["trial"],)).fetchone()[0]
    assert exported["weights_digest"] == scored
    assert (place / "out/model.safetensors").is_file()


def test_a_finished_run_is_not_run_again(place, capsys):
    before = (place / "finished/ledger.sqlite").read_bytes()
    assert main(["run", "job.yaml", "--dir", "finished"]) == 0
    assert front_of("finished", capsys) == expected(place)
    with sqlite3.connect(place / "finished/ledger.sqlite") as connection:
        rows = connection.execute("SELECT * FROM trials ORDER BY number").fetchall()
    (place / "before.sqlite").write_bytes(before)
    with sqlite3.connect(place / "before.sqlite") as connection:
        assert connection.execute("SELECT * FROM trials ORDER BY number").fetchall() == rows


@pytest.mark.ray
def test_an_unfinished_run_ends_as_the_finished_one_did(place, capsys):
    assert main(["run", "job.yaml", "--dir", "unfinished"]) == 0
    assert front_of("unfinished", capsys) == expected(place)


@pytest.mark.ray
@needs_postgres
@pytest.mark.parametrize("run", ["finished", "unfinished"])
def test_runs_in_postgres_go_on(place, capsys, monkeypatch, run):
    with postgres_server() as server:
        monkeypatch.setenv("PGPASSWORD", server.password)
        text = (place / f"{run}.sql").read_text().replace(PLACE, str(place))
        restore = ["psql", "-v", "ON_ERROR_STOP=1", "-q", server.url]
        subprocess.run(restore, input=text, text=True, check=True, env=os.environ.copy())
        assert main(["run", "job.yaml", "--dir", "again", "--ledger", server.url]) == 0
        assert front_of("again", capsys) == expected(place)
