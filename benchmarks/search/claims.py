"""python -m benchmarks.search.claims --families networks bumps --members 16 --seeds 4 --csv FILE

The paper's claims on the bench's pools, by true scores of what 50 trials ship (members known
beforehand): is the front above all members, the uniform and the greedy soup; how many members get
weight; what do plainly bad members give?
"""

from __future__ import annotations

import argparse
import csv

import numpy as np

from recycler.objectives.pareto import hypervolume, non_dominated
from recycler.search.simplex.simplex_gp import SimplexGP
from recycler.search.simplex.surrogate import observations

from .bench import pool, reference, ship
from .families import FAMILIES, NUM_OBJECTIVES, Family

TRIALS = 50
USED = 0.01  # a weight above that counts as used


def search(family: Family, seed: int, frozen: dict[str, float]) -> np.ndarray:
    """Weights (n, K) of the merges that a search of TRIALS trials ships."""
    names = [f"m{index:02d}" for index in range(family.num_members)]
    bounds = (
        {name: (family.lowest, 1.0) for name in names if name not in frozen}
        if family.lowest < 0
        else None
    )
    proposer = SimplexGP(
        names, NUM_OBJECTIVES, seed=seed, bounds=bounds, frozen=frozen, gram=family.gram
    )
    rng = np.random.default_rng([7, seed])
    rows = [
        (row, *family.score(row, rng))
        for row in np.concatenate(
            [np.full((1, family.num_members), 1 / family.num_members), np.eye(family.num_members)]
        )
    ]
    for number in range(TRIALS):
        point = proposer.ask(observations(*map(np.array, zip(*rows, strict=True))), number=number)
        rows.append((point, *family.score(point, rng)))
    told = observations(*map(np.array, zip(*rows, strict=True)))
    return told.weights[list(ship(family, told).indices)]


def greedy(family: Family, seed: int) -> np.ndarray:
    """Weights (K,) of the greedy soup, members from best to worst by their mean observed score
    (Wortsman et al. 2022).
    """
    rng = np.random.default_rng([11, seed])
    order = np.argsort(
        -np.array([family.score(row, rng)[0].mean() for row in np.eye(family.num_members)]),
        kind="stable",
    )
    kept, best = [int(order[0])], -np.inf
    for member in [None, *order[1:]]:
        tried = kept if member is None else [*kept, int(member)]
        row = np.zeros(family.num_members)
        row[tried] = 1 / len(tried)
        if (mean := family.score(row, rng)[0].mean()) >= best:
            kept, best = tried, mean
    row = np.zeros(family.num_members)
    row[kept] = 1 / len(kept)
    return row


def claims(name: str, num_members: int, seed: int) -> dict[str, object]:
    """One pool's figures; volumes are shares of the long run's front."""
    family, (corner, best) = pool(name, num_members, seed), reference(name, num_members, seed)
    kept = list(family.counted)
    alone = family.truth(np.eye(num_members))[:, kept]
    bad = np.argsort(alone.mean(axis=1))[: num_members // 4]
    shipped, without = (
        search(family, seed, {}),
        search(family, seed, {f"m{index:02d}": 0.0 for index in bad}),
    )
    front, soup, uniform = (
        family.truth(shipped)[:, kept],
        family.truth(greedy(family, seed)[None])[:, kept],
        family.truth(np.full((1, num_members), 1 / num_members))[:, kept],
    )
    beaten = [(front >= row - 1e-9).all(axis=1).any() for row in alone]
    return {
        "family": name,
        "members": num_members,
        "pool": seed,
        "front": hypervolume(front, corner) / best,
        "all_members": hypervolume(alone[non_dominated(alone)], corner) / best,
        "uniform": hypervolume(uniform, corner) / best,
        "greedy": hypervolume(soup, corner) / best,
        "members_beaten": float(np.mean(beaten)),
        "best_each_beaten": float(np.mean(front.max(axis=0) >= alone.max(axis=0))),
        "used": float((np.abs(shipped) > USED).sum(axis=1).mean()),
        "bad_weight": float(np.abs(shipped[:, bad]).sum() / np.abs(shipped).sum()),
        "front_without_bad": hypervolume(family.truth(without)[:, kept], corner) / best,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--families",
        nargs="+",
        default=["networks", *(name for name in FAMILIES if name != "dead")],
    )
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--csv", required=True)
    args = parser.parse_args()
    with open(args.csv, "w", newline="", encoding="utf-8") as file:
        writer = None
        for name in args.families:
            for seed in range(args.seeds):
                row = claims(name, args.members, seed)
                writer = writer or csv.DictWriter(file, list(row))
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(row)
                file.flush()


if __name__ == "__main__":
    main()
