"""Look at checkpoints of your own, and write a job file for those that fit together.

    python examples/own_pool.py job.yaml checkpoints/* --base checkpoints-base/base

Prints whether they can be merged and how alike their deltas are, then writes a job with two
objectives of bits per byte, which need no GPU-hours to be told apart. Edit the suites and the
objectives, then `recycler plan job.yaml` and `recycler run job.yaml --dir run`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import yaml

from recycler.pool.catalog import open_pool
from recycler.pool.checks.preflight import check_pool
from recycler.pool.geometry.gram import delta_gram
from recycler.types import Checkpoint, Pool

TRIALS_PER_MEMBER = 10
NEAR = 0.99  # a cosine above this: two snapshots of one run, which seldom need two places


def main() -> None:
    arguments = parse_arguments()
    pool = open_pool(arguments.members, base=arguments.base)
    for warning in check_pool(pool).warnings:
        print(f"note: {warning}", file=sys.stderr)
    show_cosines(pool)
    arguments.job.write_text(yaml.safe_dump(job_for(pool), sort_keys=False))
    print(f"wrote {arguments.job}; next: recycler plan {arguments.job}")


def show_cosines(pool: Pool) -> None:
    """Print the cosine of each pair of deltas, and name the pairs that are nearly the same."""
    gram = np.array(delta_gram(pool))
    norms = np.sqrt(np.diag(gram))
    cosines = gram / np.outer(norms, norms).clip(min=1e-30)
    width = max(map(len, pool.names))
    for name, row in zip(pool.names, cosines, strict=True):
        print(f"{name:>{width}}  " + "  ".join(f"{cosine:5.2f}" for cosine in row))
    for i, j in zip(*np.nonzero(np.triu(cosines, 1) > NEAR), strict=True):
        print(f"note: {pool.names[i]} and {pool.names[j]} differ little; one may do")


def job_for(pool: Pool) -> dict:
    """A job over the pool, as a dictionary to be written as YAML."""
    members = {"members": [place_of(member) for member in pool.members]}
    base = {"base": place_of(pool.base)} if pool.base else {}
    objectives = [
        {"suite": "bpb", "task": task, "metric": "bits_per_byte", "direction": "minimize"}
        for task in ("gsm8k", "mbpp")
    ]
    return {
        "version": 1,
        "name": "own-pool",
        "pool": members | base,
        "suites": ["bpb"],
        "objectives": objectives,
        "budget": {"trials": TRIALS_PER_MEMBER * len(pool.members)},
    }


def place_of(checkpoint: Checkpoint) -> str:
    """Its URL, or its full path: paths in a job file are relative to that file."""
    return str(checkpoint.location.absolute())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write a job file for checkpoints of your own.")
    parser.add_argument("job", type=Path, help="job file to write")
    parser.add_argument("members", nargs="+", help="checkpoint folders")
    parser.add_argument("--base", help="the checkpoint that they were trained from")
    return parser.parse_args()


if __name__ == "__main__":
    main()
