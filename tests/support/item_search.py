"""A search whose workers answer item by item, as it is scored in part."""

from dataclasses import dataclass, field

import numpy as np

from fakes import OBJECTIVES, FakeWorkers, fake_scorecard, named_pool
from recycler.cluster.workers import Work
from recycler.digest import derive_seed
from recycler.ledger import Ledger
from recycler.results.front import read_front
from recycler.run.fidelity import Fidelity
from recycler.run.loop import complete, score_holdout, search
from recycler.run.schedule import Planner
from recycler.scoring.outcomes import aggregate
from recycler.search.proposer import make_proposer
from recycler.specs.space import SearchSpace
from recycler.types import Group, Item, Outcome, Scorecard

POOL = named_pool()

KINDS = {"a": ("exact_match", "generate"), "b": ("bits_per_byte", "loglikelihood")}

ITEMS = tuple(
    Item(
        id=f"fake/{task}/{role}{index}",
        suite="fake",
        task=task,
        role=role,
        kind=kind,
        scorer=scorer,
        prompt="p",
        prompt_ids=(1,),
        gold="g",
        continuations=((1,),),
        num_bytes=10,
        cluster=f"{task}-{role}{index}",
    )
    for task, (scorer, kind) in KINDS.items()
    for role in ("search", "holdout")
    for index in range(160)
)

SEARCH = tuple(item for item in ITEMS if item.role == "search")


@dataclass
class ItemWorkers(FakeWorkers):
    """Answers item by item: each has a difficulty of its own, the same for every recipe, and a
    little luck with each recipe.
    """

    asked: list = field(default_factory=list)

    def answer(self, recipe, role, items):
        work = Work(pool=POOL, engine="fake", items=ITEMS, objectives=OBJECTIVES)
        chosen = work.items_of(role, items)
        means = {score.objective: score.value for score in fake_scorecard(recipe, role).scores}
        self.asked += [(recipe, item.id) for item in chosen]
        outcomes = tuple(
            Outcome(
                item=item.id,
                values=((KINDS[item.task][0], value(item, recipe, means)),),
                num_tokens=1,
            )
            for item in chosen
        )
        return Scorecard(
            role=role,
            scores=aggregate(chosen, outcomes, OBJECTIVES),
            outcomes=outcomes,
            weights_digest=str(recipe.weights),
            engine_fingerprint="fake",
            num_tokens=len(chosen),
        )


def value(item, recipe, means):
    hard = np.random.default_rng(derive_seed(0, item.id)).random()
    luck = np.random.default_rng(derive_seed(0, item.id, str(recipe.weights))).random()
    if item.task == "a":
        return float(0.8 * hard + 0.2 * luck < means["fake:a/exact_match"])
    return means["fake:b/bits_per_byte"] + 0.2 * hard + 0.02 * luck


def fidelity(items_per_task=60):
    return Fidelity(items=SEARCH, objectives=OBJECTIVES, items_per_task=items_per_task, seed=7)


def run(path, workers, rules, num_merges=14):
    """As recycler.run.driver does it: search, complete, hold out."""
    space = SearchSpace(
        groups=(Group(name="all"),),
        members=POOL.names,
        low=(0.0,) * 4,
        high=(3.0,) * 4,
        total=(0.3, 3.0),
    )
    planner = Planner(
        pool=POOL,
        method="linear",
        dtype="bfloat16",
        space=space,
        objectives=OBJECTIVES,
        num_merges=num_merges,
        seed=7,
        needs_members=True,
        proposer=make_proposer("random", space, OBJECTIVES, seed=7),
    )
    ledger, quiet = Ledger(path), {"listen": lambda event: None}
    try:
        search(planner, ledger, workers, within_budget=lambda: True, fidelity=rules, **quiet)
        finalists = complete(
            lambda trials: read_front(trials, OBJECTIVES, POOL, "bfloat16").finalists,
            ledger,
            workers,
            rules,
            **quiet,
        )
        score_holdout(finalists, ledger, workers, **quiet)
        return (
            ledger.trials(),
            {
                trial.number: ledger.outcomes(trial.number, "search")
                for trial in ledger.trials()
                if trial.state == "SCORED"
            },
            ledger.spent()[0],
        )
    finally:
        ledger.close()
