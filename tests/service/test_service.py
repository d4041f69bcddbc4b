"""The service tells what the ledger says, goes on where a reader stopped, and refuses what did not
come from its own pages.
"""

import json
import time

import pytest

pytest.importorskip("fastapi", reason="needs recycler[service]")
pytest.importorskip("plotly", reason="needs recycler[service]")
pytest.importorskip("httpx", reason="FastAPI's test client needs httpx")

import httpx

from chaos import s3_server
from recycler.cli import main
from recycler.results.documents import front_document
from recycler.results.open import open_front
from recycler.service import create_app
from recycler.service.events import Cursor
from recycler.service.processes import driver_pid
from service_client import API, client_of
from service_runs import NAMES, add_trial, driven, make_run
from small_job import JOB


@pytest.fixture(scope="module")
def client(root):
    return client_of(root)


def events_of(text):
    """[(id or None, kind, data)] of an event stream."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1)
            for line in block.splitlines()
            if ": " in line and not line.startswith(":")
        )
        if "event" in fields:
            found.append((fields.get("id"), fields["event"], json.loads(fields["data"])))
    return found


# ---------------------------------------------------------------- reading


def test_jobs_are_listed_with_state_progress_and_cost(client):
    jobs = {job["id"]: job for job in client.get(f"{API}/jobs").json()["jobs"]}
    assert set(jobs) == {"demo", "evil"}
    demo = jobs["demo"]
    assert (
        demo["state"] == "finished"
        and demo["trials"] == {"SCORED": 36, "PENDING": 0, "FAILED": 1}
        and demo["num_tokens"] == 36 * 600
    )
    volumes = [point["hypervolume"] for point in demo["hypervolume"]]
    assert volumes == sorted(volumes) and volumes[-1] > 0


def test_front_is_the_document_of_the_command_line(client, root):
    assert client.get(f"{API}/jobs/demo/front").json() == json.loads(
        json.dumps(front_document(open_front(root / "demo")))
    )


def test_hypervolume_curve_ends_at_the_front_s_volume(client):
    curve, front = (
        client.get(f"{API}/jobs/demo").json()["hypervolume"],
        client.get(f"{API}/jobs/demo/front").json(),
    )
    assert curve[-1]["hypervolume"] == pytest.approx(front["hypervolume"]["search"])


def test_trials_name_the_front_and_the_failure(client):
    found = client.get(f"{API}/jobs/demo/trials").json()
    assert len(found["trials"]) == 37 and found["members"] == list(NAMES)
    assert sorted(found["front"]) == sorted(
        entry["trial"] for entry in client.get(f"{API}/jobs/demo/front").json()["front"]
    )
    assert found["trials"][-1]["failure"]["blame"] == "recipe"


def test_the_table_holds_the_trials_as_columns(client):
    table, trials = (
        client.get(f"{API}/jobs/demo/table").json(),
        client.get(f"{API}/jobs/demo/trials").json(),
    )
    assert (
        table["trial"] == [trial["trial"] for trial in trials["trials"]]
        and table["front"] == trials["front"]
        and table["cursor"] == trials["cursor"]
    )
    for row, trial in enumerate(trials["trials"]):
        for role in ("search", "holdout"):
            for name, score in trial["scores"][role].items():
                assert table["scores"][role][name]["value"][row] == pytest.approx(
                    score["value"], rel=1e-5
                )
        assert {
            name: column[row] for name, column in table["weights"].items() if column[row]
        } == pytest.approx(trial["weights"]["all"], rel=1e-5)
    assert (
        table["scores"]["search"]["demo:math/exact_match"]["value"][-1] is None
    )  # the failed trial


def test_why_names_a_front_trial_that_is_at_least_as_good_everywhere(client):
    table = client.get(f"{API}/jobs/demo/table").json()
    signs = {o["name"]: 1 if o["direction"] == "maximize" else -1 for o in table["objectives"]}
    for number in table["trial"][:-1]:
        why = client.get(f"{API}/jobs/demo/trials/{number}").json()["why"]
        assert why["on_front"] == (number in table["front"]) and (
            why["share_of_volume"] is None
        ) == (not why["on_front"])
        for other in why["dominators"]:
            assert other["trial"] in table["front"] and all(
                signs[name] * value >= 0 for name, value in other["differences"].items()
            )
    assert client.get(f"{API}/jobs/demo/trials/36").json()["why"] is None


def test_downloads_are_saved_and_not_shown(client):
    for path, kind in (
        ("trials.csv", "text/csv"),
        ("trials.parquet", "application/vnd.apache.parquet"),
        ("report.html", "text/html"),
    ):
        answer = client.get(f"{API}/jobs/demo/{path}")
        assert (
            answer.status_code == 200
            and answer.headers["content-type"].startswith(kind)
            and answer.headers["content-disposition"].startswith("attachment")
        )


def test_compare_agrees_with_the_items(client):
    found = client.get(f"{API}/jobs/demo/compare?trials=0,1").json()
    math = found["against"][0]["objectives"][0]
    items = [
        {
            item["item"]: item["values"].get("exact_match")
            for item in client.get(f"{API}/jobs/demo/trials/{number}/items").json()["items"]
            if "/math/" in item["item"]
        }
        for number in (0, 1)
    ]
    gained = {item for item in items[0] if items[1][item] > items[0][item]}
    assert {flip["item"] for flip in math["flips"]["gained"]} == gained and math["flips"][
        "num_lost"
    ] > 0
    assert (
        math["paired"]["difference"] == pytest.approx(math["score_difference"])
        and math["paired"]["stderr"] > 0
    )
    assert math["flips"]["lost"][0]["output"].startswith("answer")


def test_paired_errors_take_clusters_as_units(client, tmp_path):
    """The same ledger with and without its frozen suites: same differences, other errors, and the
    note says which.
    """
    make_run(tmp_path, "demo")
    plain, clustered = (
        who.get(f"{API}/jobs/demo/compare?trials=0,1").json()
        for who in (client_of(tmp_path), client)
    )
    assert clustered["clustered"] and not plain["clustered"] and plain["note"] != clustered["note"]
    for one, other in zip(
        plain["against"][0]["objectives"], clustered["against"][0]["objectives"], strict=True
    ):
        assert one["paired"]["difference"] == pytest.approx(other["paired"]["difference"])
        assert one["paired"]["stderr"] != other["paired"]["stderr"]
        assert (one["paired"]["num_clusters"], other["paired"]["num_clusters"]) == (40, 10)
    flips = clustered["against"][0]["objectives"][0]["flips"]
    assert (
        flips["p_value"] is None
        and flips["lost"][0]["prompt"].startswith("What is math")
        and flips["lost"][0]["gold"].startswith("gold")
    )
    assert plain["against"][0]["objectives"][0]["flips"]["p_value"] < 1


def test_a_suite_that_is_damaged_is_as_if_it_were_gone(tmp_path):
    folder = make_run(tmp_path, "demo", merges=1, suites=True)
    client = client_of(tmp_path)
    assert client.get(f"{API}/jobs/demo/compare?trials=0,1").json()["clustered"]
    (folder / "suites/demo.jsonl").write_text("{}")
    assert not client.get(f"{API}/jobs/demo/compare?trials=0,1").json()["clustered"]


def test_pool_says_what_the_front_is_worth_without_a_member(client):
    found = client.get(f"{API}/jobs/demo/pool").json()
    assert [member["name"] for member in found["members"]] == list(NAMES)
    assert all(
        0 <= member["hypervolume_without"] <= found["hypervolume"] for member in found["members"]
    )
    assert found["similarity"]["relative_length"] == pytest.approx([0.02] * 4) and found[
        "similarity"
    ]["cosines"][0] == [1.0, 0.25, 0.25, 0.25]
    assert all(len(member["front_trials"]) == member["front_uses"] for member in found["members"])


def test_recipe_comes_with_card_and_command(client):
    found = client.get(f"{API}/jobs/demo/trials/8/recipe").json()
    assert (
        "method: linear" in found["recipe"]
        and "## Scores" in found["card"]
        and found["command"].startswith("recycler export ")
    )


def test_csv_has_a_line_a_trial_and_no_formulas(client):
    lines = client.get(f"{API}/jobs/demo/trials.csv").text.splitlines()
    assert len(lines) == 38 and not any(
        cell.startswith("=") for line in lines for cell in line.split(",")
    )


def test_metrics_and_openapi(client):
    assert 'recycler_trials{job="demo",state="scored"} 36' in client.get("/metrics").text
    document = client.get(f"{API}/openapi.json").json()
    assert {
        f"{API}/jobs/{{job}}/{name}"
        for name in ("trials", "front", "compare", "events", "export", "stop", "pool")
    } <= set(document["paths"])


def test_a_ledger_that_cannot_be_read_is_a_state(tmp_path):
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "ledger.sqlite").write_bytes(b"this is no database" * 100)
    client = client_of(tmp_path)
    assert client.get(f"{API}/jobs").json()["jobs"][0]["state"] == "broken"
    assert client.get(f"{API}/jobs/torn/front").status_code == 503


# ---------------------------------------------------------------- events


@pytest.mark.parametrize(
    "closed, holdout",
    [(set(), set()), ({0, 1, 2, 5}, {1}), ({7}, set()), (set(range(40)), {0, 39})],
)
def test_a_cursor_reads_back(closed, holdout):
    again = Cursor.read(str(Cursor(closed, holdout)), 40)
    assert set(again.closed) == closed and set(again.holdout) == holdout


@pytest.mark.parametrize(
    "text",
    ["", ";", "x;y", "1-;2", "99999999-99999999;", "0-99999999", "3-1", ",,,;;;", "١;٢", "-1"],
)
def test_a_bad_cursor_counts_as_unseen_and_costs_nothing(text):
    assert set(Cursor.read(text, 40).closed) <= set(range(40))


def test_every_closed_trial_is_told_once(client):
    found = events_of(client.get(f"{API}/jobs/demo/events").text)
    assert [data["trial"] for _, kind, data in found if kind == "trial"] == list(range(37))
    assert len([1 for _, kind, _ in found if kind == "holdout"]) == 12 and found[-1][1] == "end"


def test_events_go_on_after_any_id(client):
    whole = [event for event in events_of(client.get(f"{API}/jobs/demo/events").text) if event[0]]
    for index in range(0, len(whole), 7):
        rest = [
            event
            for event in events_of(
                client.get(
                    f"{API}/jobs/demo/events", headers={"Last-Event-ID": whole[index][0]}
                ).text
            )
            if event[0]
        ]
        assert rest == whole[index + 1 :]


def test_trials_then_events_lose_nothing(tmp_path):
    folder = make_run(tmp_path, finished=False)
    client = client_of(tmp_path)
    cursor = client.get(f"{API}/jobs/demo/trials").json()["cursor"]
    number = add_trial(folder, 99)
    found = events_of(client.get(f"{API}/jobs/demo/events", params={"after": cursor}).text)
    assert [data["trial"] for _, kind, data in found if kind == "trial"] == [number]


# ---------------------------------------------------------------- states, submit, stop, export


def test_a_driver_is_seen_by_its_lock_and_can_be_stopped(tmp_path):
    folder = make_run(tmp_path, finished=False)
    client = client_of(tmp_path)
    assert client.get(f"{API}/jobs/demo").json()["state"] == "interrupted"
    assert client.post(f"{API}/jobs/demo/stop", json={}).status_code == 409
    with driven(folder) as process:
        assert driver_pid(folder) == process.pid
        running = client.get(f"{API}/jobs/demo").json()
        assert running["state"] == "running" and running["eta_seconds"] > 0
        assert client.post(f"{API}/jobs/demo/stop", json={}).status_code == 202
        process.wait(timeout=30)
    assert client.get(f"{API}/jobs/demo").json()["state"] == "interrupted"


def test_a_run_started_by_hand_is_resumed_with_the_job_file_it_was_started_with(tmp_path):
    folder, job = make_run(tmp_path, finished=False), tmp_path / "elsewhere" / "job.yaml"
    client = client_of(tmp_path)
    assert (
        not client.get(f"{API}/jobs/demo").json()["resumable"]
        and client.post(f"{API}/jobs/demo/resume", json={}).status_code == 422
    )
    job.parent.mkdir()
    job.write_text("version: 1\nname: broken\n")  # the driver ends at once, with words of its own
    (folder / "started.json").write_text(json.dumps({"job": str(job), "data": [str(tmp_path)]}))
    assert client.get(f"{API}/jobs/demo").json()["resumable"]
    assert (
        client.get(f"{API}/jobs/demo/source").json()["command"]
        == f"recycler run {job} --dir {folder} --data {tmp_path}"
    )
    assert client.post(f"{API}/jobs/demo/resume", json={}).status_code == 202
    deadline = time.monotonic() + 120
    while (found := client.get(f"{API}/jobs/demo").json())[
        "running"
    ] and time.monotonic() < deadline:
        time.sleep(0.5)
    assert (
        found["state"] == "failed"
        and str(job) in client.get(f"{API}/jobs/demo/source").json()["log"]
    )
    for broken in ("{", "[]", '{"job": 1}', '{"job": "/nowhere/job.yaml", "data": []}'):
        (folder / "started.json").write_text(broken)
        assert not client.get(f"{API}/jobs/demo").json()["resumable"]


def test_bad_jobs_are_told_line_by_line(client):
    text = "version: 1\nname: x\npool: [a]\nsuites: [gsm8k]\nobjektives: []\nbudget: {trials: 0}\n"
    for path, status in (("/validate", 200), ("/jobs", 422)):
        answer = client.post(API + path, json={"text": text})
        assert answer.status_code == status
        assert {"job.yaml:5", "job.yaml:6"} <= {
            problem["where"] for problem in answer.json()["problems"]
        }


def test_a_job_whose_pool_is_missing_fails_with_the_driver_s_words(tmp_path):
    client = client_of(tmp_path)
    text = (
        "version: 1\nname: lost\npool: nowhere/*\nsuites: [demo]\nobjectives:\n- {suite: demo, "
        "metric: exact_match, direction: maximize}\n- {suite: demo, metric: bits_per_byte, "
        "direction: minimize}\nbudget: {trials: 2}\n"
    )
    made = client.post(f"{API}/jobs", json={"text": text})
    assert made.status_code == 201 and made.json()["state"] == "starting"
    deadline = time.monotonic() + 120
    while (job := client.get(f"{API}/jobs/lost").json())["running"] and time.monotonic() < deadline:
        time.sleep(0.5)
    assert (
        job["state"] == "failed"
        and "nowhere" in client.get(f"{API}/jobs/lost/source").json()["log"]
    )
    assert client.post(f"{API}/jobs", json={"text": text}).status_code == 200  # the same job again
    assert (
        client.post(f"{API}/jobs", json={"text": text + "seed: 1\n"}).status_code == 409
    )  # another one of that id


def test_export_runs_beside_and_is_whole(client, root):
    answer = client.post(f"{API}/jobs/demo/export", json={"trial": "8"})
    assert answer.status_code == 202 and answer.json()["id"] == "trial-8"
    deadline = time.monotonic() + 180
    while (found := client.get(f"{API}/jobs/demo/exports/trial-8").json())[
        "state"
    ] == "running" and time.monotonic() < deadline:
        time.sleep(0.5)
    assert found["state"] == "done" and found["num_bytes"] > 1000, found
    assert (root / "demo/exports/trial-8/model.safetensors").is_file()
    assert client.post(f"{API}/jobs/demo/export", json={"trial": "8"}).status_code == 200
    assert client.post(f"{API}/jobs/demo/export", json={"trial": "4711"}).status_code == 404


def finished_export(client, export_id, job="demo"):
    deadline = time.monotonic() + 180
    while (found := client.get(f"{API}/jobs/{job}/exports/{export_id}").json())[
        "state"
    ] == "running" and time.monotonic() < deadline:
        time.sleep(0.3)
    return found


def test_an_export_has_the_dtype_and_the_place_that_were_asked_for(root, tmp_path):
    from safetensors import safe_open

    client = client_of(root, export_place=str(tmp_path))
    order = {"trial": "9", "dtype": "float16", "destination": "Ours/knee.v2"}
    told = client.get(
        f"{API}/jobs/demo/trials/9/recipe",
        params={"dtype": "float16", "destination": "Ours/knee.v2"},
    ).json()
    made = client.post(f"{API}/jobs/demo/export", json=order)
    found = finished_export(client, made.json()["id"])
    assert (
        made.status_code == 202
        and found["state"] == "done"
        and found["to"] == str(tmp_path / "Ours/knee.v2")
    ), found
    with safe_open(tmp_path / "Ours/knee.v2/model.safetensors", framework="np") as file:
        assert {file.get_tensor(name).dtype.name for name in list(file.keys())} == {"float16"}
    assert (
        not found["as_scored"] and not found["verified"]
    )  # in another dtype nothing was scored to compare with
    card, preview = (tmp_path / "Ours/knee.v2/README.md").read_text(), told["card"].rstrip()
    assert (
        card.startswith(preview)
        and len(card[len(preview) :].strip().splitlines()) == 1
        and "mergekit" in card[len(preview) :]
    )  # the preview is the card, but for what only a look at the tensors tells
    assert found["command"] == told["command"] and "--dtype float16" in told["command"]
    assert client.post(f"{API}/jobs/demo/export", json=order).status_code == 200
    assert (
        client.post(f"{API}/jobs/demo/export", json={**order, "trial": "10"}).status_code == 409
    )  # another model lies there
    assert (
        finished_export(client_of(root, export_place=str(tmp_path)), found["id"])["state"] == "done"
    )  # a new service knows it still
    assert (
        client_of(root).get(f"{API}/jobs/demo/exports/{found['id']}").json()["state"] == "failed"
    )  # one without that root says so


def test_an_export_goes_to_a_bucket(root):
    with s3_server() as (host, port), pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }.items():
            patch.setenv(name, value)
        httpx.put(f"http://{host}:{port}/models")
        client = client_of(root, export_place="s3://models/ours/")
        made = client.post(
            f"{API}/jobs/demo/export", json={"trial": "9", "destination": "demo-9"}
        ).json()
        found = finished_export(client, made["id"])
        assert (
            found["state"] == "done"
            and found["to"] == "s3://models/ours/demo-9"
            and found["num_bytes"] > 1000
        ), found
        assert (
            "recycler-manifest.json"
            in httpx.get(f"http://{host}:{port}/models?list-type=2&prefix=ours/demo-9/").text
        )


def test_the_export_root_is_a_folder_apart(root, tmp_path):
    from recycler.errors import UsageError

    for place in (str(tmp_path / "nowhere"), str(root), str(root.parent), "ftp://x/y"):
        with pytest.raises(UsageError):
            create_app(root, token=None, export_place=place)


def test_an_export_does_not_become_a_member_of_its_own_pool(tmp_path, capsys):
    """Neither by the command line nor by the service; beside members that the job names one by one
    it may lie.
    """
    import yaml

    folder = make_run(tmp_path / "runs", merges=1, checkpoints=True)
    pool = tmp_path / "runs/pool"
    client = client_of(tmp_path / "runs", export_place=str(pool))
    for entries, listed in (
        ([], True),
        (["runs/pool"], True),
        (["runs/pool/*"], True),
        ([f"runs/pool/{name}" for name in NAMES], False),
    ):
        if entries:
            (tmp_path / "job.yaml").write_text(
                yaml.safe_dump(
                    {
                        "version": 1,
                        "pool": entries,
                        "suites": ["demo"],
                        "budget": {"trials": 1},
                        "objectives": [
                            {"suite": "demo", "metric": name, "direction": "maximize"}
                            for name in "ab"
                        ],
                    }
                )
            )
            (folder / "started.json").write_text(
                json.dumps({"job": str(tmp_path / "job.yaml"), "data": []})
            )
        assert main(["export", str(folder), "--trial", "0", "--to", str(pool / "again")]) == (
            2 if listed else 0
        )
        answer = client.post(f"{API}/jobs/demo/export", json={"trial": "0", "destination": "other"})
        assert (
            answer.status_code == (422 if listed else 202) and (pool / "again").exists() != listed
        )
        if listed:
            assert (
                "one more of them" in capsys.readouterr().err
                and "one more of them" in answer.json()["problems"][0]["cause"]
            )
            assert (
                not (pool / "other").exists()
                and client.get(f"{API}/jobs/demo/exports").json()["exports"] == []
            )
    assert finished_export(client, answer.json()["id"])["state"] == "done"


@pytest.mark.ray
@pytest.mark.usefixtures("shared_ray")
def test_a_real_job_from_submit_to_export(sound, tmp_path):
    import yaml

    client = client_of(tmp_path)
    job = {
        **JOB,
        "name": "real",
        "pool": {"members": [str(sound / "pool/members")], "base": str(sound / "pool/base")},
        "suites": [str(sound / "echo.yaml")],
        "budget": {"trials": 2},
    }
    assert client.post(f"{API}/jobs", json={"text": yaml.safe_dump(job)}).status_code == 201
    deadline = time.monotonic() + 400
    while (found := client.get(f"{API}/jobs/real").json())[
        "running"
    ] and time.monotonic() < deadline:
        time.sleep(1)
    assert found["state"] == "finished", client.get(f"{API}/jobs/real/source").json()["log"]
    exported = client.post(f"{API}/jobs/real/export", json={"trial": "knee"}).json()
    while (done := client.get(f"{API}/jobs/real/exports/{exported['id']}").json())[
        "state"
    ] == "running" and time.monotonic() < deadline:
        time.sleep(1)
    assert done["state"] == "done" and done["verified"], done
