"""A run in MLflow and in Weights & Biases says what the ledger says.

Both are extras: without them their command says so.
"""

import json
import shutil
import struct
import subprocess
import sys

import pytest

from recycler.cli import main
from recycler.export.lm_eval_files import read_lm_eval_outcomes, read_lm_eval_scores
from recycler.ledger.runs import open_ledger
from recycler.results.open import open_front
from recycler.scoring.frozen import read_frozen
from service_runs import OBJECTIVES, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs"), "demo", merges=6)


@pytest.mark.parametrize("flag, module", [("--mlflow", "mlflow"), ("--wandb", "wandb")])
def test_without_the_extra_the_command_names_it(run, flag, module, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["log", str(run), flag, "x"]) == 2
    assert f"recycler[{module}]" in capsys.readouterr().err


def test_the_trackers_are_imported_only_by_their_own_files():
    code = (
        "import recycler.cli.share, recycler.export.mlflow_log, recycler.export.wandb_log, sys; "
        "print(sorted({'mlflow', 'wandb'} & set(sys.modules)))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_mlflow_holds_every_closed_trial_once(run, tmp_path, monkeypatch, capsys):
    mlflow = pytest.importorskip("mlflow", reason="needs recycler[mlflow]")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file:{tmp_path}/mlruns"
    assert main(["log", str(run), "--mlflow", uri]) == 0
    assert main(["log", str(run), "--mlflow", uri]) == 0
    assert "wrote 0 trials" in capsys.readouterr().err
    client = mlflow.MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    children = {
        int(one.data.tags["recycler.trial"]): one
        for one in runs
        if "recycler.trial" in one.data.tags
    }
    trials = open_ledger(run).trials()
    assert len(runs) == len(children) + 1 and children.keys() == {trial.number for trial in trials}
    for trial in trials:
        data = children[trial.number].data
        assert children[trial.number].info.status == (
            "FINISHED" if trial.state == "SCORED" else "FAILED"
        )
        assert {
            score.objective: data.metrics[f"search/{score.objective}"] for score in trial.search
        } == {score.objective: score.value for score in trial.search}
        assert [float(data.params[f"weight/{name}"]) for name in trial.recipe.members] == list(
            trial.recipe.weights[0]
        )


def test_a_trial_leaves_as_the_files_of_lm_eval_whole_or_not_at_all(tmp_path, capsys):
    run, out = make_run(tmp_path, "demo", merges=3, suites=True), tmp_path / "files"
    assert main(["log", str(run), "--lm-eval", str(out), "--trial", "3"]) == 0
    assert "of trial 3 to" in capsys.readouterr().err
    trial = next(trial for trial in open_ledger(run).trials() if trial.number == 3)
    for role in ("search", "holdout"):
        if not trial.scores(role):
            assert not (out / role).exists()
            continue
        read = {(score.objective, score.n) for score in read_lm_eval_scores(out / role).scores}
        (items, *_), outcomes = (
            (read_frozen(path).items for path in (run / "suites").glob("*.jsonl")),
            open_ledger(run).outcomes(3, role),
        )
        back = [
            entry
            for path in sorted((out / role).glob("samples_*.jsonl"))
            for entry in read_lm_eval_outcomes(path, [item for item in items if item.role == role])
        ]
        assert read and {entry.item: (entry.values, entry.output) for entry in back} == {
            entry.item: (entry.values, entry.output) for entry in outcomes
        }
    assert (
        main(["log", str(run), "--lm-eval", str(out)]) == 2
        and "exists already" in capsys.readouterr().err
    )
    assert (
        main(["log", str(run), "--lm-eval", str(tmp_path / "new"), "--trial", "99"]) == 3
        and not (tmp_path / "new").exists()
    )
    assert (
        main(["log", str(run), "--mlflow", "x", "--trial", "3"]) == 2
        and "is for --lm-eval" in capsys.readouterr().err
    )
    shutil.rmtree(run / "suites")
    assert (
        main(["log", str(run), "--lm-eval", str(tmp_path / "new")]) == 3
        and not (tmp_path / "new").exists()
    )
    assert "frozen items lie in the run's folder" in capsys.readouterr().err


def records(raw):
    """The records of a .wandb file: after 7 bytes, LevelDB's log format (blocks of 32 kB; checksum,
    length, kind, data).
    """
    place, parts = 7, b""
    while place + 7 <= len(raw):
        if (left := 32_768 - place % 32_768) < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", raw[place + 4 : place + 7])
        parts += raw[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_wandb_offline_holds_every_closed_trial(run, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs recycler[wandb]")
    from wandb.proto import wandb_internal_pb2

    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "WANDB_SILENT": "true",
        "WANDB_CACHE_DIR": str(tmp_path / "cache"),
        "WANDB_DATA_DIR": str(tmp_path / "data"),
    }.items():
        monkeypatch.setenv(name, value)
    assert main(["log", str(run), "--wandb", "recycler"]) == 0
    [path] = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    rows = {}
    for raw in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(raw)
        if record.WhichOneof("record_type") == "history":
            row = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            rows[row.get("trial")] = row
    for trial in open_front(run).trials:
        assert {o.name: rows[trial.number][f"search/{o.name}"] for o in OBJECTIVES} == {
            score.objective: score.value for score in trial.search
        }
