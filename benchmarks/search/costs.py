"""What it is worth to know a cost before the merge is made: fronts over three benchmarks and the
number of members used.

    python -m benchmarks.search.costs --csv costs.csv [--families bumps near_linear] [--members 8
    16] [--seeds 4] [--budget 60]

Arms: `known` as a job with {cost: members} has it; `no thinning`, the same without candidates that
members were taken out of; `modelled`, the number of members told with each score and learned by a
Gaussian process like any other; `blind`, a search that does not ask for it; `nsga2`, told with each
score; `random`, sparse mixtures. The front of every arm is picked in the same way: by the posterior
mean of one model for the benchmarks, and the exact number. Its true volume is told as a share of
that of all merges of all arms of a cell together; `few` is the volume over the benchmarks alone of
what is shipped with at most three members, likewise.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import optuna

from recycler.objectives.pareto import hypervolume, non_dominated
from recycler.search.simplex.simplex_gp import SimplexGP
from recycler.search.simplex.surrogate import Observations, observations

from .bench import keep, pool, ship
from .families import NUM_OBJECTIVES, Family
from .samplers import RandomSparse

optuna.logging.set_verbosity(optuna.logging.ERROR)
ARMS = ("known", "no thinning", "modelled", "blind", "nsga2", "random")
LOGIT, POPULATION = 3.0, 20
Ask = Callable[[list[np.ndarray], list[np.ndarray], list[np.ndarray], int], np.ndarray]


def cheap(points: np.ndarray) -> np.ndarray:
    """Number of members (n,), to be made large."""
    return -(points != 0.0).sum(axis=1).astype(float)


def search(
    arm: str, family: Family, pool_seed: int, seed: int, budget: int
) -> tuple[np.ndarray, float, Observations]:
    """Weights (n, K): the uniform soup, the members alone and what an arm proposes; its seconds a
    proposal; and what it was told.
    """
    rng = np.random.default_rng([7, pool_seed, seed])
    points, values, stderrs = [], [], []
    ask = _asker(arm, family, seed)
    spent, warm = (
        0.0,
        [np.full(family.num_members, 1 / family.num_members), *np.eye(family.num_members)],
    )
    for number in range(len(warm) + budget):
        start = time.process_time()
        point = warm[number] if number < len(warm) else ask(points, values, stderrs, number)
        spent += time.process_time() - start
        value, stderr = family.score(point, rng)
        (
            points.append(np.where(point < 1e-3, 0.0, point)),
            values.append(value),
            stderrs.append(stderr),
        )
    return np.array(points), spent / budget, observations(points, values, stderrs)


def _asker(arm: str, family: Family, seed: int) -> Ask:
    names = [f"m{index:02d}" for index in range(family.num_members)]
    if arm == "random":
        sparse = RandomSparse(family, seed)
        sparse.start = []
        return lambda points, values, stderrs, number: sparse.ask()
    if arm == "nsga2":
        return _nsga2(family, seed)
    exact = {NUM_OBJECTIVES: cheap} if arm in ("known", "no thinning") else None
    gp = SimplexGP(
        names, NUM_OBJECTIVES + (arm != "blind"), seed=seed, gram=family.gram, exact=exact
    )

    if arm == "no thinning":
        gp.settings = replace(gp.settings, num_sparsified=2)

    def ask(
        points: list[np.ndarray], values: list[np.ndarray], stderrs: list[np.ndarray], number: int
    ) -> np.ndarray:
        told = np.array(values), np.array(stderrs)
        if arm != "blind":
            told = (
                np.column_stack([told[0], cheap(np.array(points))]),
                np.column_stack([told[1], np.zeros(len(points))]),
            )
        return gp.ask(observations(points, *told), number=number)

    return ask


def _nsga2(family: Family, seed: int) -> Ask:
    """Optuna's, on softmax logits, with all that is known as finished trials; weights below 1 % are
    0, or it would never leave one out.
    """
    space = {
        f"x{index:02d}": optuna.distributions.FloatDistribution(-LOGIT, LOGIT)
        for index in range(family.num_members)
    }

    def ask(
        points: list[np.ndarray], values: list[np.ndarray], stderrs: list[np.ndarray], number: int
    ) -> np.ndarray:
        study = optuna.create_study(
            directions=["maximize"] * (NUM_OBJECTIVES + 1),
            sampler=optuna.samplers.NSGAIISampler(
                seed=seed * 1000 + number, population_size=POPULATION
            ),
        )
        for index, (point, value) in enumerate(zip(points, values, strict=True)):
            logits = np.clip(
                np.log(np.maximum(point, 1e-9)) - np.log(point.max()) + LOGIT, -LOGIT, LOGIT
            )
            study.add_trial(
                optuna.trial.create_trial(
                    params=dict(zip(space, map(float, logits), strict=True)),
                    distributions=space,
                    values=[*map(float, value), float(cheap(point[None])[0])],
                    system_attrs={"NSGAIISampler:generation": index // POPULATION},
                )
            )
        weights = np.exp(np.array(list(study.ask(space).params.values())))
        weights = weights / weights.sum()
        return np.where(weights < 0.01, 0.0, weights) / weights[weights >= 0.01].sum()

    return ask


def cell(
    name: str, num_members: int, pool_seed: int, seed: int, budget: int, checkpoints: list[int]
) -> list[dict[str, object]]:
    family, known = pool(name, num_members, pool_seed), num_members + 1
    corner = np.append(family.truth(np.eye(num_members)).min(axis=0) - 1e-6, -(num_members + 1.0))
    found = {arm: search(arm, family, pool_seed, seed, budget) for arm in ARMS}

    def true(points: np.ndarray) -> np.ndarray:
        return np.column_stack([family.truth(points), cheap(points)])

    def volume(table: np.ndarray) -> float:
        return hypervolume(table[non_dominated(table)], corner)

    def few(table: np.ndarray) -> float:
        own = table[table[:, -1] >= -3.0, :-1]
        return hypervolume(own, corner[:-1])

    everything = true(np.concatenate([points for points, _, _ in found.values()]))
    rows = []
    for arm, (points, seconds, told) in found.items():
        for trials in checkpoints:
            own = slice(0, known + trials)
            mean = ship(
                family, observations(told.weights[own], told.values[own], told.stderrs[own])
            ).mean
            shipped = true(points[own])[non_dominated(np.column_stack([mean, cheap(points[own])]))]
            rows.append(
                {
                    "arm": arm,
                    "family": name,
                    "members": num_members,
                    "pool": pool_seed,
                    "seed": seed,
                    "trials": trials,
                    "volume": volume(shipped) / volume(everything),
                    "few": few(shipped) / few(everything),
                    "used": float(-cheap(points[known : known + trials]).mean()),
                    "seconds": seconds,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", nargs="+", default=["bumps", "near_linear"])
    parser.add_argument("--members", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--seeds", type=int, default=4, help="pools; each is searched once")
    parser.add_argument("--budget", type=int, default=60)
    parser.add_argument("--csv", required=True)
    args = parser.parse_args()
    print(
        table(
            keep(
                args.csv,
                (
                    cell(
                        name, num_members, seed, seed, args.budget, [args.budget // 2, args.budget]
                    )
                    for name in args.families
                    for num_members in args.members
                    for seed in range(args.seeds)
                ),
            )
        )
    )


def table(rows: list[dict[str, object]]) -> str:
    lines = [
        "| family | K | trials | arm | volume | at most 3 members | members a proposal | CPU-s a "
        "proposal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys(
        (row["family"], row["members"], row["trials"], row["arm"]) for row in rows
    ):
        own = [
            row for row in rows if (row["family"], row["members"], row["trials"], row["arm"]) == key
        ]
        figures = [
            np.array([row[name] for row in own], dtype=float)
            for name in ("volume", "few", "used", "seconds")
        ]
        told = [
            f"{figure.mean():.3f} ({figure.min():.3f} to {figure.max():.3f})"
            for figure in figures[:2]
        ] + [f"{figures[2].mean():.1f}", f"{figures[3].mean():.2f}"]
        lines.append(f"| {' | '.join(map(str, key))} | {' | '.join(told)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
