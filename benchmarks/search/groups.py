"""python -m benchmarks.search.groups --groups 3 --members 8 --budget 60 --seeds 4 --csv FILE

What weights of their own buy the layers of a merge, and what it is worth to find the best common
weights first. Really trained tiny networks (see `networks`), G groups of tensors, K members whose
scores are known beforehand, as in a job. Arms, at equal trials:

    global    one row of weights for all tensors, to the end
    cold      G rows from the first trial on; members and uniform soup are known (equal rows)
    warm N    one row for the first N trials, then G rows, told all there is

Each arm ships by its own model. Figures are true hypervolumes on items held out, as shares of the
front of everything that any arm tried on that pool: of what is shipped, and of all that the arm
tried.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from recycler.objectives.pareto import hypervolume, non_dominated
from recycler.search.simplex.simplex_gp import SimplexGP
from recycler.search.simplex.surrogate import observations

from .bench import keep
from .families import NUM_ITEMS, NUM_OBJECTIVES
from .networks import SHAPES, SIZES, _forward, _items, _trained

LAYERS = {
    1: [[0, 1, 2, 3, 4, 5]],
    2: [[0, 1, 2, 3], [4, 5]],
    3: [[0, 1], [2, 3], [4, 5]],
    4: [[0], [2], [4], [1, 3, 5]],
}  # tensors of each group
POINTS = (30, 45, 60, 90, 120)


class GroupedPool:
    """A trained pool whose merges have a row of weights for each group of tensors."""

    def __init__(self, num_members: int, num_groups: int, seed: int):
        torch.set_num_threads(1)
        self.base, members = _trained(num_members, seed)
        self.deltas, self.groups, self.num_members = members - self.base, num_groups, num_members
        self.gram = (self.deltas @ self.deltas.T).double().numpy()
        self._test = [
            _items(task, 2000, torch.Generator().manual_seed(99), seed)
            for task in range(NUM_OBJECTIVES)
        ]
        self._searched = [
            _items(task, NUM_ITEMS, torch.Generator().manual_seed(10_000 + seed), seed)
            for task in range(NUM_OBJECTIVES)
        ]
        self._group_of = torch.cat(
            [
                torch.full(
                    (size,),
                    next(index for index, own in enumerate(LAYERS[num_groups]) if tensor in own),
                )
                for tensor, size in enumerate(SIZES)
            ]
        )
        assert len(SIZES) == len(SHAPES)

    def _right(self, point: np.ndarray, items: list) -> np.ndarray:
        """Share of right answers by task (T,) of the merge at a point (G K)."""
        rows = torch.tensor(point.reshape(self.groups, self.num_members), dtype=torch.float32)
        merged = self.base + (rows @ self.deltas).gather(0, self._group_of[None])[0]
        with torch.inference_mode():
            return np.array(
                [float((_forward(merged, x).argmax(1) == y).double().mean()) for x, y in items]
            )

    def score(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores (T,) on the searched items, and their standard errors."""
        value = self._right(point, self._searched)
        return value, np.sqrt(np.clip(value * (1 - value), 0.02, None) / NUM_ITEMS)

    def truth(self, points: np.ndarray) -> np.ndarray:
        """Scores (n, T) on the items held out."""
        return np.array([self._right(point, self._test) for point in points])


def search(
    pool: GroupedPool, switch: int, budget: int, scale: tuple[float, float], seed: int
) -> tuple[np.ndarray, dict[int, list[int]], float]:
    """Search with one row up to trial `switch`, then with as many as there are groups.

    Returns all points (n, G K), known ones first, the shipped ones after N trials, and seconds per
    proposal.
    """
    names, many = [f"m{index}" for index in range(pool.num_members)], pool.groups
    samplers = {
        rows: SimplexGP(names, NUM_OBJECTIVES, seed=seed, scale=scale, gram=pool.gram, groups=rows)
        for rows in {1, many}
    }
    known = [
        np.tile(row, many)
        for row in np.concatenate(
            [np.full((1, pool.num_members), 1 / pool.num_members), np.eye(pool.num_members)]
        )
    ]
    points, told = list(known), [pool.score(point) for point in known]
    shipped, spent = {}, 0.0

    def seen(rows: int):
        """Every trial as a sampler of so many rows knows it."""
        table = np.array(points)
        return observations(
            table[:, : pool.num_members] if rows == 1 else table,
            *map(np.array, zip(*told, strict=True)),
        )

    for number in range(budget):
        rows = 1 if number < switch else many
        start = time.process_time()
        point = samplers[rows].ask(seen(rows), number=len(points))
        spent += time.process_time() - start
        points.append(np.tile(point, many // rows))
        told.append(pool.score(points[-1]))
        if number + 1 in POINTS or number + 1 == budget:
            shipped[number + 1] = list(samplers[rows].front(seen(rows)).indices)
    return np.array(points), shipped, spent / budget


def cell(
    num_groups: int,
    num_members: int,
    budget: int,
    switches: dict[str, int],
    scale: tuple[float, float],
    seed: int,
) -> list[dict[str, object]]:
    """All arms on one pool."""
    pool = GroupedPool(num_members, num_groups, seed)
    arms = {arm: search(pool, switch, budget, scale, seed) for arm, switch in switches.items()}
    truth = {arm: pool.truth(points) for arm, (points, _, _) in arms.items()}
    corner = truth["global"][1 : 1 + num_members].min(axis=0) - 1e-6  # the members' worst
    everything = np.concatenate(list(truth.values()))
    best = hypervolume(everything[non_dominated(everything)], corner)
    known = 1 + num_members
    return [
        {
            "groups": num_groups,
            "members": num_members,
            "pool": seed,
            "sum": f"{scale[0]:g}-{scale[1]:g}",
            "arm": arm,
            "trials": trials,
            "shipped": hypervolume(truth[arm][chosen], corner) / best,
            "all": hypervolume(own[non_dominated(own)], corner) / best,
            "apart": float(
                np.mean(
                    [
                        np.ptp(points[index].reshape(num_groups, -1), axis=0).max() > 0.02
                        for index in chosen
                    ]
                )
            ),
            "seconds": seconds,
        }
        for arm, (points, shipped, seconds) in arms.items()
        for trials, chosen in shipped.items()
        for own in [truth[arm][: known + trials]]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", nargs="+", type=int, default=[3], choices=[2, 3, 4])
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--budget", type=int, default=60)
    parser.add_argument(
        "--switch",
        nargs="+",
        type=int,
        default=[30],
        help="trials with one row of weights before there are several",
    )
    parser.add_argument(
        "--sum", nargs=2, type=float, default=[1.0, 1.0], help="of each row: lowest and highest"
    )
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--csv", required=True)
    args = parser.parse_args()
    switches = {
        "global": args.budget,
        "cold": 0,
        **{f"warm {switch}": switch for switch in args.switch},
    }
    print(
        table(
            keep(
                args.csv,
                (
                    cell(num_groups, args.members, args.budget, switches, tuple(args.sum), seed)
                    for num_groups in args.groups
                    for seed in range(args.first_seed, args.first_seed + args.seeds)
                ),
            )
        )
    )


def table(rows: list[dict]) -> str:
    """Mean and standard error over pools of what is shipped (of all that was tried), and the paired
    difference from `global`.
    """
    lines = [
        "| G | trials | arm | shipped | less global | tried | rows apart |",
        "|---|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((row["groups"], row["trials"], row["arm"]) for row in rows):
        own = {
            row["pool"]: row for row in rows if (row["groups"], row["trials"], row["arm"]) == key
        }
        plain = {
            row["pool"]: row
            for row in rows
            if (row["groups"], row["trials"], row["arm"]) == (*key[:2], "global")
        }
        gained = np.array([own[pool]["shipped"] - plain[pool]["shipped"] for pool in own])
        lines.append(
            f"| {key[0]} | {key[1]} | {key[2]} | "
            f"{_mean([row['shipped'] for row in own.values()])} | {_mean(gained)} | "
            f"{_mean([row['all'] for row in own.values()])} | "
            f"{np.mean([row['apart'] for row in own.values()]):.0%} |"
        )
    return "\n".join(lines)


def _mean(values) -> str:
    values = np.asarray(values, dtype=float)
    return (
        f"{values.mean():.3f} ± {values.std(ddof=1) / len(values) ** 0.5:.3f}"
        if len(values) > 1
        else f"{values.mean():.3f}"
    )


if __name__ == "__main__":
    main()
