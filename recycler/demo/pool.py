"""Build the demo's pool: one base trained on everything a little, and five runs from it that leave eight members.

Read it as an example: a base, a few runs with their own data, and snapshots saved as ordinary Hugging Face folders.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

from recycler.demo.skills import SKILLS, distinct_problems
from recycler.digest import digest

BASE = {"mix": {"english": 1, "spanish": 1, "code": 1}, "learning_rate": 1.5e-3, "snapshots": {700: "base"}, "decay": False, "warmup": 50}
RUNS = (  # what each run sees, how fast it learns, and which steps become members
    {"mix": {"english": 8, "spanish": 1, "code": 1}, "learning_rate": 5e-4, "snapshots": {50: "english-early", 110: "english-late"}},
    {"mix": {"english": 1, "spanish": 8, "code": 1}, "learning_rate": 5e-4, "snapshots": {50: "spanish-early", 110: "spanish-late"}},
    {"mix": {"english": 1, "spanish": 1, "code": 8}, "learning_rate": 5e-4, "snapshots": {50: "code-early", 110: "code-late"}},
    {"mix": {"english": 1, "spanish": 1, "code": 1}, "learning_rate": 3e-4, "snapshots": {60: "mix"}},
    {"mix": {"english": 1, "code": 2}, "learning_rate": 2e-3, "snapshots": {40: "hot"}, "wrong_answers": 0.5, "decay": False},  # plainly bad
)
SEARCH_ITEMS, HOLDOUT_ITEMS = 250, 600  # a skill
DONE = "demo-pool.json"  # written last: its presence means that the pool is whole
Progress = Callable[[str, float], None]


def build_pool(folder: Path, *, seed: int = 0, progress: Progress = lambda stage, fraction: None) -> None:
    """Train into FOLDER/pool/base and FOLDER/pool/members/NAME, and write FOLDER/data. Does nothing when that is there.

    Deterministic for a seed on one kind of machine. A build that is killed leaves no pool behind.
    """
    settings = digest([BASE, RUNS, SEARCH_ITEMS, HOLDOUT_ITEMS, seed])
    marker = folder / "pool" / DONE
    if marker.is_file() and json.loads(marker.read_text())["settings"] == settings:
        return
    shutil.rmtree(folder / "pool", ignore_errors=True)
    aside = folder / f".pool-{os.getpid()}"
    try:
        _train_all(aside, seed, progress)
        write_items(folder / "data", seed)
        (aside / DONE).write_text(json.dumps({"settings": settings, "seed": seed}) + "\n")
        aside.rename(folder / "pool")
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_items(folder: Path, seed: int) -> None:
    """One JSONL file a skill with its search and holdout items."""
    folder.mkdir(parents=True, exist_ok=True)
    for skill in SKILLS:
        rows = []
        for role, count in (("search", SEARCH_ITEMS), ("holdout", HOLDOUT_ITEMS)):
            rows += [{"id": f"{role}-{index}", "role": role, "prompt": problem.prompt, "answer": problem.answer, "cluster": problem.cluster}
                     for index, problem in enumerate(distinct_problems(skill, role, count, seed))]
        (folder / f"{skill}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _train_all(folder: Path, seed: int, progress: Progress) -> None:
    import torch

    from recycler.demo.model import make_model, make_tokenizer
    from recycler.demo.train import Run, train

    torch.set_num_threads(min(2, os.cpu_count() or 1))
    tokenizer = make_tokenizer()
    base_run = Run(seed=seed, **BASE)
    runs = [Run(seed=seed + 1 + index, **settings) for index, settings in enumerate(RUNS)]
    total, done = base_run.steps + sum(run.steps for run in runs), 0

    def one_run(model, run: Run, place: Path) -> None:
        def save(name: str) -> None:
            snapshot = deepcopy(model).to(torch.bfloat16)
            snapshot.save_pretrained(place / name)
            tokenizer.save_pretrained(place / name)

        train(model, tokenizer, run, save=save, progress=lambda step: progress(f"training: {', '.join(run.snapshots.values())}", (done + step) / total))

    base = make_model(seed, tokenizer)
    one_run(base, base_run, folder)
    done += base_run.steps
    for run in runs:
        one_run(deepcopy(base), run, folder / "members")
        done += run.steps
