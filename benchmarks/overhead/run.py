"""What a trial of 500 items costs beside the engine: its parts, side by side in one run, in
milliseconds.

    python benchmarks/overhead/run.py MODEL_DIR DATA_DIR [REPEATS]

The engine is a stand-in that gives gold-like answers at once, so what is left is ours: choosing
items, requests, scorers, the sandbox, means and errors, the way over Ray's pickle, the ledger.
Shares are of a trial whose decoding takes 6 s, which 500 answers of 150 tokens take on one H200
(`docs/log.md`); a CPU decodes for minutes. Best of REPEATS, wall and CPU.
"""

from __future__ import annotations

import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from recycler.cluster.workers import Work
from recycler.ledger import Ledger
from recycler.run.fidelity import Fidelity
from recycler.scoring.evaluate import requests_of
from recycler.scoring.outcomes import aggregate, outcomes_of
from recycler.scoring.scorers import item_metrics
from recycler.scoring.tasks import build_suite, load_tokenizer
from recycler.types import Completion, Item, Loglikelihood, Objective, Pool, Recipe, Scorecard

SUITES = Path(__file__).resolve().parents[2] / "eval_suites"
WANTED = {
    "gsm8k": {"gsm8k": 150},
    "mgsm": {"es": 100},
    "humaneval": {"humaneval": 50},
    "ifeval": {"ifeval": 80},
    "bbh": {"boolean_expressions": 60, "sports_understanding": 0},
    "bpb": {"gsm8k": 60},
}
DECODING_SECONDS = 6.0
BESIDE = "  (beside decoding of likelihoods)"


def main(model: str, data: str, repeats: str = "5") -> None:
    items = [
        item
        for suite, tasks in WANTED.items()
        for item in frozen(suite, tasks, Path(model), Path(data))
    ]
    objectives = [
        Objective(suite=suite, task=task, metric=metric, direction="maximize")
        for suite, task, metric in sorted(
            {(item.suite, item.task, metric) for item in items for metric in item_metrics(item)}
        )
    ]
    print(f"{len(items)} items, {len(objectives)} objectives")
    best: dict[str, tuple[float, float]] = {}
    for _ in range(int(repeats)):
        for name, wall, cpu in parts(items, objectives):
            best[name] = min(best.get(name, (wall, cpu)), (wall, cpu))
    total = 0.0
    for name, (wall, cpu) in best.items():
        beside = name.startswith("sandbox")
        total += 0.0 if beside else wall
        print(
            f"{name:34} {1000 * wall:8.1f} ms wall {1000 * cpu:8.1f} ms CPU "
            f"{wall / DECODING_SECONDS:7.2%}{BESIDE if beside else ''}"
        )
    print(f"{'sum':34} {1000 * total:8.1f} ms wall {'':20} {total / DECODING_SECONDS:7.2%}")


def parts(items: list[Item], objectives: list[Objective]):
    """(name, wall seconds, CPU seconds of this process) of every step of one trial."""
    found: list[tuple[str, float, float]] = []

    def timed(name: str, act: Callable):
        wall, cpu = time.perf_counter(), time.process_time()
        value = act()
        found.append((name, time.perf_counter() - wall, time.process_time() - cpu))
        return value

    recipe = Recipe(method="linear", members=("a", "b"), weights=((0.5, 0.5),))
    work = Work(
        pool=Pool(members=()), engine="fake", items=tuple(items), objectives=tuple(objectives)
    )
    fidelity = Fidelity(items=tuple(items), objectives=tuple(objectives), items_per_task=50, seed=0)
    timed(
        "draw a subset (driver)",
        lambda: fidelity.drawn(
            type("T", (), {"kind": "merge", "label": "", "number": 1, "is_proposed": True})
        ),
    )
    chosen = timed("choose items", lambda: work.items_of("search"))
    timed("requests", lambda: requests_of(chosen))
    plain = [item for item in chosen if item.scorer not in ("humaneval", "lm_eval")]
    for name, own in (
        ("scorers of our own", plain),
        ("lm-eval's checkers (ifeval)", [item for item in chosen if item.scorer == "lm_eval"]),
        ("sandbox (humaneval)", [item for item in chosen if item.scorer == "humaneval"]),
    ):
        timed(name, lambda own=own: outcomes_of(own, *answers(own)))
    outcomes = outcomes_of(chosen, *answers(chosen)) if not CACHE else CACHE[0]
    CACHE[:] = [outcomes]
    scores = timed("means and errors", lambda: aggregate(chosen, outcomes, objectives))
    scorecard = Scorecard(
        role="search", scores=scores, outcomes=outcomes, weights_digest="w", engine_fingerprint="f"
    )
    timed("there and back (pickle)", lambda: pickle.loads(pickle.dumps(scorecard)))
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.sqlite")
        timed("ledger: open a trial", lambda: ledger.open_trial(0, "merge", recipe))
        timed("ledger: close it", lambda: ledger.close_trial(0, scorecard))
        ledger.close()
    return found


CACHE: list = []


def answers(items: list[Item]) -> tuple[list[Completion], list[Loglikelihood]]:
    """What a middling model might say: a paragraph before the gold answer."""
    text = "Let us think step by step. " * 15
    completions = [
        Completion(
            text=f"{item.gold}\n# {time.time_ns()}"
            if item.scorer == "humaneval"
            else f"{text} The answer is {item.gold[-40:]}",
            num_tokens=150,
            finish="stop",
        )
        for item in items
        if item.kind == "generate"
    ]
    return completions, [
        Loglikelihood(logprob=-1.0 * len(ids), token_logprobs=(-1.0,) * len(ids), is_greedy=False)
        for item in items
        if item.kind == "loglikelihood"
        for ids in item.continuations
    ]


def frozen(suite: str, tasks: dict[str, int], model: Path, data: Path) -> list[Item]:
    own = yaml.safe_load((SUITES / f"{suite}.yaml").read_text())
    kept = {}
    for task, count in tasks.items():
        if count:
            spec = own["tasks"][task]
            spec["search"] = {
                "data": spec["search"].get("data", spec.get("data", "")),
                "rows": [0, count],
                **({"cluster": spec["search"]["cluster"]} if "cluster" in spec["search"] else {}),
            }
            spec["holdout"] = {**spec["holdout"], "rows": [count, count + 1]}
            spec.pop("repeated", None)
            kept[task] = spec
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{suite}.yaml"
        path.write_text(yaml.safe_dump({"version": 1, "tasks": kept}))
        return list(build_suite(path, load_tokenizer(model), data_folders=[data]).select("search"))


if __name__ == "__main__":
    main(*sys.argv[1:])
