"""Results leave in lm-eval's form and old lm-eval runs come in, aggregated and item by item."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from recycler.errors import NotFoundError, UnsafeInputError
from recycler.export.lm_eval_files import (
    read_lm_eval_outcomes,
    read_lm_eval_scores,
    write_lm_eval,
)
from recycler.scoring.outcomes import aggregate
from recycler.types import Item, Objective, Outcome

MATCH = {
    "filters": {
        "exact_match,strict-match": [{"function": "regex", "regex_pattern": "#### ([0-9]+)"}],
        "exact_match,flexible-extract": [
            {"function": "regex", "group_select": -1, "regex_pattern": "([0-9]+)"}
        ],
    },
    "exact_match": {},
}


def _items() -> list[Item]:
    common = {
        "suite": "gsm8k",
        "task": "gsm8k",
        "role": "holdout",
        "kind": "generate",
        "scorer": "lm_eval_match",
        "prompt_ids": (1,),
        "gold": "8",
        "detail": (("match", json.dumps(MATCH)), ("metrics", json.dumps(list(MATCH["filters"])))),
    }
    return [Item(id=f"gsm8k/{index}", prompt=f"Question {index}?", **common) for index in range(4)]


def _outcomes() -> list[Outcome]:
    return [
        Outcome(
            item=f"gsm8k/{index}",
            values=(
                ("exact_match,strict-match", float(index < 1)),
                ("exact_match,flexible-extract", float(index < 3)),
            ),
            output="It is 8.",
        )
        for index in range(4)
    ]


def test_what_is_written_is_read_back(tmp_path):
    items, outcomes = _items(), _outcomes()
    path = write_lm_eval(tmp_path, items, outcomes, model="merge-17", date="2026-01-02T03:04:05")
    run = read_lm_eval_scores(tmp_path)
    assert run == read_lm_eval_scores(path) and run.model == "merge-17"
    for metric in MATCH["filters"]:
        (score,) = aggregate(
            items, outcomes, [Objective(suite="gsm8k", metric=metric, direction="maximize")]
        )
        (read,) = [entry for entry in run.scores if entry.objective == f"gsm8k/{metric}"]
        assert (read.value, read.stderr, read.n) == (score.value, score.stderr, 4)
    back = read_lm_eval_outcomes(tmp_path / "samples_gsm8k_2026-01-02T03-04-05.jsonl", items)
    assert [(entry.item, dict(entry.values), entry.output) for entry in back] == [
        (entry.item, dict(entry.values), entry.output) for entry in outcomes
    ]


def test_samples_have_the_keys_of_lm_eval(tmp_path):
    write_lm_eval(tmp_path, _items(), _outcomes(), model="m", date="d")
    lines = [
        json.loads(line) for line in (tmp_path / "samples_gsm8k_d.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 8 and [line["filter"] for line in lines[:2]] == [
        "strict-match",
        "flexible-extract",
    ]
    assert {
        "doc_id",
        "doc",
        "target",
        "arguments",
        "resps",
        "filtered_resps",
        "filter",
        "metrics",
        "doc_hash",
        "prompt_hash",
        "target_hash",
        "exact_match",
    } <= lines[0].keys()
    assert [line["filtered_resps"] for line in lines[:2]] == [["[invalid]"], ["8"]]
    assert lines[0]["prompt_hash"] == hashlib.sha256(b"Question 0?").hexdigest()


def test_only_items_asked_word_for_word_are_taken_over(tmp_path):
    write_lm_eval(tmp_path, _items()[:2], _outcomes()[:2], model="m", date="d")
    assert [
        outcome.item
        for outcome in read_lm_eval_outcomes(tmp_path / "samples_gsm8k_d.jsonl", _items()[1:])
    ] == ["gsm8k/1"]


def _twins() -> list[Item]:
    """Two items with one prompt and other answers, a third of its own."""
    return [
        replace(item, prompt="same" if index < 2 else item.prompt, gold=str(index))
        for index, item in enumerate(_items()[:3])
    ]


def test_items_with_one_prompt_keep_their_own_outcomes(tmp_path):
    items, outcomes = _twins(), _outcomes()[:3]
    write_lm_eval(tmp_path, items, outcomes, model="m", date="d")
    path = tmp_path / "samples_gsm8k_d.jsonl"

    def back(own=items):
        return [(entry.item, dict(entry.values)) for entry in read_lm_eval_outcomes(path, own)]

    assert back() == [(entry.item, dict(entry.values)) for entry in outcomes]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    numbered = [line | {"doc_id": index // 2} for index, line in enumerate(lines)]
    path.write_text("".join(json.dumps(line) + "\n" for line in numbered))
    assert back() == [(entry.item, dict(entry.values)) for entry in outcomes]
    path.write_text(
        "".join(json.dumps(line | {"target_hash": "other"}) + "\n" for line in numbered)
    )
    assert [item for item, _ in back()] == ["gsm8k/2"]
    path.write_text("".join(json.dumps(line) + "\n" for line in numbered[:2]))
    assert [item for item, _ in back()] == ["gsm8k/0"]


def test_half_a_character_in_an_answer_is_written_and_read(tmp_path):
    outcomes = [replace(_outcomes()[0], output="c\u2028\ud83d"), *_outcomes()[1:]]
    write_lm_eval(tmp_path, _items(), outcomes, model="m", date="d")
    assert [
        entry.output
        for entry in read_lm_eval_outcomes(tmp_path / "samples_gsm8k_d.jsonl", _items())
    ] == [entry.output for entry in outcomes]


def test_what_is_no_number_is_no_score(tmp_path):
    path = tmp_path / "results_x.json"
    path.write_text(
        '{"results": {"t": {"alias": "t", "acc,none": NaN, "ppl,none": Infinity, "yes,none": '
        'true, "f1,none": 0.5, "f1_stderr,none": NaN}}, "n-samples": {"t": {"effective": 100}}}'
    )
    assert [(score.objective, score.stderr) for score in read_lm_eval_scores(path).scores] == [
        ("t/f1", 0.05)
    ]
    write_lm_eval(tmp_path, _items(), _outcomes(), model="m", date="d")
    samples = tmp_path / "samples_gsm8k_d.jsonl"
    samples.write_text(samples.read_text().replace('"exact_match": 1.0', '"exact_match": NaN'))
    read = read_lm_eval_outcomes(samples, _items())
    assert [entry.item for entry in read] == ["gsm8k/1", "gsm8k/2", "gsm8k/3"] and all(
        value == 0.0 for entry in read for _, value in entry.values
    )


def test_missing_errors_are_estimated_and_never_zero(tmp_path):
    path = tmp_path / "results_x.json"
    path.write_text(
        json.dumps(
            {
                "results": {
                    "t": {
                        "alias": "t",
                        "acc,none": 0.5,
                        "acc_stderr,none": "N/A",
                        "ppl,none": 7.0,
                        "ppl_stderr,none": "N/A",
                    }
                },
                "n-samples": {"t": {"effective": 100}},
            }
        )
    )
    assert [(score.objective, score.stderr) for score in read_lm_eval_scores(path).scores] == [
        ("t/acc", 0.05),
        ("t/ppl", 0.5),
    ]


@pytest.mark.parametrize("text", ["", "[]", '{"results": 3}', '{"results": {"t": 1}}'])
def test_broken_results_are_refused(tmp_path, text):
    (tmp_path / "results_x.json").write_text(text)
    with pytest.raises(UnsafeInputError, match="not what lm-eval"):
        read_lm_eval_scores(tmp_path)


def test_missing_files_are_told(tmp_path):
    with pytest.raises(NotFoundError):
        read_lm_eval_scores(tmp_path)
    with pytest.raises(NotFoundError):
        read_lm_eval_outcomes(tmp_path / "samples.jsonl", [])
    (tmp_path / "samples.jsonl").write_text("{")
    with pytest.raises(UnsafeInputError):
        read_lm_eval_outcomes(tmp_path / "samples.jsonl", [])
