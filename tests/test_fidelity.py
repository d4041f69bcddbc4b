"""Laws of scoring in part: honest errors, members as controls, no item asked twice, finalists
whole, and resume as ever.
"""

from dataclasses import dataclass, field

import numpy as np
import pytest
from conftest import OBJECTIVES, FakeWorkers, Killed, fake_scorecard, named_pool

from recycler.cluster.workers import Work
from recycler.digest import derive_seed
from recycler.ledger import Ledger
from recycler.objectives.stats import Z95
from recycler.results.front import read_front
from recycler.run.fidelity import Fidelity
from recycler.run.loop import complete, score_holdout, search
from recycler.run.schedule import Planner
from recycler.scoring.outcomes import aggregate
from recycler.search.proposer import make_proposer
from recycler.specs.job import FidelitySpec
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


def test_killed_and_resumed_it_writes_the_same_ledger_and_asks_nothing_twice(tmp_path):
    workers = ItemWorkers()
    whole = run(tmp_path / "whole.sqlite", workers, fidelity())
    searched = [entry for entry in workers.asked if "/search" in entry[1]]
    assert len(searched) == len(set(searched))
    for kill_after in (0, 3, 9, 4, 6, 2, 1):
        with pytest.raises(Killed):
            run(tmp_path / "killed.sqlite", ItemWorkers(kill_after=kill_after), fidelity())
    assert run(tmp_path / "killed.sqlite", ItemWorkers(), fidelity()) == whole


def test_merges_see_their_own_items_baselines_and_finalists_all_of_them(tmp_path):
    trials, outcomes, _ = run(tmp_path / "run.sqlite", ItemWorkers(), fidelity())
    merges = [trial for trial in trials if trial.kind == "merge" and not trial.label]
    finalists = {
        trial.number for trial in read_front(trials, OBJECTIVES, POOL, "bfloat16").finalists
    }
    partial = [trial for trial in merges if trial.number not in finalists]
    assert partial and all(
        len(outcomes[trial.number]) == 320 for trial in trials if trial not in partial
    )
    assert all(score.n == 60 for trial in partial for score in trial.search)
    assert len(
        {frozenset(outcome.item for outcome in outcomes[trial.number]) for trial in partial}
    ) == len(partial)
    assert finalists >= {trial.number for trial in trials if trial.holdout}


def test_stated_errors_hold_and_members_shrink_them(tmp_path):
    trials, outcomes, _ = run(tmp_path / "run.sqlite", ItemWorkers(), fidelity(), num_merges=40)
    merges = [trial for trial in trials if trial.kind == "merge" and not trial.label]
    inside, total = 0, 0
    for trial in merges:
        truth = {
            score.objective: score.value
            for score in aggregate(
                SEARCH, ItemWorkers().answer(trial.recipe, "search", None).outcomes, OBJECTIVES
            )
        }
        for score in trial.search:
            total += score.n < 160
            inside += (
                score.n < 160 and abs(score.value - truth[score.objective]) <= Z95 * score.stderr
            )
    assert total > 40 and inside / total > 0.9
    full = {
        score.objective: score.stderr
        for trial in trials
        if trial.kind == "member"
        for score in trial.search
    }
    bits = [
        score.stderr
        for trial in merges
        for score in trial.search
        if score.n < 160 and "bits" in score.objective
    ]
    assert np.median(bits) < 1.15 * full["fake:b/bits_per_byte"], (
        "with 37 % of the items, nearly the error of all of them"
    )


def test_a_task_smaller_than_the_wish_is_asked_whole_and_all_items_are_no_draw():
    trial = type("T", (), {"is_proposed": True, "number": 3})
    assert (
        fidelity(160).drawn(trial) is None
        and fidelity(None).drawn(trial) is None
        and len(fidelity(50).drawn(trial)) == 100
    )


def test_fewer_than_fifty_items_are_refused():
    with pytest.raises(ValueError, match="50"):
        FidelitySpec(items_per_task=49)
