"""Use the sampler alone: tables of numbers in, the next weights out. No pool, no engine, no Optuna.

    python examples/sampler_alone.py

`SimplexGP` is the core of `sampler: simplex_gp`. It is told points (n, K) with their values (n, T),
larger is better, and standard errors (n, T), and returns the next point (K,). Here two made-up
benchmarks prefer different mixtures of three members. The same core is an Optuna sampler, too:
`recycler.search.SimplexGPSampler`, see the README.
"""

from __future__ import annotations

import argparse

import numpy as np

from recycler.search import SimplexGP
from recycler.search.simplex.surrogate import Observations, observations

MEMBERS = ("math", "code", "chat")
PEAKS = np.array([[0.6, 0.3, 0.1], [0.1, 0.5, 0.4]])  # (T, K): where each benchmark is best
NOISE = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description="Search weights with the sampler alone.")
    parser.add_argument("--trials", type=int, default=20)
    num_trials = parser.parse_args().trials
    sampler = SimplexGP(MEMBERS, num_objectives=len(PEAKS), seed=0)
    observed = search(sampler, num_trials)
    front = sampler.front(observed)
    for index in front.indices:
        weights = "  ".join(
            f"{name} {weight:.2f}"
            for name, weight in zip(MEMBERS, observed.weights[index], strict=True)
        )
        scores = "  ".join(
            f"{mean:.3f} ± {sd:.3f}"
            for mean, sd in zip(front.mean[index], front.total_sd[index], strict=True)
        )
        print(f"{weights}    {scores}")


def search(sampler: SimplexGP, num_trials: int) -> Observations:
    """Ask for a point, score it, tell; `num_trials` times."""
    rng = np.random.default_rng(0)
    points, values = [], []
    observed = None
    for number in range(num_trials):
        point = sampler.ask(observed, number=number)
        points.append(point)
        values.append(score(point, rng))
        observed = observations(points, values, np.full((number + 1, len(PEAKS)), NOISE))
    assert observed is not None
    return observed


def score(point: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scores (T,) of weights (K,), with the noise of a finite benchmark."""
    distances = ((point - PEAKS) ** 2).sum(axis=1)
    return np.exp(-3.0 * distances) + NOISE * rng.standard_normal(len(PEAKS))


if __name__ == "__main__":
    main()
