"""lm-eval's own tasks pointed at local files:

YAMLs that include the installed ones and change nothing but where rows come from.
"""

from __future__ import annotations

import csv
import gzip
import importlib.util
import json
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BBH = ("boolean_expressions", "sports_understanding", "disambiguation_qa")
DEFINITIONS = {
    "gsm8k": "gsm8k/gsm8k.yaml",
    "mgsm_native_cot_es": "mgsm/native_cot/mgsm_native_cot_es.yaml",
    "mgsm_direct_es": "mgsm/direct/mgsm_direct_es.yaml",
    "humaneval": "humaneval/humaneval.yaml",
    "mbpp": "mbpp/mbpp.yaml",
    "ifeval": "ifeval/ifeval.yaml",
    **{f"leaderboard_bbh_{name}": f"leaderboard/bbh_mc/{name}.yaml" for name in BBH},
}


def write_local_tasks(folder: Path, data: Path, names: Sequence[str]) -> None:
    """For each task a YAML and its rows as JSONL, with the columns of the data set that lm-eval
    would download.
    """
    root = Path(importlib.util.find_spec("lm_eval").submodule_search_locations[0]) / "tasks"
    for name in names:
        files = {}
        for split, rows in _rows(name, data).items():
            files[split] = str(folder / f"{name}_{split}.jsonl")
            Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(
            "\n".join(
                [
                    f"include: {root / DEFINITIONS[name]}",
                    f"task: {name}",
                    "dataset_path: json",
                    "dataset_name: null",
                    "dataset_kwargs:",
                    "  data_files:",
                    *(f"    {split}: {path}" for split, path in files.items()),
                    "",
                ]
            )
        )


def _rows(name: str, data: Path) -> dict[str, list[dict[str, Any]]]:
    if name == "gsm8k":
        return {split: _jsonl(data / f"gsm8k/{split}.jsonl") for split in ("train", "test")}
    if name.startswith("mgsm"):
        rows = list(
            csv.reader(
                (data / f"mgsm/mgsm_{name[-2:]}.tsv").open(newline="", encoding="utf-8"),
                delimiter="\t",
                quoting=csv.QUOTE_NONE,
            )
        )
        test = [
            {
                "question": question,
                "answer": None,
                "answer_number": int(answer.replace(",", "")),
                "equation_solution": None,
            }
            for question, answer in rows
        ]
        return {"train": test[:1], "test": test}
    if name == "humaneval":
        return {
            "test": [
                json.loads(line)
                for line in gzip.open(data / "humaneval/HumanEval.jsonl.gz", "rt", encoding="utf-8")
            ]
        }
    if name == "mbpp":
        return {"test": _jsonl(data / "mbpp/mbpp.jsonl")[10:510]}
    if name == "ifeval":
        return {"train": _jsonl(data / "ifeval/input_data.jsonl")}
    return {
        "test": json.loads(
            (data / f"bbh/{name.removeprefix('leaderboard_bbh_')}.json").read_text()
        )["examples"]
    }


def _jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def code_eval_in_the_sandbox() -> None:
    """Stand in for the hub metric 'code_eval', which lm-eval's code tasks load when imported: the
    same pass@1, inside our sandbox.

    As code_eval does it, the tests follow the program in one interpreter; ours runs them apart, so
    equal values show equal verdicts.
    """
    from recycler.scoring.sandbox.parent import shared_sandbox
    from recycler.scoring.sandbox.verdict import Program

    class CodeEval:
        def compute(
            self, references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int]
        ) -> tuple[Mapping[str, float], None]:
            verdicts = shared_sandbox().run_many(
                [
                    Program("", f"{texts[0]}\n{reference}")
                    for reference, texts in zip(references, predictions, strict=True)
                ]
            )
            return {"pass@1": sum(verdict.passed for verdict in verdicts) / len(verdicts)}, None

    module = types.ModuleType("evaluate")
    module.load = lambda name: CodeEval()
    sys.modules["evaluate"] = module
