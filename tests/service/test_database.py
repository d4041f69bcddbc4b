"""The service over ledgers in PostgreSQL: run folders that point there, and jobs that have no
folder here at all.
"""

import shutil

import pytest

pytest.importorskip("fastapi", reason="needs recycler[service]")
pytest.importorskip("plotly", reason="needs recycler[service]")
pytest.importorskip("psycopg", reason="needs recycler[postgres]")

from postgres import needs_postgres, postgres_server
from recycler.ledger import Ledger
from recycler.ledger.place import job_place
from service_client import API, client_of
from service_runs import make_run, merge_recipe, pool_at, scorecard_of

pytestmark = needs_postgres


@pytest.fixture(scope="module")
def url():
    with postgres_server() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSWORD", server.password)
        yield server.url


def test_a_run_folder_that_points_to_a_database_is_read_there(url, tmp_path):
    """One run with its ledger in a file and in the database: the same trials, table, front."""
    make_run(tmp_path, "file", merges=5)
    make_run(tmp_path, "shared", merges=5, place=job_place(url, "pointed"))
    client = client_of(tmp_path)
    one, other = (client.get(f"{API}/jobs/{run}/table").json() for run in ("file", "shared"))
    assert one == other
    assert client.get(f"{API}/jobs/shared").json()["state"] == "finished"
    assert client.get(f"{API}/jobs/shared/compare?trials=0,1").status_code == 200


def test_jobs_of_the_database_are_listed_beside_folders_each_once(url, tmp_path):
    make_run(tmp_path, "gone", merges=3, place=job_place(url, "remote-1"), finished=False)
    make_run(tmp_path, "here", merges=3, place=job_place(url, "remote-2"))
    shutil.rmtree(tmp_path / "gone")
    client = client_of(tmp_path, ledger_url=url)
    ids = [job["id"] for job in client.get(f"{API}/jobs").json()["jobs"]]
    assert "remote-1" in ids and "here" in ids and "remote-2" not in ids
    assert client.get(f"{API}/jobs/remote-1").json()["state"] == "interrupted"
    assert client.get(f"{API}/jobs/remote-1/trials/0").json()["why"]["on_front"] in (True, False)
    command = client.get(f"{API}/jobs/remote-1/trials/8/recipe").json()["command"]
    assert "job=remote-1" in command and "postgresql://" in command
    assert client.post(f"{API}/jobs/remote-1/resume", json={}).status_code == 422


def test_new_trials_and_drivers_elsewhere_are_seen(url, tmp_path):
    make_run(tmp_path, "live", merges=3, place=job_place(url, "live"), finished=False)
    client = client_of(tmp_path)
    before = client.get(f"{API}/jobs/live/table").json()["trial"]
    driver = Ledger(job_place(url, "live"))
    driver.hold()
    try:
        recipe = merge_recipe(pool_at(tmp_path / "pool"), 99)
        driver.open_trial(len(before), "merge", recipe)
        driver.close_trial(len(before), scorecard_of(recipe))
        assert client.get(f"{API}/jobs/live").json()["state"] == "running"
        assert client.get(f"{API}/jobs/live/table").json()["trial"] == [*before, len(before)]
    finally:
        driver.close()
    assert client.get(f"{API}/jobs/live").json()["state"] == "interrupted"


def test_a_database_that_is_away_is_told(tmp_path, monkeypatch):
    from recycler.ledger import database

    monkeypatch.setattr(database, "OPEN_SECONDS", 0.5)
    answer = client_of(tmp_path, ledger_url="postgresql://me:swordfish@127.0.0.1:1/x").get(
        f"{API}/jobs"
    )
    assert answer.status_code == 503 and "swordfish" not in answer.text
