"""A whole search by a formula of the weights: ask, score, hold out."""

from fakes import OBJECTIVES, named_pool
from recycler.digest import canonical_json
from recycler.ledger import Ledger
from recycler.results.documents import front_document
from recycler.results.front import read_front
from recycler.run.loop import score_holdout, search
from recycler.run.schedule import Planner
from recycler.search.proposer import make_proposer
from recycler.specs.space import SearchSpace
from recycler.types import Group

POOL = named_pool()


def planner(sampler="tpe", num_merges=12):
    space = SearchSpace(
        groups=(Group(name="all"),),
        members=POOL.names,
        low=(0.0,) * 4,
        high=(3.0,) * 4,
        total=(0.3, 3.0),
    )
    return Planner(
        pool=POOL,
        method="linear",
        dtype="bfloat16",
        space=space,
        objectives=OBJECTIVES,
        num_merges=num_merges,
        seed=7,
        proposer=make_proposer(sampler, space, OBJECTIVES, seed=7),
    )


def run(path, workers, sampler="tpe", num_merges=12):
    ledger = Ledger(path)
    try:
        trials = search(
            planner(sampler, num_merges),
            ledger,
            workers,
            within_budget=lambda: True,
            listen=lambda event: None,
        )
        front = read_front(trials, OBJECTIVES, POOL, "bfloat16")
        stored = {trial.number: trial for trial in ledger.trials()}
        score_holdout(
            [stored[trial.number] for trial in front.finalists],
            ledger,
            workers,
            listen=lambda event: None,
        )
        return canonical_json(
            front_document(read_front(ledger.trials(), OBJECTIVES, POOL, "bfloat16"))
        )
    finally:
        ledger.close()
