"""Costs are exact: told by the recipe, equal to what the exported merge says, never guessed, and nothing that items would be asked for."""

import json
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from conftest import OBJECTIVES, FakeWorkers, Killed, fake_scorecard, named_pool
from test_bad_inputs import JOB, job, set_job  # noqa: F401  (the fixture)
from test_bad_inputs import sound as sound  # noqa: PLC0414  (the fixture's own)
from test_earlier import JobWorkers

from recycler.cli import main
from recycler.costs import Costs, DeltaProducts
from recycler.digest import canonical_json
from recycler.errors import UsageError
from recycler.export.card import model_card
from recycler.export.export import export_recipe
from recycler.insight import open_preview, open_why
from recycler.ledger import Ledger
from recycler.pool.catalog import open_checkpoint
from recycler.pool.distance import delta_products
from recycler.pool.tensors import iterate_tensors
from recycler.prepare import prepare
from recycler.priced import PRODUCTS, PricedWorkers, measured_costs, read_products, write_products
from recycler.refine import _shares
from recycler.report import front_document, knee, read_front
from recycler.report_html import html_report
from recycler.run import open_front, run_job
from recycler.search.baselines import greedy_soup, macro_average, maximized, merge_best
from recycler.search.domain import weight_domain
from recycler.search.floors import floors
from recycler.search.loop import score_holdout, search
from recycler.search.outlook import outlook
from recycler.search.plateau import Plateau
from recycler.search.proposals import scattered, thinned
from recycler.search.proposer import make_proposer
from recycler.search.schedule import Planner
from recycler.search.simplex_gp import SimplexGP, observations
from recycler.search.simplex_proposer import SimplexProposer
from recycler.service.documents import compare_document, pool_document, trials_document
from recycler.service.store import _read
from recycler.service.table import table_document, trial_document
from recycler.space import SearchSpace
from recycler.testing import make_pico_pool
from recycler.types import Group, Objective, Recipe, Score
from recycler.without import job_without

MEMBERS = Objective(suite="", metric="members", direction="minimize")
DISTANCE = Objective(suite="", metric="distance", direction="minimize")
POOL = named_pool(6)
BLOCKS = (Group(name="attention", match="self_attn"), Group(name="rest"))


def recipe(*rows, pool=POOL, groups=(Group(name="all"),), **changes):
    return Recipe(**{"method": "linear", "members": pool.names, "weights": rows, "groups": groups, "base": "base"} | changes)


def value(priced, of):
    (score,) = priced.scores(of)
    assert score.stderr == 0.0 and score.n == 0 and score.is_exact
    return score.value


# ---------------------------------------------------------------- the figures

@pytest.mark.parametrize("rows, number", [(((1.0, 0, 0, 0, 0, 0),), 1), (((0.0,) * 6,), 0), (((0.5, 0, -0.5, 0, 1e-6, 0),), 3), (((1 / 6,) * 6,), 6), (((1.0, 0, 0, 0, 0, 0), (0, 0, 0.5, 0.5, 0, 0)), 3)])
def test_members_are_those_with_a_weight_in_some_group(rows, number):
    assert value(Costs((MEMBERS,)), recipe(*rows, groups=BLOCKS if len(rows) == 2 else (Group(name="all"),))) == number


@pytest.fixture(scope="module")
def pico(tmp_path_factory):
    return make_pico_pool(tmp_path_factory.mktemp("pico"), num_members=3)


def vector(checkpoint):
    return np.concatenate([tensor.float().numpy().astype(np.float64).ravel() for _, tensor in iterate_tensors(checkpoint)])


def far(checkpoint, base):
    return np.linalg.norm(vector(checkpoint) - vector(base)) / np.linalg.norm(vector(base))


def test_the_distance_of_a_member_is_that_of_its_tensors(pico):
    priced = Costs((DISTANCE,), delta_products(pico))
    for index, member in enumerate(pico.members):
        assert value(priced, recipe(np.eye(3)[index], pool=pico)) == pytest.approx(far(member, pico.base), rel=1e-6)
    assert value(priced, recipe((0.0, 0.0, 0.0), pool=pico)) == 0.0


@pytest.mark.parametrize("rows", [((0.5, 0.0, 0.5),), ((1.1, -0.4, 0.7),), ((0.2, 0.9, 0.0), (0.0, 0.3, 1.3))], ids=["average", "beyond", "groups"])
def test_the_distance_of_a_merge_is_that_of_its_export(pico, tmp_path, rows):
    merge = recipe(*rows, pool=pico, groups=BLOCKS if len(rows) == 2 else (Group(name="all"),), dtype="float32")
    export_recipe(merge, pico, tmp_path / "export")
    assert value(Costs((DISTANCE,), delta_products(pico)), merge) == pytest.approx(far(open_checkpoint(tmp_path / "export"), pico.base), rel=1e-5)


def test_products_are_kept_bit_for_bit(pico):
    products = delta_products(pico)
    again = read_products(write_products(products))
    assert again.tensors == products.tensors and (again.table == products.table).all()
    whole, parts = products.of_groups((Group(name="all"),)), products.of_groups(BLOCKS)
    assert parts.sum(axis=0) == pytest.approx(whole[0]) and (parts.diagonal(axis1=1, axis2=2) > 0).all()


def test_what_is_not_linear_has_no_distance_told_by_its_weights(pico):
    priced = Costs((DISTANCE,), delta_products(pico))
    for other in (recipe((1.0, 0, 0), pool=pico, method="ties"), recipe((1.0, 0, 0), pool=pico, base=None), recipe((1.0, 0, 0), pool=pico, options=(("normalize", True),))):
        with pytest.raises(ValueError, match="distance"):
            priced.scores(other)


# ---------------------------------------------------------------- what a job may ask for

BENCHMARK = JOB["objectives"][0]
BAD = {
    "unknown cost": ([{"cost": "memory"}], {}, ["objectives.1.cost", "members", "distance"]),
    "no such key": ([{"cost": "members", "flor": 3}], {}, ["objectives.1.flor", "Did you mean 'floor'"]),
    "key of a suite": ([{"cost": "members", "suite": "echo"}], {}, ["objectives.1.suite", "unknown"]),
    "to be made large": ([{"cost": "members", "direction": "maximize"}], {}, ["objectives.1.direction", "minimize"]),
    "no members": ([{"cost": "members", "floor": 0}], {}, ["objectives.1.floor", "number of members"]),
    "half a member": ([{"cost": "members", "floor": 2.5}], {}, ["objectives.1.floor", "number of members"]),
    "nearer than the base": ([{"cost": "distance", "floor": 0}], {}, ["objectives.1.floor", "not above 0"]),
    "a floor in words": ([{"cost": "distance", "floor": "base + 1"}], {}, ["objectives.1.floor", "number"]),
    "a bound that is none": ([{"cost": "members"}, {"cost": "distance", "bound_only": True}], {}, ["objectives.2.bound_only", "needs floor"]),
    "nothing to trade": ([{"cost": "distance", "floor": 0.1, "bound_only": True}], {}, ["objectives", "fewer than two beside bounds"]),
    "twice": ([{"cost": "members"}, {"cost": "members", "floor": 2}], {}, ["cost:members", "stands twice"]),
    "nothing to be near to": ([{"cost": "distance"}], {"pool": {"members": ["pool/members"]}}, ["cost distance", "the pool has none", "Add base"]),
    "distance of another method": ([{"cost": "distance"}], {"method": "ties"}, ["cost distance", "weights of ties", "method: linear"]),
    "members of layer_swap": ([{"cost": "members"}], {"method": "layer_swap"}, ["cost members", "members of weight 0 too"]),
}


@pytest.mark.parametrize("costs, changes, said", BAD.values(), ids=BAD)
def test_what_cannot_be_is_refused(job, costs, changes, said):  # noqa: F811
    set_job(job, objectives=[BENCHMARK, *costs], **changes)
    with pytest.raises(UsageError) as error:
        prepare(job / "job.yaml")
    assert all(part in str(error.value) for part in (*said, "job.yaml:"))


def test_costs_alone_and_one_objective_are_refused(job):  # noqa: F811
    for objectives, said in (([{"cost": "members"}, {"cost": "distance"}], "costs alone"), ([{"cost": "members"}], "at least 2"), ([{"suite": "", "metric": "members", "direction": "minimize"}, BENCHMARK], "objectives.0.suite")):
        set_job(job, objectives=objectives)
        with pytest.raises(UsageError, match=said):
            prepare(job / "job.yaml")


def test_a_bound_on_members_narrows_the_space_of_every_sampler(job):  # noqa: F811
    set_job(job, objectives=[BENCHMARK, {"cost": "members", "floor": 2}])
    prepared = prepare(job / "job.yaml")
    assert prepared.space.max_nonzero == 2 and [objective.name for objective in prepared.objectives] == ["echo:echo/exact_match", "cost:members"]
    assert [objective.name for objective in prepared.benchmarks] == ["echo:echo/exact_match"]
    (job / "s.yaml").write_text("version: 1\nbounds: [0.1, 3]\n")
    set_job(job, objectives=[BENCHMARK, {"cost": "members", "floor": 2}], space="s.yaml")
    with pytest.raises(UsageError, match="m0, m1, m2"):
        prepare(job / "job.yaml")
    (job / "s.yaml").write_text("version: 1\noptions: {normalize: [0, 1]}\n")
    set_job(job, objectives=[BENCHMARK, {"cost": "distance"}], space="s.yaml")
    with pytest.raises(UsageError, match="searches normalize"):
        prepare(job / "job.yaml")


def test_a_job_without_costs_has_the_digest_it_had(job):  # noqa: F811
    """Runs made before there were costs go on."""
    dumped = prepare(job / "job.yaml").job.model_dump()
    assert dumped["objectives"] == [{**entry, "floor": None} for entry in JOB["objectives"]]


# ---------------------------------------------------------------- the sampler

def space(pool=POOL, **changes):
    count = len(pool.names)
    return SearchSpace(**{"groups": (Group(name="all"),), "members": pool.names, "low": (0.0,) * count, "high": (3.0,) * count, "total": (0.3, 3.0)} | changes)


def planner(objectives, sampler="simplex_gp", num_merges=20, priced=None, pool=POOL, **changes):
    own = space(pool, **changes)
    return Planner(pool=pool, method="linear", dtype="bfloat16", space=own, objectives=objectives, num_merges=num_merges, seed=7, proposer=make_proposer(sampler, own, objectives, seed=7, priced=priced))


def searched(path, objectives, workers=None, **changes):
    priced = changes.get("priced") or Costs(tuple(objective for objective in objectives if objective.is_cost))
    with closing(Ledger(path)) as ledger:
        search(planner(objectives, **changes), ledger, PricedWorkers(workers or FakeWorkers(), priced), within_budget=lambda: True, listen=lambda event: None)
        return ledger.trials()


def figures(trials, name):
    return {trial.number: next(score.value for score in trial.search if score.objective == name) for trial in trials}


WITH_MEMBERS = (*OBJECTIVES, MEMBERS)


class Skills(FakeWorkers):
    """m0 and m1 each know half of the first benchmark, m2 and m3 of the second, more weight helps ever less; m4 and m5 know nothing."""

    def answer(self, recipe, role, items):
        known = np.tanh(1.5 * np.array(recipe.weights[0]))
        values = (0.1 + 0.4 * (known[0] + known[1]), 1.0 - 0.4 * (known[2] + known[3]))
        scores = tuple(Score(objective=objective.name, value=float(level), stderr=0.01, n=100) for objective, level in zip(OBJECTIVES, values, strict=True))
        return replace(fake_scorecard(recipe, role), scores=scores)


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    return searched(tmp_path_factory.mktemp("search") / "run.sqlite", WITH_MEMBERS, Skills())


def test_exact_columns_are_neither_learned_nor_drawn():
    domain_size, rng = 6, np.random.default_rng(0)
    price = lambda points: -(points != 0).sum(axis=1).astype(float)
    gp = SimplexGP(POOL.names, 3, seed=0, exact={1: price})
    points = scattered(gp.domain, rng, 20)
    told = np.column_stack([points @ rng.random(domain_size), price(points), points @ rng.random(domain_size)])
    gp.fit(observations(points, told, np.full((20, 3), 0.01)))
    fresh = scattered(gp.domain, rng, 30)
    mean, sd = gp.predict(fresh)
    draws = gp.draw(fresh, rng, 8)
    assert (mean[:, 1] == price(fresh)).all() and (sd[:, 1] == 0).all() and (draws[:, :, 1] == price(fresh)).all()
    assert (sd[:, [0, 2]] > 0).all() and draws[:, :, [0, 2]].std(axis=0).min() > 0
    plain = SimplexGP(POOL.names, 2, seed=0)
    plain.fit(observations(points, told[:, [0, 2]], np.full((20, 2), 0.01)))
    assert plain.predict(fresh)[0] == pytest.approx(mean[:, [0, 2]])
    front = gp.front(observations(points, told, np.full((20, 3), 0.01)))
    assert (front.mean[:, 1] == told[:, 1]).all() and not front.sd[:, 1].any() and not front.total_sd[:, 1].any() and not front.dead[1]


def test_whether_a_benchmark_is_at_chance_is_judged_without_the_cost():
    found = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        gp, plain = SimplexGP(POOL.names, 3, seed=0, exact={0: lambda points: -(points != 0).sum(axis=1).astype(float)}), SimplexGP(POOL.names, 2, seed=0)
        points = scattered(gp.domain, rng, 40)
        scores, errors = np.column_stack([points @ rng.random(6), 0.25 + 0.03 * rng.standard_normal(40)]), np.full((40, 2), 0.03)
        price = -(points != 0).sum(axis=1, keepdims=True).astype(float)
        found.append(gp.front(observations(points, np.hstack([price, scores]), np.hstack([0 * price, errors]))).dead)
        if found[-1].any():
            assert found[-1].tolist() == [False, False, True]
        assert plain.front(observations(points, scores, errors)).dead.tolist() == [False, False]  # two stay; here the cost is the second
    assert sum(dead[2] for dead in found) >= 2


def test_taking_members_out_keeps_sums_rules_and_zeros():
    for rules in ({}, {"scale": (0.3, 3.0)}, {"groups": 2, "scale": (0.5, 2.0), "knobs": [(0.0, 1.0)]}):
        domain, rng = weight_domain(POOL.names, **rules), np.random.default_rng(0)
        parents = scattered(domain, rng, 1)
        before, after = domain.split(parents)[0], domain.split(points := thinned(domain, rng, parents, 200))[0]
        used = (before != 0).any(axis=1)
        assert domain.contains(points).all() and not (after != 0).any(axis=1)[:, ~used[0]].any()
        counts = (after != 0).any(axis=1).sum(axis=1)
        assert set(counts) >= set(range(1, used.sum()))
    alone = weight_domain(POOL.names)
    assert (thinned(alone, np.random.default_rng(0), np.eye(6)[:1], 5) == np.eye(6)[0]).all()


def test_the_front_shows_what_each_further_member_buys(trials):
    """Four members know something, each something else."""
    front = read_front(trials, WITH_MEMBERS, POOL, "bfloat16")
    counts = figures(front.front, "cost:members")
    assert set(counts.values()) >= {0.0, 1.0, 2.0, 3.0, 4.0} and max(counts.values()) < 6

    def best_sum(members):
        return max(trial.search[0].value - trial.search[1].value for trial in front.front if counts[trial.number] == members)

    assert best_sum(1) < best_sum(2) < best_sum(3) < best_sum(4)
    for trial in trials:
        score = next(score for score in trial.search if score.objective == "cost:members")
        assert score.value == sum(weight != 0.0 for weight in trial.recipe.weights[0]) and score.stderr == 0.0 and score.n == 0
    proposed = [trial for trial in trials if trial.is_proposed]
    assert np.mean([members <= 4 for members in figures(proposed, "cost:members").values()]) > 0.8


def test_the_same_budget_finds_better_merges_of_few_members_than_a_search_that_does_not_ask_for_them(trials, tmp_path):
    others = [replace(trial, search=(*trial.search, *Costs((MEMBERS,)).scores(trial.recipe))) for trial in searched(tmp_path / "plain.sqlite", OBJECTIVES, Skills())]
    volumes = [front.hypervolume(front.front, "search") for front in (read_front(own, WITH_MEMBERS, POOL, "bfloat16") for own in (trials, others))]
    assert volumes[0] > volumes[1]


def test_volumes_are_measured_from_more_members_than_one(trials):
    front = read_front(trials, WITH_MEMBERS, POOL, "bfloat16")
    assert front.reference[2] == 7.0 and 0 < front.hypervolume(front.members, "search") < front.hypervolume(front.front, "search")
    bounded = (*OBJECTIVES, replace(MEMBERS, floor="2"))
    front = read_front(trials, bounded, POOL, "bfloat16")
    assert front.reference[2] == 3.0 and front.floors_kept and max(figures(front.front, "cost:members").values()) == 2.0
    assert floors(bounded, trials)[2] == -2.0
    proposer = SimplexProposer(space(), WITH_MEMBERS, seed=0)
    assert 0 < outlook(proposer, trials) < 5
    assert isinstance(Plateau(patience=5, smoother=proposer, objectives=WITH_MEMBERS).reached(trials), bool)
    smoothed = proposer.smoothed(trials)
    assert all(next(score for score in scores if score.objective == "cost:members").is_exact for scores in smoothed.scores.values())
    assert figures([replace(trial, search=smoothed.get(trial.number)) for trial in trials], "cost:members") == figures(trials, "cost:members")
    document = front_document(read_front(trials, WITH_MEMBERS, POOL, "bfloat16", smoothed=smoothed))
    assert all(entry["scores"]["cost:members"]["posterior"]["stderr"] == 0.0 for entry in document["front"])
    assert [entry["objective"] for entry in document["baselines"] if entry["kind"] == "best_per_task"] == [objective.name for objective in OBJECTIVES]


def test_a_bound_on_distance_is_kept_by_every_proposal_of_the_gp(tmp_path):
    """Deltas at right angles, each of length 1 %: the distance is the length of the weights."""
    products = DeltaProducts(tensors=("w",), table=1e-4 * np.eye(6)[None])
    objectives = (*OBJECTIVES, replace(DISTANCE, floor="0.008"))
    trials = searched(tmp_path / "run.sqlite", objectives, priced=Costs(objectives[2:], products), num_merges=14)
    for trial in trials:
        assert figures([trial], "cost:distance")[trial.number] == pytest.approx(0.01 * np.linalg.norm(trial.recipe.weights[0]))
    assert max(figures([trial for trial in trials if trial.is_proposed], "cost:distance").values()) <= 0.008 + 1e-9
    front = read_front(trials, objectives, POOL, "bfloat16")
    assert front.floors_kept and front.reference[2] == 0.008
    with pytest.raises(ValueError, match="cannot be told"):
        SimplexProposer(space(), objectives, seed=0)


def test_what_is_only_bounded_tells_merges_within_the_bound_not_apart(tmp_path):
    products = DeltaProducts(tensors=("w",), table=1e-4 * np.eye(6)[None])
    bound = replace(DISTANCE, floor="0.008", bound_only=True)
    objectives, priced = (*OBJECTIVES, bound), Costs((bound,), products)
    trials = searched(tmp_path / "run.sqlite", objectives, Skills(), priced=priced, num_merges=16)
    distances, proposed = figures(trials, "cost:distance"), [trial for trial in trials if trial.is_proposed]
    assert maximized(trials, objectives)[:, 2].tolist() == [-max(distance, 0.008) for distance in distances.values()]
    assert max(distances[trial.number] for trial in proposed) <= 0.008 + 1e-9
    smoothed = SimplexProposer(space(), objectives, seed=0, priced=priced).smoothed(trials)
    assert figures([replace(trial, search=smoothed.get(trial.number)) for trial in trials], "cost:distance") == distances  # told as they are
    within = [trial for trial in trials if distances[trial.number] <= 0.008]
    front = read_front(trials, objectives, POOL, "bfloat16")
    assert {trial.number for trial in front.front} == {trial.number for trial in read_front([trial for trial in trials if trial.kind == "member" or trial in within], OBJECTIVES, POOL, "bfloat16").front} & {trial.number for trial in within}
    assert front.floors_kept and 0 < front.hypervolume(front.front, "search") and max(distances[trial.number] for trial in front.front) > 0.006


def test_a_bound_that_no_merge_keeps_is_come_near_to(tmp_path):
    """Weights of sum 1 over six deltas at right angles are 0.41 % away at least, the uniform soup, which is scored already."""
    tight = (*OBJECTIVES, replace(DISTANCE, floor="0.003"))
    trials = searched(tmp_path / "run.sqlite", tight, priced=Costs(tight[2:], DeltaProducts(tensors=("w",), table=1e-4 * np.eye(6)[None])), total=(1.0, 1.0), num_merges=8)
    assert max(figures([trial for trial in trials if trial.is_proposed], "cost:distance").values()) < 0.0048
    front = read_front([trial for trial in trials if trial.kind != "base"], tight, POOL, "bfloat16")
    assert not front.floors_kept and front.front


def test_the_base_is_not_the_knee_for_costing_nothing(trials):
    front = read_front(trials, WITH_MEMBERS, POOL, "bfloat16")
    assert front.base in front.front and knee(front).kind != "base"
    assert knee(replace(front, front=(front.base,))) is front.base


def test_groups_count_members_that_any_group_uses(tmp_path):
    """The rows alone allow three members each; only both together break the bound."""
    objectives = (*OBJECTIVES, replace(MEMBERS, floor="3"))
    trials = searched(tmp_path / "run.sqlite", objectives, groups=BLOCKS, max_nonzero=3, num_merges=12)
    proposed = [trial for trial in trials if trial.is_proposed]
    assert max(figures(proposed, "cost:members").values()) <= 3 and {len(trial.recipe.weights) for trial in proposed} == {2}


@pytest.mark.parametrize("sampler", ["simplex_gp", "tpe", "nsga2", "gp", "random", "paper"])
def test_killed_and_restarted_the_search_proposes_the_same(tmp_path, sampler):
    whole = searched(tmp_path / "whole.sqlite", WITH_MEMBERS, sampler=sampler, num_merges=7)
    for kill_after in (2, 5, 4):
        with pytest.raises(Killed):
            searched(tmp_path / "killed.sqlite", WITH_MEMBERS, FakeWorkers(kill_after=kill_after), sampler=sampler, num_merges=7)
    assert searched(tmp_path / "killed.sqlite", WITH_MEMBERS, sampler=sampler, num_merges=7) == whole
    assert all(len(trial.search) == 3 for trial in whole)


def test_averages_of_scores_leave_costs_out(trials):
    """The paper's macro-average, the greedy soup's, and what one would average by hand."""
    assert [macro_average(trial, trials, WITH_MEMBERS) for trial in trials] == [macro_average(trial, trials, OBJECTIVES) for trial in trials]
    assert greedy_soup(POOL, "bfloat16", trials, WITH_MEMBERS) == greedy_soup(POOL, "bfloat16", trials, OBJECTIVES)
    assert merge_best(POOL, "bfloat16", trials, WITH_MEMBERS) == merge_best(POOL, "bfloat16", trials, OBJECTIVES)
    paper = [make_proposer("paper", space(), objectives, seed=1).ask(40, trials) for objectives in (WITH_MEMBERS, OBJECTIVES)]
    assert paper[0] == paper[1]


# ---------------------------------------------------------------- a whole job

COSTS = [{"cost": "members"}, {"cost": "distance"}]


def ran(folder, name="run", **changes):
    set_job(folder, **{"objectives": [*JOB["objectives"], *COSTS], "budget": {"trials": 6}} | changes)
    workers = JobWorkers()

    def make(work, num_workers):
        workers.work = work
        return workers

    run_job(folder / "job.yaml", folder / name, make_workers=make)
    with closing(Ledger(folder / name / "ledger.sqlite")) as ledger:
        return workers, ledger.trials()


def test_a_job_with_costs_from_pool_to_front(job, capsys):  # noqa: F811
    workers, trials = ran(job)
    assert [objective.name for objective in workers.work.objectives] == ["echo:echo/exact_match", "echo:bits/bits_per_byte"]  # workers are asked for nothing more
    pool = prepare(job / "job.yaml").pool
    priced = Costs((MEMBERS, DISTANCE), delta_products(pool))
    for trial in trials:
        exact = {score.objective: score for score in priced.scores(trial.recipe)}
        assert {score.objective: score for score in trial.search if score.is_exact} == exact
        assert not trial.holdout or {score.objective: score for score in trial.holdout if score.is_exact} == exact
    alone = [trial for trial in trials if trial.kind == "member"]
    assert [figures([trial], "cost:distance")[trial.number] for trial in alone] == pytest.approx([far(member, pool.base) for member in pool.members], rel=1e-6)
    front = open_front(job / "run")
    assert front.hypervolume(front.front, "holdout") > 0 and front.base in front.front  # nothing is cheaper than no merge
    assert main(["front", str(job / "run")]) == 0
    shown = capsys.readouterr().out
    assert "cost:members" in shown and "cost:distance" in shown
    row = next(line for line in shown.splitlines() if "member m0" in line)
    assert "1.000 ±" not in row and "  1  " in row
    preview = open_preview(job / "run")
    assert list(preview["front"][0]["scores"]) == ["echo:echo/exact_match", "echo:bits/bits_per_byte"] and "cost" not in json.dumps(preview["tradeoffs"])
    why = open_why(job / "run")
    assert all("cost:members" not in share["adds"] for share in why["shares"]) and why["losses"]
    assert main(["front", str(job / "run"), "--csv"]) == 0 and "cost:members" in capsys.readouterr().out


def test_a_run_resumed_with_costs_measures_nothing_twice_and_goes_on_the_same(job, monkeypatch):  # noqa: F811
    _, whole = ran(job, "whole")
    _, some = ran(job, "run", budget={"trials": 2})
    with closing(Ledger(job / "run" / "ledger.sqlite")) as ledger:
        kept = ledger.fact(PRODUCTS)
    monkeypatch.setattr("recycler.priced.delta_products", lambda pool: pytest.fail("the pool was read again"))
    _, more = ran(job, "run")
    assert [trial.recipe for trial in more[: len(whole)]] == [trial.recipe for trial in whole] and len(some) < len(more)
    with closing(Ledger(job / "run" / "ledger.sqlite")) as ledger:
        assert ledger.fact(PRODUCTS) == kept and measured_costs(ledger, (DISTANCE,), None).products.tensors


def test_trials_of_a_run_without_costs_get_theirs(job):  # noqa: F811
    _, before = ran(job, "first", objectives=JOB["objectives"])
    assert all(len(trial.search) == 2 for trial in before)
    _, after = ran(job, "second", earlier=["first"])
    taken = [trial for trial in after if trial.label.startswith("earlier")]
    priced = Costs((MEMBERS, DISTANCE), delta_products(prepare(job / "job.yaml").pool))
    assert taken and all({score for score in trial.search if score.is_exact} == set(priced.scores(trial.recipe)) for trial in after)


def test_the_distance_of_an_earlier_merge_by_another_method_is_not_made_up(job):  # noqa: F811
    ran(job, "first", objectives=JOB["objectives"], method="ties")
    _, after = ran(job, "second", earlier=["first"])
    assert {trial.recipe.method for trial in after} == {"linear"}


def test_subsets_leave_costs_as_they_are(job):  # noqa: F811
    suite = json.dumps({"version": 1, "tasks": {name: {"data": "echo.jsonl", "prompt": "{q}: ", "answer": "{a}", "scorer": "bits_per_byte", "search": {"rows": [0, 120]}, "holdout": {"rows": [120, 130]}} for name in ("a", "b")}})
    (job / "echo.yaml").write_text(suite)
    (job / "echo.jsonl").write_text("".join(json.dumps({"q": f"{k}+{k}", "a": str(2 * k)}) + "\n" for k in range(130)))
    objectives = [{"suite": "echo", "task": name, "metric": "bits_per_byte", "direction": "minimize"} for name in ("a", "b")]
    _, trials = ran(job, objectives=[*objectives, *COSTS], fidelity={"items_per_task": 50})
    priced = Costs((MEMBERS, DISTANCE), delta_products(prepare(job / "job.yaml").pool))
    assert any(trial.is_proposed and min(score.n for score in trial.search if score.n) < 120 for trial in trials) or all(trial.holdout for trial in trials if trial.is_proposed)
    assert all({score for score in trial.search if score.is_exact} == set(priced.scores(trial.recipe)) and len(trial.search) == 4 for trial in trials)


# ---------------------------------------------------------------- what is shown

def test_holdout_and_front_documents_say_the_same_cost(tmp_path):
    with closing(Ledger(tmp_path / "run.sqlite")) as ledger:
        workers = PricedWorkers(FakeWorkers(), Costs((MEMBERS,)))
        found = search(planner(WITH_MEMBERS, sampler="random", num_merges=8), ledger, workers, within_budget=lambda: True, listen=lambda event: None)
        front = read_front(found, WITH_MEMBERS, POOL, "bfloat16")
        score_holdout([trial for trial in ledger.trials() if trial.number in {own.number for own in front.finalists}], ledger, workers, listen=lambda event: None)
        front = read_front(ledger.trials(), WITH_MEMBERS, POOL, "bfloat16")
    document = front_document(front)
    assert canonical_json(document) and all(entry["scores"]["cost:members"]["search"] == entry["scores"]["cost:members"]["holdout"] == {"value": sum(bool(w) for w in entry["weights"]["all"].values()), "stderr": 0.0, "n": 0} for entry in document["front"])


def test_a_scorecard_without_costs_stays_what_it_was():
    card = fake_scorecard(recipe((1.0, 0, 0, 0, 0, 0)), "search")
    assert Costs(()).added(card, recipe((1.0, 0, 0, 0, 0, 0))) == card


def test_the_service_and_a_report_show_costs_without_errors_or_items(job, tmp_path):  # noqa: F811
    _, trials = ran(job)
    with closing(Ledger(job / "run" / "ledger.sqlite")) as ledger:
        snapshot = _read(ledger, ())
        outcomes = {trial.number: ledger.outcomes(trial.number, "search") for trial in trials}
        status = snapshot.status
    items = {item.id: item for item in prepare(job / "job.yaml").items}
    first, second = [trial for trial in trials if trial.state == "SCORED"][:2]
    compared = compare_document(snapshot, (first, second), "search", [outcomes[first.number], outcomes[second.number]], items)
    told = {entry["objective"]: entry for entry in compared["against"][0]["objectives"]}
    assert told["cost:distance"]["paired"] is None and told["cost:distance"]["flips"] is None and told["echo:bits/bits_per_byte"]["paired"]
    assert told["cost:distance"]["score_difference"] == figures([second], "cost:distance")[second.number] - figures([first], "cost:distance")[first.number]
    table, one = table_document(snapshot, ""), trial_document(snapshot, second)
    assert [objective.get("exact", False) for objective in table["objectives"]] == [False, False, True, True]
    assert table["scores"]["search"]["cost:members"]["value"] == [float(sum(map(bool, trial.recipe.weights[0]))) for trial in trials]
    assert "cost:members" not in one["why"]["holdout_gap"] and not any("cost" in entry["name"] for entry in one["why"]["against"])
    for document in (compared, table, one, trials_document(snapshot, ""), pool_document(snapshot)):
        assert json.dumps(document, allow_nan=False)
    page = html_report(snapshot.front, status)
    assert "cost:members (minimize), search" in page and "<td>3</td>" in page and "1.0000 ± 0.0000" not in page


def test_the_card_of_an_export_says_what_its_recipe_costs(trials):
    card = model_card("merge", POOL, trials[-1].recipe, trials[-1], "", searched={"fake": ()})
    assert "(by its recipe) |" in next(line for line in card.splitlines() if line.startswith("| cost:members")) and "No search items come from a published test set" in card


def test_refining_leaves_costs_out_and_prefers_none(job):  # noqa: F811
    ran(job)
    prepared = prepare(job / "job.yaml")
    with pytest.raises(UsageError, match="cost:members.*have a slope"):
        _shares(prepared.benchmarks, {"cost:members": 1.0})
    assert set(_shares(prepared.benchmarks, None)) == {objective.name for objective in prepared.benchmarks}


def test_the_same_job_without_a_member_keeps_its_costs(job):  # noqa: F811
    ran(job, objectives=[*JOB["objectives"], {"cost": "members", "floor": 3}, {"cost": "distance", "floor": 0.5, "bound_only": True}])
    other = job_without(job / "run", "m1")
    (job / "other.yaml").write_text(other.text)
    assert prepare(job / "other.yaml").objectives == prepare(job / "job.yaml").objectives
