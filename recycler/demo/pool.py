"""Build the demo's pool and items.

Read it as an example: a base, a few runs, and snapshots as ordinary HF folders.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

from recycler.demo.runs import BASE, RUNS, Run
from recycler.demo.skills import SKILLS, Problem, Split, make_items
from recycler.digest import derive_seed, digest, file_digest

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

TRAIN_ITEMS, SEARCH_ITEMS, HOLDOUT_ITEMS = 5000, 250, 1000  # for each skill
MARKER = "demo-pool.json"  # written last: its presence means that the pool is complete
# fixed, because sums of floats depend on it; more are little faster here, and far slower on a busy
# machine
NUM_THREADS = 1
Progress = Callable[[str, float], None]


def build_pool(directory: Path, *, seed: int = 0, progress: Progress | None = None) -> None:
    """Train into DIRECTORY/pool/base and DIRECTORY/pool/members/NAME, and write DIRECTORY/data.

    Does nothing when that pool is there already. Deterministic for a seed on one machine. A build
    that is killed leaves no pool behind. `progress(stage, fraction)` is called while it
    trains.
    """
    settings = {"seed": seed, "settings": _settings_digest(seed)}
    marker = directory / "pool" / MARKER
    if marker.is_file() and json.loads(marker.read_text()) == settings:
        return
    aside = directory / ".pool-unfinished"
    shutil.rmtree(aside, ignore_errors=True)
    with _settled_torch():
        _train_all(aside, seed, progress or (lambda stage, fraction: None))
    write_suites(directory, seed=seed)
    (aside / MARKER).write_text(json.dumps(settings) + "\n")
    shutil.rmtree(directory / "pool", ignore_errors=True)
    aside.rename(directory / "pool")


def write_suites(directory: Path, *, seed: int = 0) -> None:
    """Write DIRECTORY/data/SKILL.jsonl: the search and holdout items of each skill.

    They are disjoint from each other and from what is trained on.
    """
    data = directory / "data"
    data.mkdir(parents=True, exist_ok=True)
    splits: tuple[tuple[Split, int], ...] = (("search", SEARCH_ITEMS), ("holdout", HOLDOUT_ITEMS))
    for skill in SKILLS:
        lines: list[str] = []
        for role, count in splits:
            for index, problem in enumerate(make_items(skill, role, count, seed)):
                lines.append(_line(f"{role}-{index}", role, problem))
        (data / f"{skill}.jsonl").write_text("".join(lines))


def _line(name: str, role: Split, problem: Problem) -> str:
    row = {
        "id": name,
        "prompt": problem.prompt,
        "answer": problem.answer,
        "cluster": problem.cluster,
        "role": role,
    }
    return json.dumps(row) + "\n"


def _settings_digest(seed: int) -> str:
    """A digest of the seed and of the code that makes the pool.

    So a changed run or skill makes a new pool.
    """
    sources = [
        Path(__file__).parent / f"{name}.py"
        for name in ("model", "pool", "runs", "skills", "tokenizer", "train")
    ]
    return digest([seed, *map(file_digest, sources)])


def _train_all(folder: Path, seed: int, progress: Progress) -> None:
    """Train the base into FOLDER/base, then each run from it into FOLDER/members."""
    # torch and transformers are heavy, and these load them too
    from recycler.demo.model import make_model
    from recycler.demo.tokenizer import make_tokenizer
    from recycler.demo.train import encode, train

    tokenizer = make_tokenizer()
    rows = {
        skill: encode(make_items(skill, "train", TRAIN_ITEMS, seed), tokenizer) for skill in SKILLS
    }
    total = sum(run.num_steps for run in (BASE, *RUNS))

    def save(model: LlamaForCausalLM, place: Path) -> None:
        rounded = deepcopy(model)
        rounded.bfloat16()
        rounded.save_pretrained(place)
        tokenizer.save_pretrained(place)

    def one_run(model: LlamaForCausalLM, run: Run, number: int, stage: str) -> None:
        before = sum(earlier.num_steps for earlier in (BASE, *RUNS)[:number])
        train(
            model,
            rows,
            run,
            derive_seed("demo", seed, number),
            save=lambda name: save(model, folder / "members" / name),
            progress=lambda step: progress(stage, (before + step) / total),
        )

    base = make_model(seed, tokenizer)
    one_run(base, BASE, 0, "training the base")
    save(base, folder / "base")
    # the runs start from what was saved, not from what was rounded away
    base.bfloat16()
    base.float()
    for number, run in enumerate(RUNS, start=1):
        one_run(deepcopy(base), run, number, f"training {' and '.join(run.snapshots.values())}")


@contextmanager
def _settled_torch() -> Iterator[None]:
    """Fix the number of threads and hide transformers' own progress bars; undo both afterwards."""
    # both are heavy
    import torch
    from transformers.utils import logging

    num_threads, bars = torch.get_num_threads(), logging.is_progress_bar_enabled()
    torch.set_num_threads(NUM_THREADS)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        if bars:
            logging.enable_progress_bar()
