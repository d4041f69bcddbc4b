"""CPU seconds of one proposal: K = 32, 3 objectives, one core.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python -m benchmarks.search.speed

First with a model to fit, then once more on the same trials, as for a batch.
"""

from __future__ import annotations

import time

import numpy as np

from recycler.search.simplex.proposals import opening
from recycler.search.simplex.simplex_gp import SimplexGP
from recycler.search.simplex.surrogate import Observations, observations

from .families import NUM_OBJECTIVES, bumps

NUM_MEMBERS = 32


def main() -> None:
    family, rng = bumps(NUM_MEMBERS, 0), np.random.default_rng(0)
    names = [f"m{index:02d}" for index in range(NUM_MEMBERS)]
    print("| trials | Gram matrix | first proposal | next on the same trials |\n|---|---|---|---|")
    for trials in (100, 300, 1000):
        first = opening(SimplexGP(names, NUM_OBJECTIVES, seed=0).domain, np.random.default_rng(0))
        points = np.concatenate([first, rng.dirichlet(np.full(NUM_MEMBERS, 0.3), trials)])[:trials]
        told = observations(
            points,
            *map(np.array, zip(*(family.score(point, rng) for point in points), strict=True)),
        )
        for gram in (family.gram, None):
            proposer = SimplexGP(names, NUM_OBJECTIVES, seed=0, gram=gram)
            spent = [_seconds(proposer, told, number) for number in (trials, trials + 1)]
            print(
                f"| {trials} | {'no' if gram is None else 'yes'} | {spent[0]:.2f} | "
                f"{spent[1]:.2f} |"
            )


def _seconds(proposer: SimplexGP, observed: Observations, number: int) -> float:
    start = time.process_time()
    proposer.ask(observed, number=number)
    return time.process_time() - start


if __name__ == "__main__":
    main()
