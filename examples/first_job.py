"""Run a first job: a pool of tiny models, a suite of two tasks, and a front at the end.

    python examples/first_job.py first-job

The models are random and two layers deep, so the scores mean nothing; everything else is as in a
real job. It takes less than a minute on one core, without GPU, network or account. The folder then
holds `pool/`, `echo.jsonl`, `echo.yaml`, `job.yaml` and the run, `run/`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from recycler.cli import main as recycler
from recycler.cluster.workers import LocalWorkers, Work
from recycler.run.driver import run_job
from recycler.testing import make_pico_pool

WORDS = ("the fox", "a lazy dog", "jumps over", "quick", "brown bears")
SUITE = """\
version: 1
description: words after a sum, in small letters and in capitals
tasks:
  words:
    data: echo.jsonl
    prompt: "{question}: "
    answer: "{word}"
    scorer: bits_per_byte
    search: {rows: [0, 60]}
    holdout: {rows: [60, 90]}
  capitals:
    data: echo.jsonl
    prompt: "{question}: "
    answer: "{capitals}"
    scorer: bits_per_byte
    search: {rows: [0, 60]}
    holdout: {rows: [60, 90]}
"""
JOB = """\
version: 1
name: first-job
pool:
  members: [pool/members]
  base: pool/base
suites: [echo.yaml]
objectives:
  - {suite: echo, task: words, metric: bits_per_byte, direction: minimize}
  - {suite: echo, task: capitals, metric: bits_per_byte, direction: minimize}
engine: {name: transformers}
budget: {trials: 10}
"""


def write_inputs(folder: Path) -> Path:
    """Write the pool, the suite, its data and the job below `folder`; return the job file."""
    make_pico_pool(folder / "pool", num_members=3, seed=1)
    lines = []
    for number in range(90):
        word = WORDS[number % len(WORDS)]
        row = {"question": f"{number}+{number % 7}", "word": word, "capitals": word.upper()}
        lines.append(json.dumps(row) + "\n")
    (folder / "echo.jsonl").write_text("".join(lines))
    (folder / "echo.yaml").write_text(SUITE)
    (folder / "job.yaml").write_text(JOB)
    return folder / "job.yaml"


def one_worker(work: Work, num_workers: int) -> LocalWorkers:
    """One engine in this process. `recycler run` starts a Ray cluster here instead."""
    return LocalWorkers(work)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a first job on a pool of tiny models.")
    parser.add_argument("folder", type=Path, help="where everything goes")
    folder = parser.parse_args().folder
    run_job(write_inputs(folder), folder / "run", make_workers=one_worker)
    recycler(["front", str(folder / "run"), "--holdout"])


if __name__ == "__main__":
    main()
