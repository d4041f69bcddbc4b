"""Wall and CPU of proposals with the BLAS threads as shipped, against one thread for the process.

    python -m benchmarks.search.threads [--proposals 40] [--rounds 3]

Each arm proposes and scores in a process of its own: K = 16 members, 3 objectives, no Gram
matrix. The arms take turns, so that both see the same machine; medians and their ratio are
printed. A ratio within 1.1 says that what is shipped wastes no time on threads.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from statistics import median

import numpy as np

from recycler.search.simplex.simplex_gp import SimplexGP
from recycler.search.simplex.surrogate import observations

from .families import NUM_OBJECTIVES, bumps

NUM_MEMBERS = 16
ONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
ARMS: dict[str, dict[str, str]] = {"as shipped": {}, "OMP_NUM_THREADS=1": ONE}


def propose(count: int) -> None:
    """Propose and score `count` merges after the opening design."""
    family, rng = bumps(NUM_MEMBERS, 0), np.random.default_rng(0)
    names = [f"m{index:02d}" for index in range(NUM_MEMBERS)]
    proposer = SimplexGP(names, NUM_OBJECTIVES, seed=0)
    points = rng.dirichlet(np.full(NUM_MEMBERS, 0.3), 3 * NUM_MEMBERS)
    scored = [family.score(point, rng) for point in points]
    for number in range(count):
        values, stderrs = (np.array(column) for column in zip(*scored, strict=True))
        point = proposer.ask(observations(points, values, stderrs), number=len(points) + number)
        points = np.concatenate([points, point[None]])
        scored.append(family.score(point, rng))


def _measured(settings: dict[str, str], count: int) -> tuple[float, float]:
    """(wall, CPU) seconds of one process."""
    kept = {key: value for key, value in os.environ.items() if key not in ONE}
    command = [sys.executable, "-m", "benchmarks.search.threads", "--propose", str(count)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, env=kept | settings, check=True)
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu


def main() -> None:
    """Print one row per arm, then the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--proposals", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--propose", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.propose is not None:
        propose(arguments.propose)
        return
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in ARMS}
    for _ in range(arguments.rounds):
        for name, settings in ARMS.items():
            measured[name].append(_measured(settings, arguments.proposals))
    print("| arm | wall s | CPU s |\n|---|---|---|")
    medians = []
    for name, rows in measured.items():
        wall, cpu = (median(column) for column in zip(*rows, strict=True))
        medians.append((wall, cpu))
        print(f"| {name} | {wall:.1f} | {cpu:.1f} |")
    shipped, one = medians
    print(f"| ratio | {shipped[0] / one[0]:.2f} | {shipped[1] / one[1]:.2f} |")


if __name__ == "__main__":
    main()
