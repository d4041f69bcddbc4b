"""The Pool page's documents: lineage, deltas by layer, and what leaving a member out would cost."""

import json
import time

import pytest

pytest.importorskip("fastapi", reason="needs recycler[service]")
pytest.importorskip("plotly", reason="needs recycler[service]")
pytest.importorskip("httpx", reason="FastAPI's test client needs httpx")

import numpy as np
import yaml

from recycler.cli import main
from recycler.location import parse_location
from recycler.merge.files.recipe_yaml import open_recipe
from recycler.pool.checks.lineage import lineage
from recycler.results.open import open_front
from recycler.run.leave_out import outcome
from service_client import API, client_of
from service_runs import NAMES, OBJECTIVES, make_run, scorecard_of
from small_job import JOB


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    make_run(root, "demo", merges=60, checkpoints=True, suites=True)
    make_run(root, "young", merges=0)
    return root


@pytest.fixture(scope="module")
def client(root):
    return client_of(root)


def test_the_merge_to_try_leaves_the_member_out_and_scores_as_predicted(client, tmp_path):
    found = client.get(f"{API}/jobs/demo/pool/without").json()
    assert [member["name"] for member in found["members"]] == list(NAMES)
    for member in found["members"]:
        assert 0.0 <= member["low"] <= member["loss"] <= member["high"] <= 1.0
        (tmp_path / "without.yaml").write_text(member["try"]["recipe"])
        recipe, _ = open_recipe(tmp_path / "without.yaml")
        assert recipe.weights[0][NAMES.index(member["name"])] == 0.0
        for objective, score in zip(OBJECTIVES, scorecard_of(recipe).scores, strict=True):
            told = member["try"]["predicted"][objective.name]
            assert abs(told["value"] - score.value) < 5 * np.hypot(told["stderr"], score.stderr), (
                member["name"],
                objective.name,
            )


def test_the_estimate_is_kinder_than_leaving_out_all_trials_with_the_member(client):
    """The merges that are tried without a member make up for a part of what the scored trials alone
    would lose.
    """
    pool, found = (
        client.get(f"{API}/jobs/demo/pool").json(),
        client.get(f"{API}/jobs/demo/pool/without").json(),
    )
    for observed, member in zip(pool["members"], found["members"], strict=True):
        assert member["low"] <= 1.0 - observed["hypervolume_without"] / pool["hypervolume"]


def test_a_model_of_few_trials_says_so(client):
    found = client.get(f"{API}/jobs/young/pool/without").json()
    assert [(member["name"], member["loss"], member["job"]) for member in found["members"]] == [
        (name, None, None) for name in NAMES
    ] and "too few for a model" in found["reason"]


def test_deltas_are_measured_once_beside_the_service(client, root):
    assert client.get(f"{API}/jobs/demo/pool/deltas").json()["state"] == "absent"
    assert client.post(f"{API}/jobs/demo/pool/deltas", json={}).status_code == 202
    deadline = time.monotonic() + 120
    while (found := client.get(f"{API}/jobs/demo/pool/deltas").json())[
        "state"
    ] == "running" and time.monotonic() < deadline:
        time.sleep(0.2)
    assert found["state"] == "done", found
    assert [member["name"] for member in found["profile"]["members"]] == list(NAMES)
    assert all(
        len(member["layers"]) > 0 and min(member["layers"]) > 0
        for member in found["profile"]["members"]
    )
    assert client.post(f"{API}/jobs/demo/pool/deltas", json={}).status_code == 200
    assert found["command"].startswith("recycler inspect ") and found["command"].endswith(
        " --deltas"
    )


def test_deltas_of_a_pool_that_has_gone_fail_with_a_reason(tmp_path):
    make_run(tmp_path, "lost", merges=1)
    client = client_of(tmp_path)
    client.post(f"{API}/jobs/lost/pool/deltas", json={})
    deadline = time.monotonic() + 120
    while (found := client.get(f"{API}/jobs/lost/pool/deltas").json())[
        "state"
    ] == "running" and time.monotonic() < deadline:
        time.sleep(0.2)
    assert found["state"] == "failed" and "math-v3" in found["reason"]


def finished(client, job, seconds=400):
    deadline = time.monotonic() + seconds
    while (found := client.get(f"{API}/jobs/{job}").json())[
        "running"
    ] and time.monotonic() < deadline:
        time.sleep(1)
    assert found["state"] == "finished", client.get(f"{API}/jobs/{job}/source").json()["log"]
    return found


@pytest.mark.ray
@pytest.mark.usefixtures("shared_ray")
def test_a_member_is_left_out_for_certain_by_a_job_of_its_own(sound, tmp_path, capsys):
    """Asked for twice it is one job; it is listed with the others, pays for nothing that is known,
    and tells both volumes at its end.
    """
    client = client_of(tmp_path)
    job = {
        **JOB,
        "name": "whole",
        "pool": {"members": [str(sound / "pool/members")], "base": str(sound / "pool/base")},
        "suites": [str(sound / "echo.yaml")],
        "budget": {"trials": 4},
    }
    assert client.post(f"{API}/jobs", json={"text": yaml.safe_dump(job)}).status_code == 201
    finished(client, "whole")
    before = client.get(f"{API}/jobs/whole/pool/without").json()
    assert [member["job"] for member in before["members"]] == [None] * 3 and before["members"][1][
        "command"
    ] == f"recycler without {tmp_path / 'whole'} m1"
    assert (
        client.post(f"{API}/jobs/whole/pool/without", json={"member": "nobody"}).status_code == 404
    )
    asked = [client.post(f"{API}/jobs/whole/pool/without", json={"member": "m1"}) for _ in range(2)]
    assert [answer.status_code for answer in asked] == [202, 202] and {
        answer.json()["id"] for answer in asked
    } == {"whole-without-m1"}
    assert {entry["id"] for entry in client.get(f"{API}/jobs").json()["jobs"]} == {
        "whole",
        "whole-without-m1",
    }
    finished(client, "whole-without-m1")

    whole, other = open_front(tmp_path / "whole"), open_front(tmp_path / "whole-without-m1")
    known = {
        (trial.recipe.weights[0][0], trial.recipe.weights[0][2]): trial.search
        for trial in whole.trials
        if trial.recipe.weights[0][1] == 0.0
    }
    assert (
        len(known) >= 3
        and all(trial.recipe.members == ("m0", "m2") for trial in other.trials)
        and sum(trial.is_proposed for trial in other.trials) == 4
    )
    assert known == {
        trial.recipe.weights[0]: trial.search
        for trial in other.trials
        if trial.recipe.weights[0] in known
    }
    told = client.get(f"{API}/jobs/whole/pool/without").json()["members"]
    assert told[0]["job"] is told[2]["job"] is None and told[1]["job"]["outcome"] == outcome(
        whole, other
    )
    again = client.post(f"{API}/jobs/whole/pool/without", json={"member": "m1"})
    assert again.status_code == 200 and again.json()["outcome"] == outcome(whole, other)
    assert main(["without", str(tmp_path / "whole"), "m1"]) == 0  # the same job by hand: it is done
    said = capsys.readouterr().out
    assert (
        f"search: hypervolume {outcome(whole, other)['search']['hypervolume']:.4g} with m1" in said
    )


def test_a_job_of_that_name_that_leaves_out_nobody_says_nothing(client, root):
    make_run(root, "demo-without-math-v3", merges=2)
    (root / "demo-without-math-v3.job.yaml").write_text("version: 1\n")
    assert client.get(f"{API}/jobs/demo/pool/without").json()["members"][0]["job"] is None
    answer = client.post(
        f"{API}/jobs/demo/pool/without", json={"member": "math-v3"}
    )  # its job file is not known
    assert answer.status_code == 422 and "pool:" in answer.json()["problems"][0]["remedy"]


def test_lineage_is_what_the_files_say(tmp_path):
    folder = tmp_path / "math"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "_name_or_path": "org/base", "dtype": "bfloat16"})
    )
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "r": 16,
                "lora_alpha": 32,
                "base_model_name_or_path": "org/base",
                "target_modules": ["q_proj", "v_proj"],
            }
        )
    )
    (folder / "trainer_state.json").write_text(
        json.dumps(
            {
                "global_step": 300,
                "max_steps": 1000,
                "epoch": 0.5,
                "log_history": [{"loss": 1.5}, {"loss": 0.9}],
            }
        )
    )
    (folder / "README.md").write_text(
        "---\n"
        + yaml.safe_dump({"base_model": "org/base", "datasets": ["a", "b"]})
        + "---\n# Math\n"
    )
    found = lineage(parse_location(folder))
    assert (
        found["adapter"] == "LORA rank 16 alpha 32"
        and found["adapted modules"] == "q_proj, v_proj"
        and found["adapter of"] == found["saved from"] == found["base model"] == "org/base"
    )
    assert (
        found["trained"] == "300 of 1000 steps, 0.50 epochs"
        and found["last loss"] == "0.9"
        and found["datasets"] == "a, b"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "[[[",
        "{",
        "7",
        "[" * 100_000,
        "---\n&a [*a]\n---\n",
        "---\nx: {\n---\n",
        '{"log_history": 3, "epoch": {}}',
        "\x00",
        "x" * 2_000_000,
    ],
)
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "adapter_config.json",
        "trainer_state.json",
        "README.md",
        "recycler-manifest.json",
    ],
)
def test_lineage_passes_over_what_it_cannot_read(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert all(
        isinstance(value, str) and len(value) <= 200
        for value in lineage(parse_location(tmp_path)).values()
    )
    assert lineage(parse_location("s3://bucket/x")) == {}
    assert lineage(parse_location(tmp_path / "nowhere")) == {}
