"""Spaces that hold few merges or none: refused before anything starts, or searched to their end and
no further.
"""

import json

import numpy as np
import pytest

from fakes import OBJECTIVES, FakeWorkers, Killed, named_pool
from recycler.cli import main
from recycler.errors import UsageError
from recycler.io.strict_yaml import load_yaml, parse_model
from recycler.ledger import Ledger
from recycler.run.loop import search
from recycler.run.prepare import prepare
from recycler.run.schedule import Planner
from recycler.search.proposer import make_proposer
from recycler.search.simplex.proposer import SimplexProposer
from recycler.specs.resolve import resolve
from recycler.specs.space import SearchSpace, SpaceSpec, reachable_sums
from recycler.types import Group
from small_job import JOB, set_job

POOL = named_pool()
SAMPLERS = ["simplex_gp", "tpe", "nsga2", "nsga3", "gp", "random", "paper"]
ONE_AT_A_TIME = {"low": (0.0,) * 4, "high": (1.0,) * 4, "total": (1.0, 1.0), "max_nonzero": 1}
FIXED = {"low": (0.5, 0.5, 0.0, 0.0), "high": (0.5, 0.5, 0.0, 0.0), "total": (0.3, 3.0)}
LAST_FREE = {"low": (0.5, 0.2, 0.0, 0.0), "high": (0.5, 0.2, 0.0, 1.0), "total": (1.0, 1.0)}


def space_of(groups=1, **ranges):
    return SearchSpace(
        **{
            "groups": tuple(Group(name=f"g{index}") for index in range(groups)),
            "members": POOL.names,
            "low": (0.0,) * 4,
            "high": (3.0,) * 4,
            "total": (0.3, 3.0),
            **ranges,
        }
    )


def planner(space, sampler, num_merges=9, method="linear"):
    return Planner(
        pool=POOL,
        method=method,
        dtype="bfloat16",
        space=space,
        objectives=OBJECTIVES,
        num_merges=num_merges,
        seed=7,
        proposer=make_proposer(sampler, space, OBJECTIVES, seed=7),
    )


def searched(path, plan, workers=None):
    ledger = Ledger(path)
    try:
        return search(
            plan,
            ledger,
            workers or FakeWorkers(num_workers=2),
            within_budget=lambda: True,
            listen=lambda event: None,
        )
    finally:
        ledger.close()


REFUSED = {  # text of the space file -> what is said of it
    "sum: [0, 1]": ["s.yaml:2: sum: reaches 0", "[0.05, 1]"],
    "sum: [-1, 1]\nbounds: [-1, 1]": [
        "s.yaml:2: sum: reaches -1",
        "single weights may be negative",
    ],
    "sum: 0": ["s.yaml:2: sum: reaches 0"],
    "sum: 2\nbounds: [0, 0.6]\nmax_nonzero: 2": [
        "s.yaml:2: sum: weights of at most 2 members between 0 and 1.2",
        "max_nonzero",
    ],
    "max_nonzero: 1\nmembers: {m0: {min: 0.1}, m1: {fixed: 0.5}}": [
        "s.yaml:2: max_nonzero: 1 is fewer",
        "m0, m1",
    ],
    "sum: 1\nmembers: {m0: {fixed: 0}, m1: {fixed: 0}, m2: {fixed: 0.4}}": [
        "s.yaml:2: sum: weights between 0.4 and 0.4"
    ],
}


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize("text", REFUSED)
def test_a_space_without_any_merge_is_refused_with_its_line(text, command, job, capsys):
    (job / "s.yaml").write_text(f"version: 1\n{text}\n")
    set_job(job, space="s.yaml")
    assert (
        main(
            [
                command,
                str(job / "job.yaml"),
                *(["--dir", str(job / "run")] if command == "run" else []),
            ]
        )
        == 2
    )
    said = capsys.readouterr().err
    for words in REFUSED[text]:
        assert words in said
    assert not (job / "run").exists()


def test_a_bound_on_members_that_no_sum_can_keep_is_refused(job, capsys):
    (job / "s.yaml").write_text("version: 1\nsum: 1\nbounds: [0, 0.6]\n")
    set_job(job, space="s.yaml", objectives=[*JOB["objectives"], {"cost": "members", "floor": 1}])
    assert main(["plan", str(job / "job.yaml")]) == 2
    assert (
        "at most 1 members: are too few: their weights sum to 0 to 0.6" in capsys.readouterr().err
    )


def random_spec(rng):
    """What somebody could write, sensible or not."""

    def pick(*choices):
        return choices[rng.integers(len(choices))]

    limits = (
        {"fixed": 0.0},
        {"fixed": 0.5},
        {"fixed": -0.2},
        {"min": 0.1},
        {"max": 0.3},
        {"min": 0.2, "max": 0.2},
        {"fixed": 1.0},
    )
    spec = {
        "version": 1,
        "groups": pick("global", "global", "modules"),
        "bounds": pick([0, 1], [0, 0.6], [0.1, 0.5], [0.25, 0.25], [0, 3]),
        "sum": pick(1, 0.5, 2, [0.3, 3], [0.5, 0.5], [0.9, 1.1]),
        "members": {
            f"m{k}": pick(*limits) for k in rng.choice(4, size=rng.integers(0, 4), replace=False)
        },
        "options": pick({}, {"density": [0.5, 0.5]}, {"density": [0.2, 1.0]}),
    }
    return {**spec, "max_nonzero": int(rng.integers(1, 5))} if rng.random() < 0.6 else spec


@pytest.mark.long
@pytest.mark.parametrize("sampler", ["simplex_gp", "tpe", "random", "paper"])
def test_what_is_not_refused_is_searched_and_every_merge_obeys_it(tmp_path, sampler):
    rng, counts = np.random.default_rng(SAMPLERS.index(sampler)), {"refused": 0, "searched": 0}
    for case in range(25):
        document = load_yaml(tmp_path / "s.yaml", json.dumps(random_spec(rng)))
        try:
            space = resolve(
                parse_model(SpaceSpec, document),
                document,
                members=POOL.names,
                num_layers=4,
                has_base=True,
                method_options={"density": 1.0},
            )
        except UsageError:
            counts["refused"] += 1
            continue
        plan = planner(space, sampler, num_merges=7, method="ties" if space.options else "linear")
        trials = searched(tmp_path / f"{case}.sqlite", plan)
        proposed = [trial.recipe for trial in trials if trial.is_proposed]
        assert len(proposed) == 7 or plan.exhausted(trials)
        rows = np.array([row for recipe in proposed for row in recipe.weights]).reshape(-1, 4)
        assert (rows >= np.array(space.low) - 1e-5).all() and (
            rows <= np.array(space.high) + 1e-5
        ).all()
        assert (rows.sum(axis=1) >= space.total[0] - 4e-3).all() and (
            rows.sum(axis=1) <= space.total[1] + 4e-3
        ).all()  # weights below 0.001 are left out
        assert ((rows != 0).sum(axis=1) <= (space.max_nonzero or 4)).all()
        counts["searched"] += 1
    assert min(counts.values()) > 3


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_that_propose_no_negative_weights_are_refused_where_these_are_allowed(
    sampler, job, capsys
):
    (job / "s.yaml").write_text(
        "version: 1\nsum: 1\nmembers: {m0: {min: -0.5}, m1: {fixed: -0.2}}\n"
    )
    set_job(job, space="s.yaml", sampler=sampler)
    assert main(["plan", str(job / "job.yaml")]) == (0 if sampler == "simplex_gp" else 2)
    said = capsys.readouterr().err
    assert sampler == "simplex_gp" or (
        f"sampler {sampler}: proposes shares of a sum" in said
        and "allows that of m0. Use sampler: simplex_gp" in said
        and "job.yaml:" in said
    )
    (job / "s.yaml").write_text("version: 1\nsum: 1\nmembers: {m1: {fixed: -0.2}}\n")
    assert main(["plan", str(job / "job.yaml")]) == 0


def test_a_plan_says_how_many_merges_a_small_space_holds(job, capsys):
    (job / "s.yaml").write_text(
        "version: 1\nsum: 1\nmembers: {m0: {fixed: 0.5}, m1: {fixed: 0.5}, m2: {fixed: 0}}\n"
    )
    set_job(job, space="s.yaml")
    assert main(["plan", str(job / "job.yaml")]) == 0
    assert (
        "the space holds 1 merge: the search ends when all of them are tried"
        in capsys.readouterr().err
    )
    assert prepare(job / "job.yaml").space.num_points == 1


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    "ranges, new",
    [(ONE_AT_A_TIME, 0), (FIXED, 1), (LAST_FREE, 1)],
    ids=["members alone", "all fixed", "the last weight follows"],
)
def test_a_search_ends_when_every_merge_is_tried(tmp_path, sampler, ranges, new):
    plan = planner(space_of(**ranges), sampler)
    trials = searched(tmp_path / "run.sqlite", plan)
    proposed = [trial.recipe.weights for trial in trials if trial.is_proposed]
    assert len(proposed) == len(set(proposed)) == new
    assert plan.exhausted(trials) and plan.next(trials, may_propose=True) is None
    assert searched(tmp_path / "run.sqlite", plan) == trials


@pytest.mark.long
def test_each_group_has_its_own_choice_and_all_of_them_are_tried(tmp_path):
    space = space_of(groups=2, **ONE_AT_A_TIME)
    plan = planner(space, "simplex_gp", num_merges=40)
    trials = searched(tmp_path / "run.sqlite", plan)
    assert (
        space.num_points == 16
        and len({trial.recipe.weights for trial in trials if trial.is_proposed}) == 12
        and plan.exhausted(trials)
    )


def test_a_spent_budget_is_no_exhausted_space(tmp_path):
    plan = planner(space_of(), "random", num_merges=3)
    assert not plan.exhausted(searched(tmp_path / "run.sqlite", plan))
    assert not plan.exhausted(())


@pytest.mark.long
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_range_of_one_value_is_that_value_in_every_merge(tmp_path, sampler):
    space = space_of(options=(("density", (0.5, 0.5)), ("lambda", (0.5, 2.0))))
    plan = planner(space, sampler, num_merges=12, method="ties")
    proposed = [trial for trial in searched(tmp_path / "run.sqlite", plan) if trial.is_proposed]
    assert len(proposed) == 12 and {trial.recipe.option("density") for trial in proposed} == {0.5}
    assert len({trial.recipe.option("lambda") for trial in proposed}) > 1
    alone = space_of(options=(("density", (0.5, 0.5)),))
    assert SimplexProposer(alone, OBJECTIVES, seed=0).gp.domain.size == 4
    assert (
        len(
            {
                trial.recipe.weights
                for trial in searched(tmp_path / "alone.sqlite", planner(alone, sampler, 4, "ties"))
                if trial.is_proposed
            }
        )
        == 4
    )


def test_reachable_sums_are_those_of_the_best_choice_of_members():
    """Against all choices of members, over random ranges."""
    from itertools import combinations

    rng = np.random.default_rng(0)
    for _ in range(200):
        low, high = np.sort(rng.choice([-1.0, -0.2, 0.0, 0.0, 0.3, 0.9], (2, 5)), axis=0)
        must = [k for k in range(5) if low[k] > 0 or high[k] < 0]
        most = int(rng.integers(max(len(must), 1), 6))
        sums = [
            (low[list(chosen)].sum(), high[list(chosen)].sum())
            for size in range(most + 1)
            for chosen in combinations(range(5), size)
            if set(must) <= set(chosen)
        ]
        assert reachable_sums(low, high, most) == pytest.approx(
            (min(least for least, _ in sums), max(largest for _, largest in sums))
        )


@pytest.mark.long
def test_a_killed_search_of_a_small_space_ends_the_same(tmp_path):
    plan = planner(space_of(groups=2, **ONE_AT_A_TIME), "simplex_gp", num_merges=40)
    with pytest.raises(Killed):
        searched(tmp_path / "killed.sqlite", plan, FakeWorkers(kill_after=16))
    whole = searched(tmp_path / "whole.sqlite", plan, FakeWorkers())
    assert searched(tmp_path / "killed.sqlite", plan, FakeWorkers()) == whole
