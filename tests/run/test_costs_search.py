"""A search that knows what merges cost: exact figures are not guessed, bounds are kept, and few
members are found worth something.
"""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from fakes import OBJECTIVES, FakeWorkers, Killed, fake_scorecard, named_pool
from recycler.digest import canonical_json
from recycler.export.card import model_card
from recycler.ledger import Ledger
from recycler.objectives.costs import Costs, DeltaProducts
from recycler.results.documents import front_document
from recycler.results.front import knee, read_front
from recycler.run.cost_workers import CostWorkers
from recycler.run.loop import score_holdout, search
from recycler.run.plateau import Plateau
from recycler.run.schedule import Planner
from recycler.search.baselines import greedy_soup, macro_average, maximized, merge_best
from recycler.search.floors import floors
from recycler.search.outlook import outlook
from recycler.search.proposer import make_proposer
from recycler.search.simplex.domain import weight_domain
from recycler.search.simplex.proposals import random_sparse, sparsify
from recycler.search.simplex.proposer import SimplexProposer
from recycler.search.simplex.simplex_gp import SimplexGP
from recycler.search.simplex.surrogate import observations
from recycler.specs.space import SearchSpace
from recycler.types import Group, Objective, Score

pytestmark = pytest.mark.long

MEMBERS = Objective(suite="", metric="members", direction="minimize")
DISTANCE = Objective(suite="", metric="distance", direction="minimize")
POOL = named_pool(6)
BLOCKS = (Group(name="attention", match="self_attn"), Group(name="rest"))


def space(pool=POOL, **changes):
    count = len(pool.names)
    return SearchSpace(
        **{
            "groups": (Group(name="all"),),
            "members": pool.names,
            "low": (0.0,) * count,
            "high": (3.0,) * count,
            "total": (0.3, 3.0),
        }
        | changes
    )


def planner(
    objectives, sampler="simplex_gp", num_merges=20, known_costs=None, pool=POOL, **changes
):
    own = space(pool, **changes)
    return Planner(
        pool=pool,
        method="linear",
        dtype="bfloat16",
        space=own,
        objectives=objectives,
        num_merges=num_merges,
        seed=7,
        proposer=make_proposer(sampler, own, objectives, seed=7, known_costs=known_costs),
    )


def searched(path, objectives, workers=None, **changes):
    known_costs = changes.get("known_costs") or Costs(
        tuple(objective for objective in objectives if objective.is_cost)
    )
    with closing(Ledger(path)) as ledger:
        search(
            planner(objectives, **changes),
            ledger,
            CostWorkers(workers or FakeWorkers(), known_costs),
            within_budget=lambda: True,
            listen=lambda event: None,
        )
        return ledger.trials()


def figures(trials, name):
    return {
        trial.number: next(score.value for score in trial.search if score.objective == name)
        for trial in trials
    }


WITH_MEMBERS = (*OBJECTIVES, MEMBERS)


class Skills(FakeWorkers):
    """m0 and m1 each know half of the first benchmark, m2 and m3 of the second, more weight helps
    ever less; m4 and m5 know nothing.
    """

    def answer(self, recipe, role, items):
        known = np.tanh(1.5 * np.array(recipe.weights[0]))
        values = (0.1 + 0.4 * (known[0] + known[1]), 1.0 - 0.4 * (known[2] + known[3]))
        scores = tuple(
            Score(objective=objective.name, value=float(level), stderr=0.01, n=100)
            for objective, level in zip(OBJECTIVES, values, strict=True)
        )
        return replace(fake_scorecard(recipe, role), scores=scores)


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    return searched(tmp_path_factory.mktemp("search") / "run.sqlite", WITH_MEMBERS, Skills())


def test_exact_columns_are_neither_learned_nor_drawn():
    domain_size, rng = 6, np.random.default_rng(0)

    def price(points):
        return -(points != 0).sum(axis=1).astype(float)

    gp = SimplexGP(POOL.names, 3, seed=0, exact={1: price})
    points = random_sparse(gp.domain, rng, 20)
    told = np.column_stack(
        [points @ rng.random(domain_size), price(points), points @ rng.random(domain_size)]
    )
    gp.fit(observations(points, told, np.full((20, 3), 0.01)))
    fresh = random_sparse(gp.domain, rng, 30)
    mean, sd = gp.predict(fresh)
    draws = gp.draw(fresh, rng, 8)
    assert (
        (mean[:, 1] == price(fresh)).all()
        and (sd[:, 1] == 0).all()
        and (draws[:, :, 1] == price(fresh)).all()
    )
    assert (sd[:, [0, 2]] > 0).all() and draws[:, :, [0, 2]].std(axis=0).min() > 0
    plain = SimplexGP(POOL.names, 2, seed=0)
    plain.fit(observations(points, told[:, [0, 2]], np.full((20, 2), 0.01)))
    assert plain.predict(fresh)[0] == pytest.approx(mean[:, [0, 2]])
    front = gp.front(observations(points, told, np.full((20, 3), 0.01)))
    assert (
        (front.mean[:, 1] == told[:, 1]).all()
        and not front.sd[:, 1].any()
        and not front.total_sd[:, 1].any()
        and not front.dead[1]
    )


def test_whether_a_benchmark_is_at_chance_is_judged_without_the_cost():
    found = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        gp, plain = (
            SimplexGP(
                POOL.names,
                3,
                seed=0,
                exact={0: lambda points: -(points != 0).sum(axis=1).astype(float)},
            ),
            SimplexGP(POOL.names, 2, seed=0),
        )
        points = random_sparse(gp.domain, rng, 40)
        scores, errors = (
            np.column_stack([points @ rng.random(6), 0.25 + 0.03 * rng.standard_normal(40)]),
            np.full((40, 2), 0.03),
        )
        price = -(points != 0).sum(axis=1, keepdims=True).astype(float)
        found.append(
            gp.front(
                observations(points, np.hstack([price, scores]), np.hstack([0 * price, errors]))
            ).dead
        )
        if found[-1].any():
            assert found[-1].tolist() == [False, False, True]
        assert plain.front(observations(points, scores, errors)).dead.tolist() == [
            False,
            False,
        ]  # two stay; here the cost is the second
    assert sum(dead[2] for dead in found) >= 2


def test_taking_members_out_keeps_sums_rules_and_zeros():
    for rules in (
        {},
        {"scale": (0.3, 3.0)},
        {"groups": 2, "scale": (0.5, 2.0), "knobs": [(0.0, 1.0)]},
    ):
        domain, rng = weight_domain(POOL.names, **rules), np.random.default_rng(0)
        parents = random_sparse(domain, rng, 1)
        before, after = (
            domain.split(parents)[0],
            domain.split(points := sparsify(domain, rng, parents, 200))[0],
        )
        used = (before != 0).any(axis=1)
        assert domain.contains(points).all() and not (after != 0).any(axis=1)[:, ~used[0]].any()
        counts = (after != 0).any(axis=1).sum(axis=1)
        assert set(counts) >= set(range(1, used.sum()))
    vertices = weight_domain(POOL.names)
    assert (sparsify(vertices, np.random.default_rng(0), np.eye(6)[:1], 5) == np.eye(6)[0]).all()


@pytest.mark.long
def test_the_front_shows_what_each_further_member_buys(trials):
    """Four members know something, each something else."""
    front = read_front(trials, WITH_MEMBERS, POOL, "bfloat16")
    counts = figures(front.front, "cost:members")
    assert set(counts.values()) >= {0.0, 1.0, 2.0, 3.0, 4.0} and max(counts.values()) < 6

    def best_sum(members):
        return max(
            trial.search[0].value - trial.search[1].value
            for trial in front.front
            if counts[trial.number] == members
        )

    assert best_sum(1) < best_sum(2) < best_sum(3) < best_sum(4)
    for trial in trials:
        score = next(score for score in trial.search if score.objective == "cost:members")
        assert (
            score.value == sum(weight != 0.0 for weight in trial.recipe.weights[0])
            and score.stderr == 0.0
            and score.n == 0
        )
    proposed = [trial for trial in trials if trial.is_proposed]
    assert np.mean([members <= 4 for members in figures(proposed, "cost:members").values()]) > 0.8


@pytest.mark.long
def test_the_same_budget_finds_better_merges_of_few_members_than_a_search_that_asks_for_none(
    trials, tmp_path
):
    others = [
        replace(trial, search=(*trial.search, *Costs((MEMBERS,)).scores(trial.recipe)))
        for trial in searched(tmp_path / "plain.sqlite", OBJECTIVES, Skills())
    ]
    volumes = [
        front.hypervolume(front.front, "search")
        for front in (read_front(own, WITH_MEMBERS, POOL, "bfloat16") for own in (trials, others))
    ]
    assert volumes[0] > volumes[1]


@pytest.mark.long
def test_volumes_are_measured_from_more_members_than_one(trials):
    front = read_front(trials, WITH_MEMBERS, POOL, "bfloat16")
    assert front.reference[2] == 7.0 and 0 < front.hypervolume(
        front.members, "search"
    ) < front.hypervolume(front.front, "search")
    bounded = (*OBJECTIVES, replace(MEMBERS, floor="2"))
    front = read_front(trials, bounded, POOL, "bfloat16")
    assert (
        front.reference[2] == 3.0
        and front.floors_kept
        and max(figures(front.front, "cost:members").values()) == 2.0
    )
    assert floors(bounded, trials)[2] == -2.0
    proposer = SimplexProposer(space(), WITH_MEMBERS, seed=0)
    assert 0 < outlook(proposer, trials) < 5
    assert isinstance(
        Plateau(patience=5, smoother=proposer, objectives=WITH_MEMBERS).reached(trials), bool
    )
    smoothed = proposer.smoothed(trials)
    assert all(
        next(score for score in scores if score.objective == "cost:members").is_exact
        for scores in smoothed.scores.values()
    )
    assert figures(
        [replace(trial, search=smoothed.get(trial.number)) for trial in trials], "cost:members"
    ) == figures(trials, "cost:members")
    document = front_document(read_front(trials, WITH_MEMBERS, POOL, "bfloat16", smoothed=smoothed))
    assert all(
        entry["scores"]["cost:members"]["posterior"]["stderr"] == 0.0 for entry in document["front"]
    )
    assert [
        entry["objective"] for entry in document["baselines"] if entry["kind"] == "best_per_task"
    ] == [objective.name for objective in OBJECTIVES]


@pytest.mark.long
def test_a_bound_on_distance_is_kept_by_every_proposal_of_the_gp(tmp_path):
    """Deltas at right angles, each of length 1 %: the distance is the length of the weights."""
    products = DeltaProducts(tensors=("w",), table=1e-4 * np.eye(6)[None])
    objectives = (*OBJECTIVES, replace(DISTANCE, floor="0.008"))
    trials = searched(
        tmp_path / "run.sqlite",
        objectives,
        known_costs=Costs(objectives[2:], products),
        num_merges=14,
    )
    for trial in trials:
        assert figures([trial], "cost:distance")[trial.number] == pytest.approx(
            0.01 * np.linalg.norm(trial.recipe.weights[0])
        )
    assert (
        max(figures([trial for trial in trials if trial.is_proposed], "cost:distance").values())
        <= 0.008 + 1e-9
    )
    front = read_front(trials, objectives, POOL, "bfloat16")
    assert front.floors_kept and front.reference[2] == 0.008
    with pytest.raises(ValueError, match="cannot be told"):
        SimplexProposer(space(), objectives, seed=0)


@pytest.mark.long
def test_what_is_only_bounded_tells_merges_within_the_bound_not_apart(tmp_path):
    products = DeltaProducts(tensors=("w",), table=1e-4 * np.eye(6)[None])
    bound = replace(DISTANCE, floor="0.008", bound_only=True)
    objectives, known_costs = (*OBJECTIVES, bound), Costs((bound,), products)
    trials = searched(
        tmp_path / "run.sqlite", objectives, Skills(), known_costs=known_costs, num_merges=16
    )
    distances, proposed = (
        figures(trials, "cost:distance"),
        [trial for trial in trials if trial.is_proposed],
    )
    assert maximized(trials, objectives)[:, 2].tolist() == [
        -max(distance, 0.008) for distance in distances.values()
    ]
    assert max(distances[trial.number] for trial in proposed) <= 0.008 + 1e-9
    smoothed = SimplexProposer(space(), objectives, seed=0, known_costs=known_costs).smoothed(
        trials
    )
    assert (
        figures(
            [replace(trial, search=smoothed.get(trial.number)) for trial in trials], "cost:distance"
        )
        == distances
    )  # told as they are
    within = [trial for trial in trials if distances[trial.number] <= 0.008]
    front = read_front(trials, objectives, POOL, "bfloat16")
    assert {trial.number for trial in front.front} == {
        trial.number
        for trial in read_front(
            [trial for trial in trials if trial.kind == "member" or trial in within],
            OBJECTIVES,
            POOL,
            "bfloat16",
        ).front
    } & {trial.number for trial in within}
    assert (
        front.floors_kept
        and front.hypervolume(front.front, "search") > 0
        and max(distances[trial.number] for trial in front.front) > 0.006
    )


def test_a_bound_that_no_merge_keeps_is_come_near_to(tmp_path):
    """Weights of sum 1 over six deltas at right angles are 0.41 % away at least, the uniform soup,
    which is scored already.
    """
    tight = (*OBJECTIVES, replace(DISTANCE, floor="0.003"))
    trials = searched(
        tmp_path / "run.sqlite",
        tight,
        known_costs=Costs(tight[2:], DeltaProducts(tensors=("w",), table=1e-4 * np.eye(6)[None])),
        total=(1.0, 1.0),
        num_merges=8,
    )
    assert (
        max(figures([trial for trial in trials if trial.is_proposed], "cost:distance").values())
        < 0.0048
    )
    front = read_front([trial for trial in trials if trial.kind != "base"], tight, POOL, "bfloat16")
    assert not front.floors_kept and front.front


@pytest.mark.long
def test_the_base_is_not_the_knee_for_costing_nothing(trials):
    front = read_front(trials, WITH_MEMBERS, POOL, "bfloat16")
    assert front.base in front.front and knee(front).kind != "base"
    assert knee(replace(front, front=(front.base,))) is front.base


@pytest.mark.long
def test_groups_count_members_that_any_group_uses(tmp_path):
    """The rows alone allow three members each; only both together break the bound."""
    objectives = (*OBJECTIVES, replace(MEMBERS, floor="3"))
    trials = searched(
        tmp_path / "run.sqlite", objectives, groups=BLOCKS, max_nonzero=3, num_merges=12
    )
    proposed = [trial for trial in trials if trial.is_proposed]
    assert max(figures(proposed, "cost:members").values()) <= 3 and {
        len(trial.recipe.weights) for trial in proposed
    } == {2}


@pytest.mark.long
@pytest.mark.parametrize("sampler", ["simplex_gp", "tpe", "nsga2", "gp", "random", "paper"])
def test_killed_and_restarted_the_search_proposes_the_same(tmp_path, sampler):
    whole = searched(tmp_path / "whole.sqlite", WITH_MEMBERS, sampler=sampler, num_merges=7)
    for kill_after in (2, 5, 4):
        with pytest.raises(Killed):
            searched(
                tmp_path / "killed.sqlite",
                WITH_MEMBERS,
                FakeWorkers(kill_after=kill_after),
                sampler=sampler,
                num_merges=7,
            )
    assert (
        searched(tmp_path / "killed.sqlite", WITH_MEMBERS, sampler=sampler, num_merges=7) == whole
    )
    assert all(len(trial.search) == 3 for trial in whole)


def test_averages_of_scores_leave_costs_out(trials):
    """The paper's macro-average, the greedy soup's, and what one would average by hand."""
    assert [macro_average(trial, trials, WITH_MEMBERS) for trial in trials] == [
        macro_average(trial, trials, OBJECTIVES) for trial in trials
    ]
    assert greedy_soup(POOL, "bfloat16", trials, WITH_MEMBERS) == greedy_soup(
        POOL, "bfloat16", trials, OBJECTIVES
    )
    assert merge_best(POOL, "bfloat16", trials, WITH_MEMBERS) == merge_best(
        POOL, "bfloat16", trials, OBJECTIVES
    )
    paper = [
        make_proposer("paper", space(), objectives, seed=1).ask(40, trials)
        for objectives in (WITH_MEMBERS, OBJECTIVES)
    ]
    assert paper[0] == paper[1]


def test_holdout_and_front_documents_say_the_same_cost(tmp_path):
    with closing(Ledger(tmp_path / "run.sqlite")) as ledger:
        workers = CostWorkers(FakeWorkers(), Costs((MEMBERS,)))
        found = search(
            planner(WITH_MEMBERS, sampler="random", num_merges=8),
            ledger,
            workers,
            within_budget=lambda: True,
            listen=lambda event: None,
        )
        front = read_front(found, WITH_MEMBERS, POOL, "bfloat16")
        score_holdout(
            [
                trial
                for trial in ledger.trials()
                if trial.number in {own.number for own in front.finalists}
            ],
            ledger,
            workers,
            listen=lambda event: None,
        )
        front = read_front(ledger.trials(), WITH_MEMBERS, POOL, "bfloat16")
    document = front_document(front)
    assert canonical_json(document) and all(
        entry["scores"]["cost:members"]["search"]
        == entry["scores"]["cost:members"]["holdout"]
        == {"value": sum(bool(w) for w in entry["weights"]["all"].values()), "stderr": 0.0, "n": 0}
        for entry in document["front"]
    )


def test_the_card_of_an_export_says_what_its_recipe_costs(trials):
    card = model_card("merge", POOL, trials[-1].recipe, trials[-1], "", searched={"fake": ()})
    assert (
        "(by its recipe) |"
        in next(line for line in card.splitlines() if line.startswith("| cost:members"))
        and "No search items come from a published test set" in card
    )


def test_a_floor_above_the_whole_opening_is_kept_from_the_first_proposal_on():
    """A knob that is its own objective, with a floor of 0.45: the opening has it in the middle, at
    0.3, and is left out.
    """
    proposer = SimplexGP(
        ["a", "b"],
        2,
        seed=0,
        knobs=[(0.1, 0.5)],
        floors=[np.nan, 0.45],
        exact={1: lambda points: points[:, 2]},
    )
    first = proposer.ask(None)
    assert (
        proposer.ask(observations([first], [[0.5, first[2]]]), number=1)[2] >= 0.45
        and first[2] >= 0.45
    )


def test_a_bound_on_members_is_kept_by_the_first_proposals_of_a_large_pool():
    """With more than 16 members no member alone is in the opening, and a random mixture uses a
    dozen.
    """
    names = [f"m{index:02d}" for index in range(32)]
    proposer = SimplexGP(
        names,
        2,
        seed=0,
        floors=[np.nan, -2],
        exact={1: lambda points: -(points != 0).sum(axis=1).astype(float)},
    )
    rows = []
    for number in range(4):
        told = (
            observations(rows, [[0.1 * index, -(row != 0).sum()] for index, row in enumerate(rows)])
            if rows
            else None
        )
        rows.append(proposer.ask(told, number=number))
    assert max((row != 0).sum() for row in rows) <= 2


def test_an_exact_function_of_another_shape_is_named():
    proposer = SimplexGP(["a", "b"], 2, seed=0, exact={1: lambda points: points[:, :1]})
    with pytest.raises(ValueError, match="exact of objective 1 must give 2 finite numbers"):
        proposer.fit(observations(np.eye(2), [[0.1, 0.2], [0.3, 0.4]])) or proposer.predict(
            np.eye(2)
        )
