"""python -m benchmarks.driver.run [--sampler random] [--trials 3000]: what the driver costs beside
64 workers.

Workers are simulated: a trial takes a heavy-tailed time (log-normal, sigma 1, mean 2 s) and gives a
score by a formula and `--items` outcomes. Everything else is the driver as it is: loop, planner,
sampler, ledger with its flushes. Prints how busy the workers were from the first trial's start to
the last one's, and the driver's CPU seconds per second.

python -m benchmarks.driver.run --open 100000: writes a ledger of so many trials, then how long
opening it takes.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import tempfile
import time
from pathlib import Path

from recycler.cluster.workers import Request, Result
from recycler.io.strict_yaml import YamlDocument
from recycler.ledger import Ledger
from recycler.ledger.facts import JobFacts
from recycler.location import parse_location
from recycler.run.loop import search
from recycler.run.schedule import Planner
from recycler.search.proposer import make_proposer
from recycler.specs.resolve import resolve
from recycler.specs.space import SpaceSpec
from recycler.types import Checkpoint, Objective, Outcome, Pool, Score, Scorecard

OBJECTIVES = (
    Objective(suite="a", metric="exact_match", direction="maximize"),
    Objective(suite="b", metric="bits_per_byte", direction="minimize"),
)
MEAN_SECONDS, SIGMA = 2.0, 1.0


class SimulatedWorkers:
    """Sleeps as long as trials would take; counts how long each worker was busy."""

    def __init__(self, num_workers: int, num_items: int, seed: int = 0):
        self.num_workers, self._items, self._random = num_workers, num_items, random.Random(seed)
        self._running: list[tuple[float, int, Result]] = []
        self._spans: list[tuple[float, float]] = []

    def submit(self, request: Request) -> None:
        now = time.monotonic()
        seconds = self._random.lognormvariate(-(SIGMA**2) / 2, SIGMA) * MEAN_SECONDS
        self._spans.append((now, now + seconds))
        answer = scorecard(request.recipe, request.role, self._items)
        result = Result(number=request.number, role=request.role, answer=answer)
        heapq.heappush(self._running, (now + seconds, request.number, result))

    def wait(self):
        time.sleep(max(0.0, self._running[0][0] - time.monotonic()))
        done = []
        while self._running and self._running[0][0] <= time.monotonic():
            done.append(heapq.heappop(self._running)[2])
        return done

    def busy(self) -> float:
        """Share of the workers' time that was spent on trials, from the first trial's start to the
        last one's.
        """
        first, last = self._spans[0][0], self._spans[-1][0]
        return sum(min(end, last) - start for start, end in self._spans) / (
            self.num_workers * (last - first)
        )

    def close(self) -> None:
        pass


def scorecard(recipe, role, num_items) -> Scorecard:
    """Two smooth objectives of the first row of weights."""
    row = recipe.weights[0]
    first, second = (
        sum(row[::2]) / (1 + sum(abs(weight) for weight in row)),
        1.0 - 0.5 * sum(row[1::2]) / (1 + sum(abs(weight) for weight in row)),
    )
    scores = (
        Score(objective=OBJECTIVES[0].name, value=first, stderr=0.01, n=num_items),
        Score(objective=OBJECTIVES[1].name, value=second, stderr=0.01, n=num_items),
    )
    outcomes = tuple(
        Outcome(
            item=f"a/{index}",
            values=(("exact_match", float(index % 2)),),
            output="an answer of some length",
            num_tokens=20,
        )
        for index in range(num_items)
    )
    return Scorecard(
        role=role,
        scores=scores,
        outcomes=outcomes,
        weights_digest=str(hash(recipe.weights)),
        engine_fingerprint="simulated",
        num_tokens=20 * num_items,
    )


def pool_of(num_members: int) -> Pool:
    members = tuple(
        Checkpoint(name=f"m{index}", location=parse_location(f"m{index}"), tensors={}, config={})
        for index in range(num_members)
    )
    return Pool(
        members=members,
        base=Checkpoint(name="base", location=parse_location("base"), tensors={}, config={}),
    )


def planner_of(pool: Pool, sampler: str, trials: int) -> Planner:
    space = resolve(
        SpaceSpec(version=1),
        YamlDocument(path="space", data={}, lines={}),
        members=pool.names,
        num_layers=2,
        has_base=True,
        method_options={},
    )
    return Planner(
        pool=pool,
        method="linear",
        dtype="bfloat16",
        space=space,
        objectives=OBJECTIVES,
        proposer=make_proposer(sampler, space, OBJECTIVES, seed=0),
        num_merges=trials,
        seed=0,
    )


def drive(sampler: str, trials: int, num_workers: int, num_items: int, members: int) -> dict:
    workers = SimulatedWorkers(num_workers, num_items)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.sqlite")
        start, cpu = time.monotonic(), time.process_time()
        found = search(
            planner_of(pool_of(members), sampler, trials),
            ledger,
            workers,
            within_budget=lambda: True,
            listen=lambda event: None,
        )
        wall, cpu = time.monotonic() - start, time.process_time() - cpu
        ledger.close()
    return {
        "sampler": sampler,
        "trials": len(found),
        "workers": num_workers,
        "wall_seconds": round(wall, 1),
        "driver_cores": round(cpu / wall, 3),
        "busy": round(workers.busy(), 4),
    }


def open_large(trials: int) -> dict:
    """Write `trials` scored trials at once, then time a status, and all trials as a driver reads
    them.
    """
    from sqlalchemy import insert

    from recycler.digest import canonical_json, digest
    from recycler.ledger import codec, schema
    from recycler.ledger.runs import read_status
    from recycler.recipe_json import recipe_to_json

    pool = pool_of(8)
    planner = planner_of(pool, "random", trials)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.sqlite")
        chance = random.Random(0)
        payload = codec.outcomes_to_bytes(
            scorecard(planner.next((), may_propose=True)[0].recipe, "search", 200).outcomes
        )
        from recycler.search.baselines import blend

        rows, scores, outcomes = [], [], []
        for number in range(trials):
            recipe = blend(pool, "bfloat16", {name: chance.random() for name in pool.names})
            rows.append(
                {
                    "number": number,
                    "kind": "merge",
                    "label": "",
                    "state": "SCORED",
                    "recipe": recipe_to_json(recipe),
                    "recipe_digest": digest(recipe),
                    "params": canonical_json({f"w{index}": chance.random() for index in range(8)}),
                    "attempts": 1,
                    "weights_digest": digest(recipe),
                    "engine_fingerprint": "simulated engine 1.0",
                    "num_tokens": 4000,
                    "merge_seconds": 0.5,
                    "score_seconds": 2.0,
                    "opened_at": 0.0,
                    "closed_at": 1.0,
                }
            )
            scores += [
                {
                    "trial": number,
                    "role": "search",
                    "objective": objective.name,
                    "value": chance.random(),
                    "stderr": 0.01,
                    "n": 200,
                }
                for objective in OBJECTIVES
            ]
            outcomes.append({"trial": number, "role": "search", "payload": payload})
        with ledger._database.engine.begin() as connection:
            for table, content in (
                (schema.trials, rows),
                (schema.scores, scores),
                (schema.outcomes, outcomes),
            ):
                connection.execute(insert(table), content)
        del rows, scores, outcomes
        ledger.facts.job = JobFacts(
            name="large",
            dtype="bfloat16",
            trials=trials,
            objectives=tuple(OBJECTIVES),
            members=(),
            base=None,
        )
        ledger.close()
        figures = {
            "trials": trials,
            "megabytes": round((Path(folder) / "ledger.sqlite").stat().st_size / 1e6),
        }
        for name, act in (("open_and_status", read_status), ("open_and_all_trials", Ledger.trials)):
            start, cpu = time.monotonic(), time.process_time()
            ledger = Ledger(Path(folder) / "ledger.sqlite", create=False)
            act(ledger)
            figures |= {
                f"{name}_seconds": round(time.monotonic() - start, 3),
                f"{name}_cpu_seconds": round(time.process_time() - cpu, 3),
            }
            ledger.close()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--trials", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--open", type=int)
    arguments = parser.parse_args()
    print(
        json.dumps(
            open_large(arguments.open)
            if arguments.open
            else drive(
                arguments.sampler,
                arguments.trials,
                arguments.workers,
                arguments.items,
                arguments.members,
            )
        )
    )


if __name__ == "__main__":
    main()
