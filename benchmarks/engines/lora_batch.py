"""Several CAT merges of LoRA adapters in one batch (multi-LoRA) against one dense merge after the other, in vLLM.

    python benchmarks/engines/lora_batch.py BASE ADAPTERS_DIR DATA_DIR OUT.json [CASE ...]

A CASE is DTYPE:ADAPTER,ADAPTER,...:RECIPES:ITEMS:TOKENS, ADAPTER "all" for every folder. RECIPES random weights are scored on the
same ITEMS questions of GSM8K test, greedy text of TOKENS new ones, then the likelihood of the gold answers, in four ways:

    dense     one recipe after the other through our engine: weights merged in place, then all its requests
    wide      one recipe, RECIPES times as many questions at once: what a larger batch alone could give
    lora      all recipes at once, each a LoRA of rank sum(r) under a name of its own, with vLLM's own kernels
    grouped   the same with our kernels for a CPU (`vllm_patches`): vLLM's copy the factors once a token

One process a way. Seconds are wall / CPU of that process; "same" counts texts equal to the dense merge's, nats are of answers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

WAYS = ("dense", "wide", "lora", "grouped")
CASES = ("bfloat16:math-late,code-late,arith-late,mix:4:16:64", "bfloat16:all:4:16:64", "float32:math-late,code-late,arith-late,mix:4:16:64")
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the sizes vLLM keeps room for


def main(base: str, adapters: str, data: str, out: str, *cases: str) -> None:
    found = {}
    for case in cases or CASES:
        with tempfile.TemporaryDirectory(prefix="lora-batch-") as aside:
            prepare(Path(base), Path(adapters), case, Path(aside))
            answers = {}
            for way in WAYS:
                subprocess.run([sys.executable, __file__, "--ask", way, data, case, aside], check=True)
                answers[way] = json.loads((Path(aside) / f"{way}.json").read_text())
                print(case, way, json.dumps(answers[way]["figures"]), flush=True)
        found[case] = {way: answers[way]["figures"] | ({} if way == "wide" else compare(answers["dense"], answers[way])) for way in WAYS}
        print(case, json.dumps(found[case]), flush=True)
        Path(out).write_text(json.dumps(found, indent=1))


def prepare(base: Path, adapters: Path, case: str, aside: Path) -> None:
    """The base and each adapter folded into it, in the case's dtype, and the recipes as adapters: folders of `aside`."""
    import torch
    from safetensors.torch import load_file, save_file

    from recycler.merge.lora import cat, read_adapter, write_adapter
    from recycler.pool.fold import fold_adapter

    dtype, names, recipes = read_case(case, adapters)[:3]
    shutil.copytree(base, aside / "base")
    tensors = load_file(base / "model.safetensors")
    save_file({name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}, aside / "base/model.safetensors", metadata={"format": "pt"})
    for name in names:
        fold_adapter(aside / "base", adapters / name, aside / "members" / name)
    found = [read_adapter(adapters / name) for name in names]
    weights = np.random.default_rng(0).dirichlet(np.ones(len(names)), recipes) * np.linspace(1.0, 2.0, recipes)[:, None]
    for index, row in enumerate(weights):
        write_adapter(cat(found, row.tolist()), aside / f"recipe-{index}")
    (aside / "weights.json").write_text(json.dumps({"names": names, "rank": sum(max(part.rank for part in adapter.modules.values()) for adapter in found), "weights": weights.tolist(),
                                                    "modules": sorted({module.rpartition(".")[2] for adapter in found for module in adapter.modules})}))


def read_case(case: str, adapters: Path | None = None) -> tuple[str, list[str], int, int, int]:
    dtype, names, *counts = case.split(":")
    every = sorted(path.parent.name for path in adapters.glob("*/adapter_config.json")) if adapters else []
    return dtype, every if names == "all" else names.split(","), *map(int, counts)  # type: ignore[return-value]


def compare(dense: dict, other: dict) -> dict:
    """Texts equal to the dense merge's, and nats apart per answer and per token, over all recipes."""
    texts = [(a, b) for ours, theirs in zip(dense["texts"], other["texts"], strict=True) for a, b in zip(ours, theirs, strict=True)]
    pairs = [(a, b) for ours, theirs in zip(dense["tokens"], other["tokens"], strict=True) for a, b in zip(ours, theirs, strict=True)]
    sums, tokens = np.array([(sum(a), sum(b)) for a, b in pairs]), np.concatenate([np.abs(np.array(a) - np.array(b)) for a, b in pairs])
    by_recipe = np.array([[sum(map(sum, side["tokens"][index])) / len(side["tokens"][index]) for side in (dense, other)] for index in range(len(dense["tokens"]))])
    return {"texts": len(texts), "same": sum(a == b for a, b in texts), "same_first_half": sum(a[: len(a) // 2] == b[: len(a) // 2] for a, b in texts), "answers": len(pairs), "mean_nats": round(float(sums[:, 0].mean()), 3),
            "mean_difference": float(np.diff(sums).mean()), "sd_difference": float(np.diff(sums).std()), "largest_difference": float(np.abs(np.diff(sums)).max()),
            "largest_token_difference": float(tokens.max()), "largest_recipe_difference": float(np.abs(np.diff(by_recipe)).max())}


# ---------------------------------------------------------------- in a process of its own

def ask(way: str, data: str, case: str, aside: str) -> None:
    dtype, _, recipes, items, new_tokens = read_case(case)
    place = Path(aside)
    prompts, golds = questions(place / "base", Path(data), items * (recipes if way == "wide" else 1))
    seconds: dict[str, list[float]] = {}

    def timed(what: str, work: Callable[[], Any]) -> Any:
        started, cpu = time.monotonic(), time.process_time()
        answer = work()
        seconds.setdefault(what, [0.0, 0.0])
        seconds[what] = [round(before + now, 2) for before, now in zip(seconds[what], (time.monotonic() - started, time.process_time() - cpu), strict=True)]
        return answer

    run = one_by_one if way in ("dense", "wide") else at_once
    texts, tokens, num_tokens = run(way, place, dtype, prompts, golds, new_tokens, timed)
    total = sum(wall for wall, _ in seconds.values())
    figures = {"seconds": seconds, "generated": num_tokens, "tokens_per_second": round(num_tokens / seconds["generate"][0], 1), "wall": round(total, 2), "cpu": round(sum(cpu for _, cpu in seconds.values()), 2)}
    (place / f"{way}.json").write_text(json.dumps({"figures": figures, "texts": texts, "tokens": tokens}))


def questions(base: Path, data: Path, count: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Token ids of prompts in the chat form, and of their gold answers."""
    from recycler.scoring.tasks import encode, load_tokenizer

    tokenizer = load_tokenizer(base)
    rows = [json.loads(line) for line in (data / "gsm8k/test.jsonl").read_text().split("\n") if line][:count]
    return ([tuple(encode(tokenizer, tokenizer.apply_chat_template([{"role": "user", "content": row["question"]}], tokenize=False, add_generation_prompt=True))) for row in rows],
            [tuple(tokenizer.encode(row["answer"], add_special_tokens=False)) for row in rows])


def one_by_one(way: str, place: Path, dtype: str, prompts: list, golds: list, new_tokens: int, timed: Callable) -> tuple[list, list, int]:
    from recycler.engines import build_engine
    from recycler.pool.catalog import open_pool
    from recycler.search.baselines import blend
    from recycler.types import GenerateRequest, LoglikelihoodRequest

    pool = open_pool([str(place / "members")], str(place / "base"))
    engine = build_engine("vllm", pool, dtype=dtype, max_model_len=767, kv_cache_gib=4)
    told = json.loads((place / "weights.json").read_text())
    asked = [GenerateRequest(prompt_ids=prompt, max_new_tokens=new_tokens) for prompt in prompts]
    taught = [LoglikelihoodRequest(context_ids=prompt, continuation_ids=gold) for prompt, gold in zip(prompts, golds, strict=True)]
    engine.generate(asked[:2]), engine.loglikelihood(taught[:2])  # what is compiled or allocated once
    texts, tokens, count = [], [], 0
    for row in told["weights"][: 1 if way == "wide" else None]:
        timed("apply", lambda: engine.apply(blend(pool, dtype, dict(zip(told["names"], row, strict=True)))))  # noqa: B023 - called at once
        answers = timed("generate", lambda: engine.generate(asked))
        likelihoods = timed("loglikelihood", lambda: engine.loglikelihood(taught))
        texts.append([answer.text for answer in answers])
        tokens.append([answer.token_logprobs for answer in likelihoods])
        count += sum(answer.num_tokens for answer in answers)
    engine.close()
    return texts, tokens, count


def at_once(way: str, place: Path, dtype: str, prompts: list, golds: list, new_tokens: int, timed: Callable) -> tuple[list, list, int]:
    from recycler.engines.vllm_engine import _set_environment
    from recycler.engines.vllm_patches import patch_vllm

    _set_environment(True, 4, 1)
    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.lora.punica_wrapper import punica_cpu
    from vllm.lora.request import LoRARequest

    own = dict(vars(punica_cpu))
    patch_vllm()
    if way == "lora":
        vars(punica_cpu).update(own)
    told = json.loads((place / "weights.json").read_text())
    recipes = len(told["weights"])
    # without target_modules vLLM wraps lm_head too, which no adapter changes, and then fails on prompt_logprobs (vllm issues 29955, 16668)
    llm = LLM(model=str(place / "base"), dtype=dtype, max_model_len=768, seed=0, enforce_eager=True, disable_log_stats=True, use_tqdm_on_load=False,
              enable_lora=True, max_loras=recipes, lora_target_modules=told["modules"], max_lora_rank=next(rank for rank in RANKS if rank >= told["rank"]))
    names = [LoRARequest(f"recipe-{index}", index + 1, str(place / f"recipe-{index}")) for index in range(recipes)]
    text = SamplingParams(temperature=0.0, max_tokens=new_tokens)
    score = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1, detokenize=False)

    def run(inputs: list, params: Any) -> Iterator[list]:
        pairs = [(TokensPrompt(prompt_token_ids=list(ids)), name) for name in names for ids in inputs]
        outputs = llm.generate([prompt for prompt, _ in pairs], params, use_tqdm=False, lora_request=[name for _, name in pairs])
        return [outputs[start : start + len(inputs)] for start in range(0, len(outputs), len(inputs))]

    timed("apply", lambda: [llm.llm_engine.add_lora(name) for name in names])
    llm.generate([TokensPrompt(prompt_token_ids=[5, 6, 7])], text, use_tqdm=False, lora_request=names[0])
    answers = timed("generate", lambda: run(prompts, text))
    likelihoods = timed("loglikelihood", lambda: run([prompt + gold for prompt, gold in zip(prompts, golds, strict=True)], score))
    tokens = [[[entry[token].logprob for token, entry in zip(gold, output.prompt_logprobs[len(prompt):], strict=True)] for output, prompt, gold in zip(own, prompts, golds, strict=True)] for own in likelihoods]
    return [[output.outputs[0].text for output in own] for own in answers], tokens, sum(len(output.outputs[0].token_ids) for own in answers for output in own)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if sys.argv[1] == "--ask":
        ask(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
