"""Costs are exact: told by the recipe, equal to what the exported merge says, and nothing that
items would be asked for.
"""

import json
from contextlib import closing

import numpy as np
import pytest

from cost_job import COSTS, DISTANCE, MEMBERS, figures, ran
from fakes import fake_scorecard, named_pool
from recycler.cli import main
from recycler.errors import UsageError
from recycler.export.export import export_recipe
from recycler.ledger import Ledger
from recycler.merge.methods.registry import MERGE_METHODS
from recycler.objectives.costs import Costs
from recycler.pool.catalog import open_checkpoint
from recycler.pool.geometry.delta_products import delta_products
from recycler.pool.storage.tensors import iterate_tensors
from recycler.results.insight import open_explanation, open_preview
from recycler.results.measured_costs import measured_costs, products_from, stored_products
from recycler.results.open import open_front
from recycler.run.leave_out import job_without
from recycler.run.prepare import prepare
from recycler.run.refine_losses import preference_shares
from recycler.testing import make_pico_pool
from recycler.types import Group, Recipe
from small_job import JOB, set_job

pytestmark = pytest.mark.long

POOL = named_pool(6)
WHOLE = (Group(name="all"),)
BLOCKS = (Group(name="attention", match="self_attn"), Group(name="rest"))


def recipe(*rows, pool=POOL, groups=WHOLE, **changes):
    return Recipe(
        **{
            "method": "linear",
            "members": pool.names,
            "weights": rows,
            "groups": groups,
            "base": "base",
        }
        | changes
    )


def value(known_costs, of):
    (score,) = known_costs.scores(of)
    assert score.stderr == 0.0 and score.n == 0 and score.is_exact
    return score.value


# ---------------------------------------------------------------- the figures


@pytest.mark.parametrize(
    "rows, number",
    [
        (((1.0, 0, 0, 0, 0, 0),), 1),
        (((0.0,) * 6,), 0),
        (((0.5, 0, -0.5, 0, 1e-6, 0),), 3),
        (((1 / 6,) * 6,), 6),
        (((1.0, 0, 0, 0, 0, 0), (0, 0, 0.5, 0.5, 0, 0)), 3),
    ],
)
def test_members_are_those_with_a_weight_in_some_group(rows, number):
    assert (
        value(
            Costs((MEMBERS,)),
            recipe(*rows, groups=BLOCKS if len(rows) == 2 else (Group(name="all"),)),
        )
        == number
    )


@pytest.fixture(scope="module")
def pico(tmp_path_factory):
    return make_pico_pool(tmp_path_factory.mktemp("pico"), num_members=3)


def vector(checkpoint):
    return np.concatenate(
        [
            tensor.float().numpy().astype(np.float64).ravel()
            for _, tensor in iterate_tensors(checkpoint)
        ]
    )


def far(checkpoint, base):
    return np.linalg.norm(vector(checkpoint) - vector(base)) / np.linalg.norm(vector(base))


def test_the_distance_of_a_member_is_that_of_its_tensors(pico):
    known_costs = Costs((DISTANCE,), delta_products(pico))
    for index, member in enumerate(pico.members):
        assert value(known_costs, recipe(np.eye(3)[index], pool=pico)) == pytest.approx(
            far(member, pico.base), rel=1e-6
        )
    assert value(known_costs, recipe((0.0, 0.0, 0.0), pool=pico)) == 0.0


@pytest.mark.parametrize(
    "rows",
    [((0.5, 0.0, 0.5),), ((1.1, -0.4, 0.7),), ((0.2, 0.9, 0.0), (0.0, 0.3, 1.3))],
    ids=["average", "beyond", "groups"],
)
def test_the_distance_of_a_merge_is_that_of_its_export(pico, tmp_path, rows):
    merge = recipe(
        *rows, pool=pico, groups=BLOCKS if len(rows) == 2 else (Group(name="all"),), dtype="float32"
    )
    export_recipe(merge, pico, tmp_path / "export")
    assert value(Costs((DISTANCE,), delta_products(pico)), merge) == pytest.approx(
        far(open_checkpoint(tmp_path / "export"), pico.base), rel=1e-5
    )


def test_products_are_kept_bit_for_bit(pico):
    products = delta_products(pico)
    again = products_from(stored_products(products))
    assert again.tensors == products.tensors and (again.table == products.table).all()
    whole, parts = products.of_groups((Group(name="all"),)), products.of_groups(BLOCKS)
    assert (
        parts.sum(axis=0) == pytest.approx(whole[0])
        and (parts.diagonal(axis1=1, axis2=2) > 0).all()
    )


def test_what_is_not_linear_has_no_distance_told_by_its_weights(pico):
    known_costs = Costs((DISTANCE,), delta_products(pico))
    for other in (
        recipe((1.0, 0, 0), pool=pico, method="ties"),
        recipe((1.0, 0, 0), pool=pico, base=None),
        recipe((1.0, 0, 0), pool=pico, options=(("normalize", True),)),
    ):
        with pytest.raises(ValueError, match="distance"):
            known_costs.scores(other)


# ---------------------------------------------------------------- what a job may ask for

BENCHMARK = JOB["objectives"][0]
BAD = {
    "unknown cost": ([{"cost": "memory"}], {}, ["objectives.1.cost", "members", "distance"]),
    "no such key": (
        [{"cost": "members", "flor": 3}],
        {},
        ["objectives.1.flor", "Did you mean 'floor'"],
    ),
    "key of a suite": (
        [{"cost": "members", "suite": "echo"}],
        {},
        ["objectives.1.suite", "unknown"],
    ),
    "to be made large": (
        [{"cost": "members", "direction": "maximize"}],
        {},
        ["objectives.1.direction", "minimize"],
    ),
    "no members": (
        [{"cost": "members", "floor": 0}],
        {},
        ["objectives.1.floor", "number of members"],
    ),
    "half a member": (
        [{"cost": "members", "floor": 2.5}],
        {},
        ["objectives.1.floor", "number of members"],
    ),
    "nearer than the base": (
        [{"cost": "distance", "floor": 0}],
        {},
        ["objectives.1.floor", "not above 0"],
    ),
    "a floor in words": (
        [{"cost": "distance", "floor": "base + 1"}],
        {},
        ["objectives.1.floor", "number"],
    ),
    "a bound that is none": (
        [{"cost": "members"}, {"cost": "distance", "bound_only": True}],
        {},
        ["objectives.2.bound_only", "needs floor"],
    ),
    "nothing to trade": (
        [{"cost": "distance", "floor": 0.1, "bound_only": True}],
        {},
        ["objectives", "fewer than two beside bounds"],
    ),
    "twice": (
        [{"cost": "members"}, {"cost": "members", "floor": 2}],
        {},
        ["cost:members", "stands twice"],
    ),
    "nothing to be near to": (
        [{"cost": "distance"}],
        {"pool": {"members": ["pool/members"]}},
        ["cost distance", "the pool has none", "Add base"],
    ),
    "distance of another method": (
        [{"cost": "distance"}],
        {"method": "ties"},
        ["cost distance", "weights of ties", "method: linear"],
    ),
    "members of layer_swap": (
        [{"cost": "members"}],
        {"method": "layer_swap"},
        ["cost members", "members of weight 0 too"],
    ),
}


@pytest.mark.parametrize("costs, changes, said", BAD.values(), ids=BAD)
def test_what_cannot_be_is_refused(job, costs, changes, said):
    set_job(job, objectives=[BENCHMARK, *costs], **changes)
    with pytest.raises(UsageError) as error:
        prepare(job / "job.yaml")
    assert all(part in str(error.value) for part in (*said, "job.yaml:"))


@pytest.mark.parametrize("method", sorted(MERGE_METHODS.keys() - {"linear"}))
def test_a_distance_is_refused_by_name_for_every_method_whose_weights_do_not_tell_it(job, method):
    set_job(job, objectives=[BENCHMARK, {"cost": "distance"}], method=method)
    with pytest.raises(
        UsageError,
        match=rf"job\.yaml:\d+: cost distance: cannot be told from the weights of {method}: .*Use "
        r"method: linear",
    ):
        prepare(job / "job.yaml", look_inside=False)


def test_costs_alone_and_one_objective_are_refused(job):
    for objectives, said in (
        ([{"cost": "members"}, {"cost": "distance"}], "costs alone"),
        ([{"cost": "members"}], "at least 2"),
        (
            [{"suite": "", "metric": "members", "direction": "minimize"}, BENCHMARK],
            "objectives.0.suite",
        ),
    ):
        set_job(job, objectives=objectives)
        with pytest.raises(UsageError, match=said):
            prepare(job / "job.yaml")


def test_a_bound_on_members_narrows_the_space_of_every_sampler(job):
    set_job(job, objectives=[BENCHMARK, {"cost": "members", "floor": 2}])
    prepared = prepare(job / "job.yaml")
    assert prepared.space.max_nonzero == 2 and [
        objective.name for objective in prepared.objectives
    ] == ["echo:echo/exact_match", "cost:members"]
    assert [objective.name for objective in prepared.benchmarks] == ["echo:echo/exact_match"]
    (job / "s.yaml").write_text("version: 1\nbounds: [0.1, 3]\n")
    set_job(job, objectives=[BENCHMARK, {"cost": "members", "floor": 2}], space="s.yaml")
    with pytest.raises(UsageError, match="m0, m1, m2"):
        prepare(job / "job.yaml")
    (job / "s.yaml").write_text("version: 1\noptions: {normalize: [0, 1]}\n")
    set_job(job, objectives=[BENCHMARK, {"cost": "distance"}], space="s.yaml")
    with pytest.raises(UsageError, match="searches normalize"):
        prepare(job / "job.yaml")


def test_a_job_without_costs_has_the_digest_it_had(job):
    """Runs made before there were costs go on."""
    dumped = prepare(job / "job.yaml").job.model_dump()
    assert dumped["objectives"] == [{**entry, "floor": None} for entry in JOB["objectives"]]


# ---------------------------------------------------------------- a whole job


def test_a_job_with_costs_from_pool_to_front(job, capsys):
    workers, trials = ran(job)
    assert [objective.name for objective in workers.work.objectives] == [
        "echo:echo/exact_match",
        "echo:bits/bits_per_byte",
    ]  # workers are asked for nothing more
    pool = prepare(job / "job.yaml").pool
    known_costs = Costs((MEMBERS, DISTANCE), delta_products(pool))
    for trial in trials:
        exact = {score.objective: score for score in known_costs.scores(trial.recipe)}
        assert {score.objective: score for score in trial.search if score.is_exact} == exact
        assert (
            not trial.holdout
            or {score.objective: score for score in trial.holdout if score.is_exact} == exact
        )
    alone = [trial for trial in trials if trial.kind == "member"]
    assert [figures([trial], "cost:distance")[trial.number] for trial in alone] == pytest.approx(
        [far(member, pool.base) for member in pool.members], rel=1e-6
    )
    front = open_front(job / "run")
    assert (
        front.hypervolume(front.front, "holdout") > 0 and front.base in front.front
    )  # nothing is cheaper than no merge
    assert main(["front", str(job / "run")]) == 0
    shown = capsys.readouterr().out
    assert "cost:members" in shown and "cost:distance" in shown
    row = next(line for line in shown.splitlines() if "member m0" in line)
    assert "1.000 ±" not in row and "  1  " in row
    preview = open_preview(job / "run")
    assert list(preview["front"][0]["scores"]) == [
        "echo:echo/exact_match",
        "echo:bits/bits_per_byte",
    ] and "cost" not in json.dumps(preview["tradeoffs"])
    why = open_explanation(job / "run")
    assert all("cost:members" not in share["adds"] for share in why["shares"]) and why["losses"]
    assert (
        main(["front", str(job / "run"), "--csv"]) == 0
        and "cost:members" in capsys.readouterr().out
    )


@pytest.mark.long
def test_a_run_resumed_with_costs_measures_nothing_twice_and_goes_on_the_same(job, monkeypatch):
    _, whole = ran(job, "whole")
    _, some = ran(job, "run", budget={"trials": 2})
    with closing(Ledger(job / "run" / "ledger.sqlite")) as ledger:
        kept = ledger.facts.delta_products
    monkeypatch.setattr(
        "recycler.results.measured_costs.delta_products",
        lambda pool: pytest.fail("the pool was read again"),
    )
    _, more = ran(job, "run")
    assert [trial.recipe for trial in more[: len(whole)]] == [
        trial.recipe for trial in whole
    ] and len(some) < len(more)
    with closing(Ledger(job / "run" / "ledger.sqlite")) as ledger:
        assert (
            ledger.facts.delta_products == kept
            and measured_costs(ledger, (DISTANCE,), None).products.tensors
        )


@pytest.mark.long
def test_trials_of_a_run_without_costs_get_theirs(job):
    _, before = ran(job, "first", objectives=JOB["objectives"])
    assert all(len(trial.search) == 2 for trial in before)
    _, after = ran(job, "second", earlier=["first"])
    taken = [trial for trial in after if trial.label.startswith("earlier")]
    known_costs = Costs((MEMBERS, DISTANCE), delta_products(prepare(job / "job.yaml").pool))
    assert taken and all(
        {score for score in trial.search if score.is_exact} == set(known_costs.scores(trial.recipe))
        for trial in after
    )


def test_the_distance_of_an_earlier_merge_by_another_method_is_not_made_up(job):
    ran(job, "first", objectives=JOB["objectives"], method="ties")
    _, after = ran(job, "second", earlier=["first"])
    assert {trial.recipe.method for trial in after} == {"linear"}


def test_subsets_leave_costs_as_they_are(job):
    suite = json.dumps(
        {
            "version": 1,
            "tasks": {
                name: {
                    "data": "echo.jsonl",
                    "prompt": "{q}: ",
                    "answer": "{a}",
                    "scorer": "bits_per_byte",
                    "search": {"rows": [0, 120]},
                    "holdout": {"rows": [120, 130]},
                }
                for name in ("a", "b")
            },
        }
    )
    (job / "echo.yaml").write_text(suite)
    (job / "echo.jsonl").write_text(
        "".join(json.dumps({"q": f"{k}+{k}", "a": str(2 * k)}) + "\n" for k in range(130))
    )
    objectives = [
        {"suite": "echo", "task": name, "metric": "bits_per_byte", "direction": "minimize"}
        for name in ("a", "b")
    ]
    _, trials = ran(job, objectives=[*objectives, *COSTS], fidelity={"items_per_task": 50})
    known_costs = Costs((MEMBERS, DISTANCE), delta_products(prepare(job / "job.yaml").pool))
    assert any(
        trial.is_proposed and min(score.n for score in trial.search if score.n) < 120
        for trial in trials
    ) or all(trial.holdout for trial in trials if trial.is_proposed)
    assert all(
        {score for score in trial.search if score.is_exact} == set(known_costs.scores(trial.recipe))
        and len(trial.search) == 4
        for trial in trials
    )


# ---------------------------------------------------------------- what is shown


def test_a_scorecard_without_costs_stays_what_it_was():
    card = fake_scorecard(recipe((1.0, 0, 0, 0, 0, 0)), "search")
    assert Costs(()).added(card, recipe((1.0, 0, 0, 0, 0, 0))) == card


def test_refining_leaves_costs_out_and_prefers_none(job):
    ran(job)
    prepared = prepare(job / "job.yaml")
    with pytest.raises(UsageError, match="cost:members.*have a slope"):
        preference_shares(prepared.benchmarks, {"cost:members": 1.0})
    assert set(preference_shares(prepared.benchmarks, None)) == {
        objective.name for objective in prepared.benchmarks
    }


def test_the_same_job_without_a_member_keeps_its_costs(job):
    ran(
        job,
        objectives=[
            *JOB["objectives"],
            {"cost": "members", "floor": 3},
            {"cost": "distance", "floor": 0.5, "bound_only": True},
        ],
    )
    other = job_without(job / "run", "m1")
    (job / "other.yaml").write_text(other.text)
    assert prepare(job / "other.yaml").objectives == prepare(job / "job.yaml").objectives
