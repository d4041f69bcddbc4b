"""Several CAT merges of LoRA adapters in one batch of vLLM against one dense merge after the other:

time, and what rounding does.

    python benchmarks/engines/lora_batch.py BASE ADAPTERS_DIR DATA_DIR OUT.json [CASE ...]

A CASE is DTYPE:ADAPTER,ADAPTER,...:RECIPES:ITEMS:TOKENS, ADAPTER "all" for every folder. RECIPES
random weights are scored on the same ITEMS questions of GSM8K test, greedy text of TOKENS new ones,
then the likelihood of the gold answers, in these ways:

    dense     one recipe after the other: weights merged in place from members folded in
              DTYPE, then all its requests
    exact     the same from members folded in float32, so that a merge is rounded once
    wide      one recipe, RECIPES times as many questions at once: the gain of a larger batch
    beside    all recipes at once, each an adapter of rank sum(r) (`engine.lora_batch`)
    theirs    the same with vLLM's own CPU kernels, which copy the factors once a token

One process a way. Seconds are [wall, CPU]. `to_dense` compares texts and nats an answer with the
dense way, `to_float32` with the dense way of a float32 case of the same recipes and items, where
one is given.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

WAYS = ("dense", "exact", "wide", "beside", "theirs")
CASES = (
    "float32:math-late,code-late,arith-late,mix:3:8:32",
    "bfloat16:math-late,code-late,arith-late,mix:3:8:32",
)


def main(base: str, adapters: str, data: str, out: str, *cases: str) -> None:
    found, answers = {}, {}
    for case in cases or CASES:
        with tempfile.TemporaryDirectory(prefix="lora-batch-") as aside:
            weights = prepare(Path(base), Path(adapters), case, Path(aside))
            for way in WAYS:
                if way != "exact" or not case.startswith("float32"):
                    subprocess.run(
                        [
                            sys.executable,
                            __file__,
                            "--ask",
                            way,
                            adapters,
                            data,
                            case,
                            aside,
                            json.dumps(weights),
                        ],
                        check=True,
                    )
                    answers[case, way] = json.loads((Path(aside) / f"{way}.json").read_text())
        exact = answers.get(("float32:" + case.partition(":")[2], "dense"))
        for way in (way for way in WAYS if (case, way) in answers):
            told = answers[case, way]["figures"]
            if way != "wide":
                told |= {"to_dense": compare(answers[case, "dense"], answers[case, way])} | (
                    {"to_float32": compare(exact, answers[case, way])} if exact else {}
                )
            found.setdefault(case, {})[way] = told
            print(case, way, json.dumps(told), flush=True)
        Path(out).write_text(json.dumps(found, indent=1))


def read_case(case: str, adapters: Path) -> tuple[str, list[str], int, int, int]:
    """(dtype, adapters, recipes, items, new tokens)."""
    dtype, names, *counts = case.split(":")
    every = sorted(path.parent.name for path in adapters.glob("*/adapter_config.json"))
    return dtype, every if names == "all" else names.split(","), *map(int, counts)  # type: ignore[return-value]


def prepare(base: Path, adapters: Path, case: str, aside: Path) -> list[dict[str, float]]:
    """Write the base and each adapter folded into it, in the case's dtype and in float32; give the
    recipes' weights by adapter.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from recycler.pool.adapters.fold import fold_adapter

    dtype, names, recipes = read_case(case, adapters)[:3]
    for wanted in {dtype, "float32"}:
        shutil.copytree(base, aside / wanted / "base")
        save_file(
            {
                name: tensor.to(getattr(torch, wanted))
                for name, tensor in load_file(base / "model.safetensors").items()
            },
            aside / wanted / "base/model.safetensors",
            metadata={"format": "pt"},
        )
        for name in names:
            fold_adapter(
                aside / wanted / "base", adapters / name, aside / wanted / "members" / name
            )
    rows = (
        np.random.default_rng(0).dirichlet(np.ones(len(names)), recipes)
        * np.linspace(1.0, 2.0, recipes)[:, None]
    )
    return [dict(zip(names, row, strict=True)) for row in rows.tolist()]


def compare(one: dict, other: dict) -> dict:
    """How many texts are equal, and by how many nats an answer `other` is likelier: mean,
    deviation, largest; and of a recipe's mean.
    """
    texts = [
        (a, b)
        for ours, theirs in zip(one["texts"], other["texts"], strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    sums = np.array(
        [[[sum(answer) for answer in recipe] for recipe in side["tokens"]] for side in (one, other)]
    )  # (2, recipes, items)
    gap = sums[1] - sums[0]
    return {
        "texts": len(texts),
        "same": sum(a == b for a, b in texts),
        "nats": round(float(sums[0].mean()), 3),
        "mean": float(gap.mean()),
        "sd": float(gap.std()),
        "largest": float(np.abs(gap).max()),
        "by_recipe": [round(float(value), 4) for value in gap.mean(axis=1)],
    }


# ---------------------------------------------------------------- in a process of its own


def ask(way: str, adapters: str, data: str, case: str, aside: str, weights: str) -> None:
    from recycler.engines import build_engine
    from recycler.engines.vllm import patches as vllm_patches
    from recycler.pool.catalog import open_pool
    from recycler.search.baselines import blend

    dtype, _, recipes, items, new_tokens = read_case(case, Path(adapters))
    place = Path(aside) / ("float32" if way == "exact" else dtype)
    pool = open_pool([str(place / "members")], str(place / "base"))
    if way == "theirs":
        vllm_patches._multiply_once_an_adapter = lambda: None  # type: ignore[assignment]
    engine: Any = build_engine(
        "vllm",
        pool,
        dtype=dtype,
        max_model_len=767,
        kv_cache_gib=4,
        **({"lora_batch": recipes, "adapters": adapters} if way in ("beside", "theirs") else {}),
    )
    merges = [blend(pool, dtype, row) for row in json.loads(weights)][
        : 1 if way == "wide" else None
    ]
    texts, taught = questions(
        place / "base", Path(data), items * (recipes if way == "wide" else 1), new_tokens
    )
    (
        engine.generate(texts[:2]),
        engine.loglikelihood(taught[:2]),
    )  # what is compiled or allocated once
    clock = Clock()
    if way in ("beside", "theirs"):
        names = clock("apply", lambda: engine.side_by_side(merges))
        answers = iter(
            clock(
                "generate",
                lambda: engine.generate(
                    [tagged(request, name) for name in names for request in texts]
                ),
            )
        )
        likelihoods = iter(
            clock(
                "loglikelihood",
                lambda: engine.loglikelihood(
                    [tagged(request, name) for name in names for request in taught]
                ),
            )
        )
        found = [
            (list(islice(answers, len(texts))), list(islice(likelihoods, len(taught))))
            for _ in names
        ]
    else:
        found = []
        for merge in merges:
            clock("apply", lambda: engine.apply(merge))  # noqa: B023 - called at once
            found.append(
                (
                    clock("generate", lambda: engine.generate(texts)),
                    clock("loglikelihood", lambda: engine.loglikelihood(taught)),
                )
            )
    engine.close()
    generated = sum(answer.num_tokens for own, _ in found for answer in own)
    figures = {
        "seconds": clock.seconds,
        "wall": round(sum(wall for wall, _ in clock.seconds.values()), 2),
        "cpu": round(sum(cpu for _, cpu in clock.seconds.values()), 2),
        "generated": generated,
    }
    (Path(aside) / f"{way}.json").write_text(
        json.dumps(
            {
                "figures": figures,
                "texts": [[answer.text for answer in own] for own, _ in found],
                "tokens": [[answer.token_logprobs for answer in own] for _, own in found],
            }
        )
    )


def tagged(request: Any, name: str) -> Any:
    from dataclasses import replace

    return replace(request, merge=name)


class Clock:
    """Adds up [wall, CPU] seconds of this process by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, what: str, work: Callable[[], Any]) -> Any:
        started = time.monotonic(), time.process_time()
        answer = work()
        spent = time.monotonic() - started[0], time.process_time() - started[1]
        self.seconds[what] = [
            round(before + now, 2)
            for before, now in zip(self.seconds.get(what, [0.0, 0.0]), spent, strict=True)
        ]
        return answer


def questions(base: Path, data: Path, count: int, new_tokens: int) -> tuple[list[Any], list[Any]]:
    """Requests for a text after each question in the chat form, and for the likelihood of its gold
    answer.
    """
    from recycler.scoring.tasks import encode, load_tokenizer
    from recycler.types import GenerateRequest, LoglikelihoodRequest

    tokenizer = load_tokenizer(base)
    rows = [
        json.loads(line) for line in (data / "gsm8k/test.jsonl").read_text().split("\n") if line
    ][:count]
    prompts = [
        tuple(
            encode(
                tokenizer,
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": row["question"]}],
                    tokenize=False,
                    add_generation_prompt=True,
                ),
            )
        )
        for row in rows
    ]
    golds = [tuple(tokenizer.encode(row["answer"], add_special_tokens=False)) for row in rows]
    return (
        [GenerateRequest(prompt_ids=prompt, max_new_tokens=new_tokens) for prompt in prompts],
        [
            LoglikelihoodRequest(context_ids=prompt, continuation_ids=gold)
            for prompt, gold in zip(prompts, golds, strict=True)
        ],
    )


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if sys.argv[1] == "--ask":
        ask(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
