"""`sampler: grid`: evenly spaced merges of two members, coarse first; refused where there is no
line.
"""

from dataclasses import replace

import numpy as np
import pytest

from fakes import OBJECTIVES, FakeWorkers, Killed, named_pool
from recycler.cli import main
from recycler.ledger import Ledger
from recycler.run.loop import search
from recycler.run.schedule import Planner
from recycler.search.grid import GridProposer, refining
from recycler.search.proposer import make_proposer
from recycler.specs.space import SearchSpace
from recycler.types import Group
from small_job import set_job

POOL = named_pool(2)
SPACE = SearchSpace(
    groups=(Group(name="all"),),
    members=POOL.names,
    low=(0.0, 0.0),
    high=(1.0, 1.0),
    total=(1.0, 1.0),
)


class PairWorkers(FakeWorkers):
    """A formula of three members, for pools of two."""

    def answer(self, recipe, role, items):
        return super().answer(
            replace(
                recipe,
                members=("m0", "m1", "m2"),
                weights=tuple((*row, 0.0) for row in recipe.weights),
            ),
            role,
            items,
        )


def planner(space=SPACE, num_merges=9, method="linear"):
    return Planner(
        pool=POOL,
        method=method,
        dtype="bfloat16",
        space=space,
        objectives=OBJECTIVES,
        num_merges=num_merges,
        seed=7,
        proposer=make_proposer("grid", space, OBJECTIVES, seed=7, num_merges=num_merges),
    )


def searched(path, plan, workers=None):
    ledger = Ledger(path)
    try:
        return search(
            plan,
            ledger,
            workers or PairWorkers(),
            within_budget=lambda: True,
            listen=lambda event: None,
        )
    finally:
        ledger.close()


def first_weights(trials):
    return [trial.recipe.weights[0][0] for trial in trials if trial.is_proposed]


def test_a_grid_refines_and_leaves_no_point_out():
    assert refining(9) == [0, 8, 4, 2, 6, 1, 5, 3, 7]
    for count in range(1, 70):
        assert sorted(refining(count)) == list(range(count))
    widest = [max(np.diff(sorted(refining(65)[:seen]))) for seen in (2, 3, 5, 9, 17, 33, 65)]
    assert widest == [64, 32, 16, 8, 4, 2, 1]


def test_members_and_soup_are_points_of_the_grid_that_are_not_asked_for_again(tmp_path):
    plan = planner()
    trials = searched(tmp_path / "run.sqlite", plan)
    assert first_weights(trials) == [0.25, 0.75, 0.125, 0.625, 0.375, 0.875]
    assert plan.exhausted(trials) and plan.next(trials, may_propose=True) is None
    assert {
        trial.recipe.weights[0][0] for trial in trials if trial.recipe.weights != ((0.0, 0.0),)
    } == {index / 8 for index in range(9)}


def test_another_method_tries_every_point_and_uses_the_budget(tmp_path):
    plan = planner(method="slerp", num_merges=5)
    trials = searched(tmp_path / "run.sqlite", plan)
    assert first_weights(trials) == [0.0, 1.0, 0.5, 0.25, 0.75] and not plan.exhausted(trials)


@pytest.mark.parametrize("kill_after", [3, 5, 8])
def test_a_killed_grid_goes_on_where_it_was(tmp_path, kill_after):
    whole = searched(tmp_path / "whole.sqlite", planner())
    with pytest.raises(Killed):
        searched(tmp_path / "killed.sqlite", planner(), PairWorkers(kill_after=kill_after))
    assert searched(tmp_path / "killed.sqlite", planner(), PairWorkers()) == whole


def test_a_larger_budget_refines_the_grid_of_a_finished_run(tmp_path):
    searched(tmp_path / "run.sqlite", planner(num_merges=5))
    weights = first_weights(searched(tmp_path / "run.sqlite", planner(num_merges=9)))
    assert weights[:2] == [0.25, 0.75] and sorted(weights[2:]) == [0.125, 0.375, 0.625, 0.875]


def test_a_grid_covers_the_allowed_range_and_no_more():
    space = replace(SPACE, low=(-0.5, 0.2), high=(3.0, 1.2))
    asked = [GridProposer(space, 5)._rows[index] for index in range(5)]
    assert asked[:2] == [(-0.2, 1.2), (0.8, 0.2)] and all(
        sum(row) == pytest.approx(1.0) for row in asked
    )


REFUSED = {
    "": [
        "goes along the line between two members, and the pool has 3",
        "pool.without",
        "needs a fixed sum, and the space searches it in [0.3, 3]",
        "simplex.yaml",
    ],
    "sum: 1\ngroups: modules": ["one row of weights, and the space has 4 groups"],
    "sum: 1\noptions: {density: [0.1, 1]}": ["moves weights alone, and the space searches density"],
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_line_is_refused_with_reason_and_remedy(text, job, capsys):
    (job / "s.yaml").write_text(f"version: 1\n{text}\n")
    set_job(job, space="s.yaml", sampler="grid", method="ties")
    assert main(["plan", str(job / "job.yaml")]) == 2
    said = capsys.readouterr().err
    for words in [*REFUSED[text], "sampler grid", "job.yaml:"]:
        assert words in said


def test_two_members_and_a_fixed_sum_are_accepted(job, capsys):
    set_job(
        job,
        space="search_spaces/simplex.yaml",
        sampler="grid",
        pool={"members": ["pool/members"], "base": "pool/base", "without": ["m2"]},
    )
    assert main(["plan", str(job / "job.yaml")]) == 0
    with pytest.raises(ValueError, match="two members"):
        GridProposer(replace(SPACE, total=(0.3, 3.0)), 5)
