"""Noisy expected hypervolume improvement of proposals.

Noisy expected hypervolume improvement (Daulton, Balandat and Bakshy 2021, arXiv:2105.08195): draw
the objectives of earlier trials, pending trials and candidates jointly from the posterior, and
average what each candidate adds to the front of that draw. A lucky score is thus not taken for a
good recipe, and a pending trial already counts as its draw.
"""

from __future__ import annotations

import numpy as np

from recycler.objectives.pareto import Floats, free_boxes, non_dominated, volume_gains

EXACT_UP_TO = 3  # objectives; above that boxes become many and directions take over
NUM_DIRECTIONS = 128


def expected_gains(
    known: Floats, candidates: Floats, reference: Floats, rng: np.random.Generator
) -> Floats:
    """Mean hypervolume gain (M,) of candidates over S joint draws, maximised.

    The volume is above `reference` (T,).

    `known` (S, n, T) are draws of the trials, `candidates` (S, M, T) of the proposals. With more
    than EXACT_UP_TO objectives an estimate by random directions is returned, proportional to
    hypervolume.
    """
    total = np.zeros(candidates.shape[1])
    directions = None if len(reference) <= EXACT_UP_TO else _directions(len(reference), rng)
    for trials, proposals in zip(known, candidates, strict=True):
        if directions is None:
            total += volume_gains(proposals, free_boxes(trials, reference))
        else:
            total += _direction_gains(trials - reference, proposals - reference, directions)
    return total / len(known)


def contenders(
    means: Floats, deviations: Floats, rng: np.random.Generator, most: int, num_draws: int = 64
) -> np.ndarray:
    """Indices of the at most `most` trials that may be on the true front, likeliest first.

    Ties go by index.

    Pruning the baseline keeps the joint draws small: their cost is cubic in the number of points.
    Errors are drawn independently per trial, from posterior `means` and `deviations` (n, T).
    """
    hits = non_dominated(means).astype(float)
    for _ in range(num_draws):
        hits += non_dominated(means + deviations * rng.standard_normal(means.shape)) / num_draws
    order = np.argsort(-hits, kind="stable")[:most]
    return order[hits[order] > 0]


def _directions(num_objectives: int, rng: np.random.Generator) -> Floats:
    normals = np.abs(rng.standard_normal((NUM_DIRECTIONS, num_objectives)))
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)


def _direction_gains(trials: Floats, proposals: Floats, directions: Floats) -> Floats:
    """Gain (M,) of each proposal in hypervolume, estimated along random directions.

    Hypervolume is the mean over directions l of max_y min_t (y_t / l_t)^T (Golovin and Zhang 2020,
    arXiv:2006.04655, lemma 5, without its constant).
    """
    power = trials.shape[1]

    def lengths(points: Floats) -> Floats:
        return np.maximum((points[:, None] / directions).min(axis=2), 0.0) ** power

    best = lengths(trials).max(axis=0) if len(trials) else np.zeros(len(directions))
    return np.maximum(lengths(proposals) - best, 0.0).mean(axis=1)
