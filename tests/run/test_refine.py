"""Laws of refinement: slopes are derivatives, steps replay, and the result is a trial like any
other.
"""

import json
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import yaml

from benchmarks.search.loss_model import LossModel
from recycler.cli import main
from recycler.cli.front_text import weights_text
from recycler.cluster.workers import LocalWorkers
from recycler.engines.transformers_engine import TransformersEngine
from recycler.engines.weight_slopes import weight_slopes
from recycler.errors import UsageError
from recycler.ledger import Ledger
from recycler.ledger.runs import read_status
from recycler.pool.storage.tensors import ResidentPool
from recycler.run.driver import run_job
from recycler.run.prepare import prepare
from recycler.run.refine import refine
from recycler.run.refine_losses import Settings
from recycler.search.baselines import blend
from recycler.search.refine import Step, descend, direction, replay, spsa
from recycler.specs.resolve import layer_groups
from recycler.specs.space import SearchSpace
from recycler.testing import make_pico_pool
from recycler.types import Group, LoglikelihoodRequest, Recipe, Trial

NAMES = ("a", "b", "c", "d")


def space(groups=2, low=(0.0,) * 4, high=(3.0,) * 4, total=(0.0, 6.0), **limits):
    return SearchSpace(
        groups=tuple(Group(name=str(index), match=str(index)) for index in range(groups)),
        members=NAMES,
        low=low,
        high=high,
        total=total,
        **limits,
    )


GOAL = np.array([[0.2, 0.6, 0.1, 0.9], [0.5, 0.0, 1.2, 0.3]])
START = np.full((2, 4), 0.4)


def bowl(weights, _):
    return 1.0 + float(((weights - GOAL) ** 2).sum())


def slopes(weights, index):
    return bowl(weights, index), 2 * (weights - GOAL)


def test_both_ways_go_down_a_bowl_and_a_slope_beats_a_guess():
    guessed, steps = spsa(bowl, START, space(), steps=60, reach=0.05, seed=3)
    followed, losses = descend(slopes, START, space(), steps=30, reach=0.05)
    assert bowl(guessed, 0) - 1 < 0.5 * (bowl(START, 0) - 1)
    assert bowl(followed, 0) - 1 < 0.1 * (bowl(START, 0) - 1)
    assert len(steps) == 60 and losses[0] == bowl(START, 0)


def test_seeds_and_scalars_lead_to_the_same_weights_bit_for_bit():
    weights, steps = spsa(bowl, START, space(), steps=25, reach=0.05, seed=1)
    read = tuple(
        Step(
            **json.loads(json.dumps({"seed": step.seed, "scalar": step.scalar, "loss": step.loss}))
        )
        for step in steps
    )
    assert (replay(START, read, space()) == weights).all()
    assert not (spsa(bowl, START, space(), steps=25, reach=0.05, seed=2)[0] == weights).all()


@pytest.mark.parametrize(
    "limits",
    [
        {"low": (0.4, 0.0, 0.0, 0.0), "high": (0.4, 3.0, 3.0, 3.0)},
        {"total": (1.6, 1.6)},
        {"low": (0.3,) * 4, "high": (0.5,) * 4},
        {"max_nonzero": 2, "total": (1.6, 1.6)},
    ],
)
def test_steps_stay_within_the_space(limits):
    own = space(**limits)
    for weights in (
        spsa(bowl, START, own, steps=10, reach=0.1, seed=0)[0],
        descend(slopes, START, own, steps=10, reach=0.1)[0],
    ):
        assert (weights >= np.array(own.low) - 1e-9).all() and (
            weights <= np.array(own.high) + 1e-9
        ).all()
        assert (
            (own.total[0] - 1e-5 <= weights.sum(axis=1))
            & (weights.sum(axis=1) <= own.total[1] + 1e-5)
        ).all()
        assert own.max_nonzero is None or ((weights != 0).sum(axis=1) <= own.max_nonzero).all()
    assert (
        direction(5, own)[:, [low == high for low, high in zip(own.low, own.high, strict=True)]]
        == 0
    ).all()


@pytest.mark.parametrize(
    ("architecture", "tied", "layers"), [("llama", True, 0), ("qwen2", False, 2)]
)
def test_slopes_are_the_derivatives_of_the_loss(tmp_path, architecture, tied, layers):
    """Against central differences of the live loss, in float32, for every weight of every row."""
    pool = make_pico_pool(tmp_path, architecture=architecture, tied=tied)
    groups = layer_groups(2, layers) if layers else (Group(name="all"),)
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.2, 0.8, (len(groups), 3))
    recipe = replace(
        blend(pool, "float32", {"m0": 1.0}),
        members=pool.names,
        base="base",
        groups=groups,
        weights=tuple(map(tuple, weights)),
    )
    requests = [
        LoglikelihoodRequest(
            context_ids=tuple(rng.integers(4, 90, 9).tolist()),
            continuation_ids=tuple(rng.integers(4, 90, size).tolist()),
        )
        for size in (3, 11, 7)
    ]
    shares = [0.5, 0.2, 0.3]
    engine = TransformersEngine(pool, dtype="float32")

    def loss(row, column, shift):
        moved = weights.copy()
        moved[row, column] += shift
        engine.apply(replace(recipe, weights=tuple(map(tuple, moved))))
        return -sum(
            share * answer.logprob
            for share, answer in zip(shares, engine.loglikelihood(requests), strict=True)
        )

    engine.apply(recipe)
    values, gradients = engine.loss_slopes(requests, shares)
    found = weight_slopes(gradients, recipe, ResidentPool(pool))
    differences = np.array(
        [
            [(loss(row, column, 0.02) - loss(row, column, -0.02)) / 0.04 for column in range(3)]
            for row in range(len(groups))
        ]
    )
    assert np.dot(values, shares) == pytest.approx(loss(0, 0, 0.0), rel=1e-5)
    assert found == pytest.approx(differences, rel=0.02, abs=2e-4)
    assert all(parameter.grad is None for parameter in engine._model.parameters())


# ---------------------------------------------------------------- in a run


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A finished run of two objectives in bits per byte, and its job file."""
    folder = tmp_path_factory.mktemp("refine")
    make_pico_pool(folder / "pool", num_members=3)
    rows = [
        {"q": f"{k} and {k + 1} is", "a": str(2 * k + 1), "b": "xyz"[k % 3] * 3} for k in range(16)
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "data": "sums.jsonl",
        "prompt": "{q}",
        "scorer": "bits_per_byte",
        "search": {"rows": [0, 8]},
        "holdout": {"rows": [8, 16]},
    }
    (folder / "bits.yaml").write_text(
        json.dumps(
            {
                "version": 1,
                "tasks": {"sum": {**task, "answer": " {a}"}, "word": {**task, "answer": " {b}"}},
            }
        )
    )
    (folder / "job.yaml").write_text(
        yaml.safe_dump(
            {
                "version": 1,
                "name": "small",
                "pool": {"members": ["pool/members/*"], "base": "pool/base"},
                "suites": ["bits.yaml"],
                "engine": {"name": "transformers", "workers": 1},
                "objectives": [
                    {
                        "suite": "bits",
                        "task": name,
                        "metric": "bits_per_byte",
                        "direction": "minimize",
                    }
                    for name in ("sum", "word")
                ],
                "budget": {"trials": 6},
                "seed": 0,
            }
        )
    )
    run(folder)
    return folder


def run(folder):
    return run_job(
        folder / "job.yaml",
        folder / "run",
        make_workers=lambda work, num_workers: LocalWorkers(work),
    )


def test_a_refined_merge_is_a_trial_that_the_next_sitting_scores(searched):
    """And its loss on the search items is what was told: bits per byte times bytes a token."""
    prepared = prepare(searched / "job.yaml")
    found = refine(
        searched / "run", prepared, "knee", Settings(steps=6, layers=2, reach=0.05, batch=8)
    )
    assert found.trial is not None and sum(found.after.values()) < sum(found.before.values())
    with closing(Ledger(searched / "run/ledger.sqlite")) as ledger:
        assert read_status(ledger)["state"].startswith("unfinished")
        how = ledger.facts.refinement(found.trial)
    assert how["of"] == found.of and how["after"] == found.after and len(how["steps_taken"]) == 6
    run(searched)
    with closing(Ledger(searched / "run/ledger.sqlite")) as ledger:
        trials = {trial.number: trial for trial in ledger.trials()}
        trial, start = trials[found.trial], trials[found.of]
        assert read_status(ledger)["state"] == "finished"
        smoothed = ledger.facts.smoothed
    assert (
        trial.label == f"refined {found.of}"
        and trial.recipe == found.recipe
        and len(trial.recipe.groups) == 2
        and trial.state == "SCORED"
    )
    assert bool(smoothed.get(start.number)) == bool(smoothed.get(trial.number))
    for before, after, raw_before, raw_after in zip(
        *(
            sorted(scores, key=lambda score: score.objective)
            for scores in (
                smoothed.get(start.number),
                smoothed.get(trial.number),
                start.search,
                trial.search,
            )
        ),
        strict=False,
    ):
        assert (
            after.value - before.value == pytest.approx(raw_after.value - raw_before.value)
            and after.stderr == before.stderr
        )
    for name in found.before:
        scored = [
            next(score.value for score in one.search if score.objective == name)
            for one in (start, trial)
        ]
        assert scored[1] / scored[0] == pytest.approx(
            found.after[name] / found.before[name], rel=0.01
        )


def test_from_losses_alone_with_a_preference(searched):
    prepared = prepare(searched / "job.yaml")
    with closing(Ledger(searched / "run/ledger.sqlite")) as ledger:
        proposed = next(trial for trial in ledger.trials() if trial.is_proposed)
    found = refine(
        searched / "run",
        prepared,
        str(proposed.number),
        Settings(
            by="spsa", steps=12, reach=0.08, batch=8, prefer={"bits:sum/bits_per_byte": 1.0}, seed=1
        ),
    )
    assert (
        found.trial is not None
        and found.after["bits:sum/bits_per_byte"] < found.before["bits:sum/bits_per_byte"]
    )
    with closing(Ledger(searched / "run/ledger.sqlite")) as ledger:
        how = ledger.facts.refinement(found.trial)
    assert (
        tuple(
            map(
                tuple,
                replay(
                    np.array(proposed.recipe.weights),
                    [Step(**step) for step in how["steps_taken"]],
                    prepared.space,
                ),
            )
        )
        == found.recipe.weights
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (Settings(layers=3), "has 2 layers"),
        (Settings(prefer={"bits:sum": 1.0}), "not one of this run's"),
        (Settings(prefer={"bits:sum/bits_per_byte": 0.0}), "no objective a share above 0"),
    ],
)
def test_what_cannot_be_refined_is_refused_and_leaves_no_trial(searched, settings, says):
    with closing(Ledger(searched / "run/ledger.sqlite")) as ledger:
        before = ledger.counts()
    with pytest.raises(UsageError, match=says):
        refine(searched / "run", prepare(searched / "job.yaml"), "knee", settings)
    with closing(Ledger(searched / "run/ledger.sqlite")) as ledger:
        assert ledger.counts() == before


def test_generated_answers_have_no_slope(searched, tmp_path):
    prepared = prepare(searched / "job.yaml")
    suite = replace(
        prepared.suites[0],
        items=tuple(replace(item, kind="generate") for item in prepared.suites[0].items),
    )
    with pytest.raises(UsageError, match="generated answers"):
        refine(searched / "run", replace(prepared, suites=(suite,)), "knee", Settings())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--steps", "0"), "must be above 0"),
        (("--prefer", "bits"), "is not NAME=SHARE"),
        (("--prefer", "bits:sum/bits_per_byte=nan"), "a share of 0 or more"),
        (("--prefer", "bits:sum/bits_per_byte=inf"), "a share of 0 or more"),
        (("--trial", "99"), "not a scored trial"),
    ],
)
def test_bad_wishes_are_refused_on_the_command_line(searched, capsys, arguments, says):
    assert main(["refine", str(searched / "run"), *arguments]) in (2, 3)
    assert says in capsys.readouterr().err


def test_a_run_without_its_job_is_refused(tmp_path, capsys):
    assert main(["refine", str(tmp_path)]) == 2
    assert "has no job file" in capsys.readouterr().err


def test_many_rows_of_weights_are_summed_up_in_the_table():
    rows = tuple((0.1 * row, 0.0, 0.5) for row in range(1, 6))
    recipe = Recipe(
        method="linear",
        members=("a", "b", "c"),
        weights=rows,
        groups=tuple(Group(name=f"layers-{row}", match=str(row)) for row in range(5)),
    )
    assert (
        weights_text(Trial(number=0, kind="merge", state="SCORED", recipe=recipe))
        == "5 rows: a 0.10..0.50 c 0.50..0.50"
    )
    few = replace(recipe, weights=rows[:2], groups=recipe.groups[:2])
    assert (
        weights_text(Trial(number=0, kind="merge", state="SCORED", recipe=few))
        == "layers-0: c 0.50 a 0.10; layers-1: c 0.50 a 0.20"
    )


# ---------------------------------------------------------------- the model of losses


def test_a_quadratic_is_known_from_a_few_slopes():
    """Eight merges of eight members, none of them a member: the losses of all others, which their
    values alone do not give away.
    """
    rng = np.random.default_rng(0)
    curve, slope = rng.normal(size=(8, 3)), rng.normal(size=8)
    points, others = rng.dirichlet(np.ones(8), 8), rng.dirichlet(np.full(8, 0.3), 60)

    def loss(weights):
        return 3.0 + weights @ slope + ((weights @ curve) ** 2).sum(axis=1)

    gradients = slope + 2 * points @ curve @ curve.T
    model = LossModel(np.eye(8)).fit(
        points,
        np.stack([loss(points), 2 * loss(points)], axis=1),
        np.stack([gradients, 2 * gradients], axis=1),
    )
    found = model.losses(others)
    assert np.corrcoef(found[:, 0], loss(others))[0, 1] > 0.98
    assert found[:, 1] == pytest.approx(2 * found[:, 0])
    assert model.chances(others) == pytest.approx(np.exp(-found))
    blind = LossModel(np.eye(8)).fit(points, loss(points)[:, None], np.zeros((8, 1, 8)))
    assert np.corrcoef(blind.losses(others)[:, 0], loss(others))[0, 1] < 0.9
