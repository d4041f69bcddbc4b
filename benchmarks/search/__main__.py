"""python -m benchmarks.search --families bumps near_linear --members 8 16 --budget 50 --seeds 3
--jobs 2

Prints, per family and pool size, the true hypervolume of the shipped front at each checkpoint:
median over seeds, each seed with a pool of its own. `--csv FILE` keeps every row. Set
OMP_NUM_THREADS=1. `botorch`, `mergenetic` and `mergekit_evolve` need libraries of their own: see
`outside.py`.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from statistics import median

from recycler.errors import UsageError

from .bench import CHECKPOINTS, keep, run
from .families import FAMILIES, NUM_ITEMS
from .samplers import SAMPLERS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--families",
        nargs="+",
        default=list(FAMILIES),
        choices=[*FAMILIES, "networks", "stages", "sequences"],
    )
    parser.add_argument("--members", nargs="+", type=int, default=[8])
    parser.add_argument(
        "--samplers", nargs="+", default=["simplex_gp", "tpe", "random"], choices=list(SAMPLERS)
    )
    parser.add_argument("--budget", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--members-known",
        action="store_true",
        help="the members' own scores are told first and cost nothing, as in a job",
    )
    parser.add_argument("--workers", type=int, default=1, help="trials in flight at once")
    parser.add_argument(
        "--items", type=int, default=NUM_ITEMS, help="items a task that a trial is scored on"
    )
    parser.add_argument(
        "--controls",
        action="store_true",
        help="with --items: the members' own outcomes as control variates (networks)",
    )
    parser.add_argument("--csv")
    args = parser.parse_args()
    cells = [
        (
            sampler,
            family,
            members,
            seed,
            seed,
            args.budget,
            args.members_known,
            args.workers,
            args.items,
            args.controls,
        )
        for family in args.families
        for members in args.members
        for sampler in args.samplers
        for seed in range(args.first_seed, args.first_seed + args.seeds)
    ]
    with ProcessPoolExecutor(args.jobs) as workers:
        rows = keep(args.csv or os.devnull, workers.map(run, *zip(*cells, strict=True)))
    print(table(rows, [point for point in (*CHECKPOINTS, args.budget) if point <= args.budget]))


def table(rows: list[dict], points: list[int]) -> str:
    """Medians as a Markdown table: shipped hypervolume (observed front in brackets), seconds per
    proposal.
    """
    points = sorted(set(points))
    lines = [
        "| family | K | sampler | " + " | ".join(map(str, points)) + " | s / proposal |",
        "|---" * (len(points) + 4) + "|",
    ]
    for key in dict.fromkeys((row["family"], row["members"], row["sampler"]) for row in rows):
        cell = [row for row in rows if (row["family"], row["members"], row["sampler"]) == key]
        figures = []
        for point in points:
            here = [row for row in cell if row["trials"] == point]
            figures.append(
                f"{median(row['shipped'] for row in here):.3f} "
                f"({median(row['observed'] for row in here):.3f})"
            )
        last = [row["seconds"] for row in cell if row["trials"] == points[-1]]
        lines.append(
            f"| {key[0]} | {key[1]} | {key[2]} | "
            + " | ".join(figures)
            + f" | {median(last):.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:  # a library that a sampler needs
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
