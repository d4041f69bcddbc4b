"""A job may name a task of lm-eval and nothing more."""

import importlib.util
import json

import pytest

from letters import Letters
from recycler.errors import InfrastructureError, NotFoundError, UsageError
from recycler.scoring.lmeval.definitions import data_settings
from recycler.scoring.suite_file import bare_suite, suite_path
from recycler.scoring.tasks import build_suite
from recycler.specs.job import read_job
from recycler.specs.suite import read_suite

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed"
    ),
]


@pytest.fixture
def mirror(tmp_path):
    """A small GSM8K (train and test) and a small IFEval-like task of one split."""
    (tmp_path / "gsm8k").mkdir()
    for split, count in (("train", 24), ("test", 6)):
        rows = [
            {"question": f"{split} {number}?", "answer": f"so #### {number}"}
            for number in range(count)
        ]
        (tmp_path / f"gsm8k/{split}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
    (tmp_path / "bbh/navigate").mkdir(parents=True)
    (tmp_path / "bbh/navigate/test.jsonl").write_text(
        "".join(
            json.dumps({"input": f"go {number}", "target": "Yes"}) + "\n" for number in range(8)
        )
    )
    return tmp_path


def test_search_is_on_training_rows_and_the_holdout_is_the_test_set(mirror):
    path = suite_path("lm_eval:gsm8k", beside=mirror)
    suite = build_suite(path, Letters(), data_folders=[mirror])
    assert suite.name == "gsm8k" and suite.test_tasks == ()
    assert [len(suite.select(role)) for role in ("search", "holdout")] == [12, 6]
    first = suite.select("holdout")[0]
    assert (
        first.prompt.count("train ") == 5 and "test 0?" in first.prompt and first.gold.endswith("0")
    )


def test_a_task_with_one_split_is_halved_and_says_that_it_searches_a_test_set(mirror):
    suite = build_suite(
        suite_path("lm_eval:leaderboard_bbh_navigate", beside=mirror),
        Letters(),
        data_folders=[mirror],
    )
    assert suite.test_tasks == ("leaderboard_bbh_navigate",) and [
        len(suite.select(role)) for role in ("search", "holdout")
    ] == [4, 4]


def test_without_a_mirror_the_hub_is_named_and_told_when_it_is_away(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        InfrastructureError,
        match="data set openai/gsm8k: cannot be had from the hub.*gsm8k/train.jsonl below --data",
    ):
        bare_suite("gsm8k", [tmp_path])


def test_names_that_lm_eval_does_not_know_are_refused(mirror):
    with pytest.raises(NotFoundError, match="no_such_task"):
        suite_path("lm_eval:no_such_task", beside=mirror)


def test_a_job_takes_such_a_name(mirror, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        "version: 1\npool: pool\nsuites: [lm_eval:gsm8k]\nbudget: {trials: 1}\nobjectives:\n"
        "  - {suite: gsm8k, metric: 'exact_match,strict-match', direction: maximize}\n  - "
        "{suite: gsm8k, metric: 'exact_match,flexible-extract', direction: maximize}\n"
    )
    assert read_job(path)[0].suites == ["lm_eval:gsm8k"]
    path.write_text(
        path.read_text().replace(
            "suite: gsm8k, metric: 'exact_match,s", "suite: gsm, metric: 'exact_match,s"
        )
    )
    with pytest.raises(UsageError, match="not under suites"):
        read_job(path)
    assert (
        read_suite(suite_path("lm_eval:gsm8k", beside=mirror))[0].tasks["gsm8k"].fewshot.data
        == "gsm8k/train.jsonl"
    )


def test_a_task_whose_training_rows_are_a_test_split_says_so(mirror, monkeypatch):
    settings = {"dataset_path": "openai/gsm8k", "test_split": "train", "validation_split": "test"}
    monkeypatch.setattr("recycler.scoring.suite_file.data_settings", lambda task, where: settings)
    assert bare_suite("gsm8k", [mirror])["tasks"]["gsm8k"]["search"]["benchmark_test"] is True


@pytest.mark.parametrize(
    "name", ["gsm8k", "mmlu_anatomy", "bbh_cot_fewshot_snarks", "minerva_math_algebra", "arc_easy"]
)
def test_tasks_are_found_however_their_yaml_writes_the_key(name):
    """mmlu's files say "task": in quotes."""
    assert data_settings(name)["task"] == name


def test_a_group_names_its_tasks_and_a_near_miss_the_right_one():
    with pytest.raises(
        UsageError,
        match="'mmlu': is a group of 57 tasks. Name them one by one, such as "
        "mmlu_abstract_algebra, mmlu_anatomy",
    ):
        data_settings("mmlu")
    with pytest.raises(UsageError, match="group of 7 tasks.*minerva_math_algebra"):
        data_settings("minerva_math")
    with pytest.raises(NotFoundError, match="Did you mean 'mmlu_anatomy'"):
        data_settings("mmlu_anatomi")
