"""One cell of the bench: run a sampler on a pool, ship its posterior front, measure what that front
is truly worth.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from recycler.objectives.pareto import hypervolume, non_dominated
from recycler.objectives.stats import Z90
from recycler.search.simplex.domain import weight_domain
from recycler.search.simplex.proposals import opening, perturb, random_sparse
from recycler.search.simplex.simplex_gp import PosteriorFront, SimplexGP
from recycler.search.simplex.surrogate import Observations, observations

from .families import FAMILIES, NUM_ITEMS, NUM_OBJECTIVES, Family
from .samplers import SAMPLERS

CHECKPOINTS = (25, 50, 100, 200)


def keep(path: str, cells: Iterable[Sequence[Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    """The rows of all cells, written to a CSV as they come: a stopped bench is not lost."""
    rows: list[Mapping[str, Any]] = []
    with open(path, "w", newline="", encoding="utf-8") as file:
        for done in cells:
            writer = csv.DictWriter(file, list(done[0]))
            if not rows:
                writer.writeheader()
            writer.writerows(done)
            file.flush()
            rows += done
    return rows


@lru_cache(maxsize=64)
def pool(name: str, num_members: int, pool_seed: int) -> Family:
    if name not in FAMILIES:
        from .networks import network_pool

        return network_pool(num_members, pool_seed, name)
    return FAMILIES[name](num_members, pool_seed)


@lru_cache(maxsize=64)
def reference(name: str, num_members: int, pool_seed: int) -> tuple[np.ndarray, float]:
    """Reference point (T,), the members' worst true score per objective, and the hypervolume of a
    long-run front.

    The long run sees the truth: rounds of 400 neighbours of the true front (few rounds for
    networks, which are slow).
    """
    family = pool(name, num_members, pool_seed)
    kept = list(family.counted)
    low = {f"m{index}": (family.lowest, 1.0) for index in range(num_members)}
    domain = weight_domain(list(low), bounds=low)
    rng = np.random.default_rng([9, pool_seed])
    points = np.concatenate(
        [opening(domain, rng), np.eye(num_members), random_sparse(domain, rng, 300)]
    )
    truth = family.truth(points)[:, kept]
    corner = family.truth(np.eye(num_members))[:, kept].min(axis=0) - 1e-6
    if family.lowest < 0 or name == "weight_bumps":
        corner = np.minimum(corner, truth[non_dominated(truth)].min(axis=0))
    for step in range(40 if name in FAMILIES else 10):
        new = perturb(domain, rng, points, 400, reach=1.0 if step % 2 else 0.3)
        points, truth = (
            np.concatenate([points, new]),
            np.concatenate([truth, family.truth(new)[:, kept]]),
        )
        front = np.flatnonzero(non_dominated(truth))
        if len(front) > 500:
            front = rng.permutation(front)[:500]
        points, truth = points[front], truth[front]
    return corner, hypervolume(truth, corner)


def run(
    sampler: str,
    name: str,
    num_members: int,
    pool_seed: int,
    seed: int,
    budget: int,
    members_known: bool = False,
    in_flight: int = 1,
    num_items: int = NUM_ITEMS,
    controls: bool = False,
) -> list[dict[str, object]]:
    """Rows at each checkpoint up to `budget`, volumes as shares of a long run's.

    True hypervolume of the shipped, the observed and the best possible front, and the stated one of
    the shipped front; share of the shipped scores whose stated 90 % interval holds the truth.
    """
    family = pool(name, num_members, pool_seed)
    corner, best = reference(name, num_members, pool_seed)
    proposer = SAMPLERS[sampler](family, seed)
    rng = np.random.default_rng([7, pool_seed, seed])
    weights, values, stderrs, rows, spent = [], [], [], [], 0.0
    if members_known:
        proposer.start = []
        for point in np.concatenate(
            [np.full((1, num_members), 1 / num_members), np.eye(num_members)]
        ):
            value, stderr = family.score(point, rng)  # members are always scored in full
            proposer.tell(point, value, stderr)
            weights.append(point), values.append(value), stderrs.append(stderr)
    flying: list[np.ndarray] = []
    for number in range(budget):
        start = time.process_time()
        while len(flying) < min(in_flight, budget - number):
            flying.append(proposer.ask(flying) if in_flight > 1 else proposer.ask())
        point = flying.pop(0)
        spent += time.process_time() - start
        value, stderr = family.score(point, rng, num_items, controls)
        start = time.process_time()
        proposer.tell(point, value, stderr)
        spent += time.process_time() - start
        weights.append(point), values.append(value), stderrs.append(stderr)
        if number + 1 in CHECKPOINTS or number + 1 == budget:
            told = observations(weights, values, stderrs)
            true = family.truth(told.weights)
            kept = list(family.counted)
            front = ship(family, told)
            shipped = list(front.indices)
            off = np.abs(front.mean - true)[shipped]
            rows.append(
                {
                    "sampler": sampler
                    + "+known" * members_known
                    + f"+{in_flight} workers" * (in_flight > 1)
                    + f"+{num_items} items" * (num_items < NUM_ITEMS)
                    + "+controls" * controls,
                    "family": name,
                    "members": num_members,
                    "pool": pool_seed,
                    "seed": seed,
                    "trials": number + 1,
                    "shipped": hypervolume(true[shipped][:, kept], corner) / best,
                    "observed": hypervolume(true[non_dominated(told.values)][:, kept], corner)
                    / best,
                    "all": hypervolume(true[:, kept], corner) / best,
                    "stated": hypervolume(front.mean[shipped][:, kept], corner) / best,
                    "covered": float((off <= Z90 * front.total_sd[shipped]).mean()),
                    "seconds": spent / (number + 1),
                }
            )
    return rows


def ship(family: Family, told: Observations) -> PosteriorFront:
    """The front to ship, picked in the same way for every sampler: by the posterior mean of the
    same GP.
    """
    names = [f"m{index}" for index in range(family.num_members)]
    bounds = dict.fromkeys(names, (-10.0, 10.0))
    picker = SimplexGP(names, NUM_OBJECTIVES, seed=0, bounds=bounds, gram=family.gram)
    return picker.front(told)
