"""Run a first job: a pool of tiny models, a suite of sums and words, and a front at the end.

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
description: sums, and words that follow them
tasks:
  sums:
    data: echo.jsonl
    prompt: "{question} = "
    answer: "{sum}"
    scorer: bits_per_byte
    search: {rows: [0, 60]}
    holdout: {rows: [60, 90]}
  words:
    data: echo.jsonl
    prompt: "{question}: "
    answer: "{word}"
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
  - {suite: echo, task: sums, metric: bits_per_byte, direction: minimize}
  - {suite: echo, task: words, metric: bits_per_byte, direction: minimize}
engine: {name: transformers}
budget: {trials: 10}
"""


def write_inputs(folder: Path) -> Path:
    """Write the pool, the suite, its data and the job below `folder`; return the job file."""
    make_pico_pool(folder / "pool", num_members=3)
    rows = [
        {"question": f"{k}+{k % 7}", "sum": str(k + k % 7), "word": WORDS[k % len(WORDS)]}
        for k in range(90)
    ]
    (folder / "echo.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
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
