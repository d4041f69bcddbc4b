"""vLLM against transformers: how often greedy answers agree, and how far log-likelihoods are apart.

    python benchmarks/engines/run.py POOL_DIR DATA_DIR OUT.json [DTYPE=MEMBER,MEMBER:ITEMS:TOKENS
    ...]

POOL_DIR holds base/ and members/. Questions of GSM8K test in the chat form; the text is greedy with
TOKENS new ones, the likelihoods are of the gold answers. One process an engine, since vLLM keeps
what it has taken.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from recycler.engines import build_engine
from recycler.pool.catalog import open_pool
from recycler.scoring.tasks import encode, load_tokenizer
from recycler.search.baselines import blend
from recycler.types import GenerateRequest, LoglikelihoodRequest

CASES = ("bfloat16=math-late,mix:200:32", "float32=math-late:200:32")


def main(pool: str, data: str, out: str, *cases: str) -> None:
    found = {}
    for case in cases or CASES:
        answers = {}
        for engine in ("transformers", "vllm"):
            aside = Path(f"{out}.{engine}")
            subprocess.run(
                [sys.executable, __file__, "--ask", engine, pool, data, case, str(aside)],
                check=True,
            )
            answers[engine] = json.loads(aside.read_text())
            aside.unlink()
        found[case] = {
            member: compare(answers["transformers"][member], answers["vllm"][member])
            for member in answers["vllm"]
        }
        Path(out).write_text(json.dumps(found, indent=1))
        print(case, json.dumps(found[case]), flush=True)


def compare(ours: dict, theirs: dict) -> dict:
    """Figures of one member on both engines: equal texts, the first token that differs, and nats
    apart per answer and token.
    """
    pairs = list(zip(ours["texts"], theirs["texts"], strict=True))
    sums = np.array([[sum(entry) for entry in side["tokens"]] for side in (ours, theirs)])
    tokens = np.concatenate(
        [np.array(a) - np.array(b) for a, b in zip(ours["tokens"], theirs["tokens"], strict=True)]
    )
    gap = sums[0] - sums[1]
    return {
        "same_digest": ours["digest"] == theirs["digest"],
        "items": len(pairs),
        "same_text": sum(a == b for a, b in pairs),
        "same_first_half": sum(a[: len(a) // 2] == b[: len(a) // 2] for a, b in pairs),
        "answers": int(sums.shape[1]),
        "mean_logprob": float(sums.mean()),
        "mean_difference": float(gap.mean()),
        "sd_difference": float(gap.std()),
        "max_difference": float(np.abs(gap).max()),
        "max_token_difference": float(np.abs(tokens).max()),
        "relative_difference_of_the_mean": float(abs(gap.mean() / sums.mean())),
        "seconds": {"transformers": ours["seconds"], "vllm": theirs["seconds"]},
    }


def ask(engine: str, pool_dir: str, data: str, case: str, out: str) -> None:
    dtype, _, rest = case.partition("=")
    names, items, new_tokens = rest.split(":")
    pool = open_pool([f"{pool_dir}/members"], f"{pool_dir}/base")
    tokenizer = load_tokenizer(Path(pool_dir) / "base")
    rows = [
        json.loads(line)
        for line in (Path(data) / "gsm8k/test.jsonl").read_text().split("\n")
        if line
    ][: int(items)]
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
    live = build_engine(engine, pool, dtype=dtype, max_model_len=768)
    found = {}
    for name in names.split(","):
        digest, started = live.apply(blend(pool, dtype, {name: 1.0})), time.process_time()
        texts = [
            answer.text
            for answer in live.generate(
                [
                    GenerateRequest(prompt_ids=prompt, max_new_tokens=int(new_tokens))
                    for prompt in prompts
                ]
            )
        ]
        likelihoods = live.loglikelihood(
            [
                LoglikelihoodRequest(context_ids=prompt, continuation_ids=gold)
                for prompt, gold in zip(prompts[::2], golds[::2], strict=True)
            ]
        )
        found[name] = {
            "digest": digest,
            "texts": texts,
            "tokens": [entry.token_logprobs for entry in likelihoods],
            "seconds": round(time.process_time() - started),
        }
    Path(out).write_text(json.dumps(found))
    live.close()


if __name__ == "__main__":
    if sys.argv[1] == "--ask":
        ask(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
