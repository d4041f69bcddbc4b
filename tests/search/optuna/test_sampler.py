"""What a stranger does to a study of merge weights: broken scores, odd ranges, many processes,
enqueued trials, wrong attributes.
"""

from __future__ import annotations

import re
import subprocess
import sys
import warnings

import numpy as np
import optuna
import pytest

from places import ROOT
from recycler.search import SimplexGPSampler, posterior_front
from recycler.search.optuna.study import write_study
from recycler.types import Group, Objective, Recipe, Score, Trial

optuna.logging.set_verbosity(optuna.logging.ERROR)
NAMES = ["a", "b", "c", "d"]


def score(weights):
    a, b, c, d = weights
    return a + 0.3 * b - 0.2 * d**2, c + 0.5 * b - 0.1 * a**2


def suggested(trial, low=0.0, high=1.0, names=NAMES):
    return [trial.suggest_float(name, low, high) for name in names]


def plain(trial):
    trial.set_user_attr("stderr", [0.01, 0.01])
    return score(suggested(trial))


def study_of(sampler=None, directions=("maximize", "maximize"), **rules):
    return optuna.create_study(
        directions=list(directions), sampler=sampler or SimplexGPSampler(NAMES, seed=0, **rules)
    )


def played(objective=plain, num_trials=14, **rules):
    study = study_of(**rules)
    study.optimize(objective, n_trials=num_trials)
    return study


def rows(study):
    return np.array([[trial.params[name] for name in NAMES] for trial in study.trials])


def sums(study):
    return rows(study).sum(axis=1)


# ---------------------------------------------------------------- scores and standard errors


@pytest.mark.long
@pytest.mark.parametrize("broken", [float("inf"), float("-inf"), 1e308, -1e300])
def test_a_score_beyond_all_bounds_is_that_of_a_failed_trial(broken):
    def objective(trial, told=broken):
        first, second = plain(trial)
        return (first, told) if trial.number in (3, 9) else (first, second)

    with pytest.warns(UserWarning, match="trial 3 counts as failed"):
        study = played(objective, 13)
    failed = study_of()
    failed.add_trials(
        [
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.FAIL,
                params=trial.params,
                distributions=trial.distributions,
            )
            if trial.number in (3, 9)
            else trial
            for trial in study.trials[:12]
        ]
    )
    failed.optimize(plain, n_trials=1)
    assert failed.trials[12].params == study.trials[12].params, (
        "it teaches what a failed trial teaches"
    )
    assert len(np.unique(rows(study).round(6), axis=0)) == 13
    assert {3, 9}.isdisjoint(trial.number for trial in posterior_front(study))


def test_a_study_of_broken_scores_alone_has_no_front():
    with pytest.warns(UserWarning, match="counts as failed"):
        study = played(lambda trial: (suggested(trial)[0], float("inf")), 3)
    with pytest.raises(ValueError, match="none of the 3 complete trials has finite scores"):
        posterior_front(study)


@pytest.mark.parametrize(
    "told, said",
    [
        ([0.1], "has 1 numbers, and the study has 2 objectives"),
        ([0.1] * 3, "has 3 numbers"),
        ("abc", "is not made of numbers"),
        ([0.1, "b"], "is not made of numbers"),
        ([-0.1, 0.1], "is negative"),
    ],
)
def test_wrong_standard_errors_are_told_at_the_end_of_their_trial_and_do_not_stop_the_study(
    told, said
):
    study = study_of()

    def objective(trial):
        values = plain(trial)
        trial.set_user_attr("stderr", told)
        return values

    with pytest.raises(ValueError, match=f"trial 0: user attribute 'stderr' {said}"):
        study.optimize(objective, n_trials=5)
    assert len(study.trials) == 1
    with pytest.warns(UserWarning, match="trial 0: user attribute 'stderr'.*They count as unknown"):
        study.optimize(plain, n_trials=9)
    with pytest.warns(UserWarning, match="trial 0: user attribute 'stderr'"):
        assert posterior_front(study)


@pytest.mark.long
def test_unknown_standard_errors_are_unknown_however_they_are_written():
    def objective(told):
        def scored(trial):
            trial.set_user_attr("stderr", told)
            return score(suggested(trial))

        return scored

    fronts = [
        rows(played(objective([0.01, unknown]), 12))
        for unknown in (0.0, None, float("nan"), float("inf"), 1e200)
    ]
    assert all(np.array_equal(fronts[0], other) for other in fronts[1:])


# ---------------------------------------------------------------- ranges


@pytest.mark.long
@pytest.mark.parametrize(
    "knob, high, total",
    [(("density", 0.1, 1.0), 2.0, (0.3, 2.0)), (("depth", 1.0, 16.0), 1.0, (1.0, 1.0))],
)
def test_the_order_of_suggestions_does_not_matter_to_the_sum(knob, high, total):
    name, *limits = knob

    def objective(first):
        def scored(trial):
            if first:
                trial.suggest_float(name, *limits)
            weights = suggested(trial, high=high)
            trial.suggest_float(name, *limits)
            return score(weights)

        return scored

    first, last = (
        played(objective(order), 14, knobs={name: tuple(limits)}) for order in (True, False)
    )
    assert [trial.params for trial in first.trials] == [trial.params for trial in last.trials]
    assert total[0] - 1e-9 <= sums(first).min() and sums(first).max() <= total[1] + 1e-9
    assert total[0] == total[1] or np.ptp(sums(first)) > 0.5


@pytest.mark.long
def test_each_member_keeps_to_its_own_range():
    ranges = {"a": (-0.5, 1.0), "b": (0.0, 0.2), "c": (0.1, 0.6), "d": (0.0, 1.0)}
    study = played(
        lambda trial: (lambda a, b, c, d: (c - a, d - a))(
            *[trial.suggest_float(name, *limits) for name, limits in ranges.items()]
        ),
        20,
    )
    low, high = np.array(list(ranges.values())).T
    assert (
        (rows(study) >= low - 1e-9).all()
        and (rows(study) <= high + 1e-9).all()
        and sums(study) == pytest.approx(1.0)
    )
    assert rows(study).min(axis=0)[0] < -0.01, "a negative weight needs no more than its range"
    assert rows(played(bounds={"a": (0.0, 0.4)})).max(axis=0)[0] <= 0.4 + 1e-9, (
        "bounds say more than the range"
    )


def test_a_range_of_one_value_has_that_value_in_the_first_trial_too():
    study = played(
        lambda trial: score(
            [
                trial.suggest_float(name, *((0.1, 0.1) if name == "c" else (0.0, 1.0)))
                for name in NAMES
            ]
        )
    )
    assert sums(study) == pytest.approx(1.0) and (rows(study)[:, 2] == 0.1).all()


def test_ranges_that_leave_no_row_and_knobs_outside_theirs_are_told():
    with pytest.raises(
        ValueError, match="does not fit the study: weights can sum to 0 .. 0.8 at most"
    ):
        played(lambda trial: score(suggested(trial, high=0.2)), 1)
    with pytest.raises(
        ValueError, match=r"knob .* for 'k'.*give the sampler knobs=\{'k': \(0, 0.1\)\}"
    ):
        played(lambda trial: (trial.suggest_float("k", 0, 0.1), 0.0), 1, knobs={"k": (0.0, 1.0)})


@pytest.mark.parametrize(
    "ask",
    [
        lambda trial: trial.suggest_float("a", 0, 1, step=0.1),
        lambda trial: trial.suggest_float("a", 0.01, 1, log=True),
        lambda trial: trial.suggest_int("a", 0, 1),
        lambda trial: trial.suggest_categorical("a", [0.0, 1.0]),
    ],
    ids=["step", "log", "int", "choice"],
)
def test_weights_on_a_grid_are_refused(ask):
    study = study_of()
    with pytest.raises(
        ValueError, match="weight 'a' is suggested by .*Distribution.*use trial.suggest_float"
    ):
        study.optimize(lambda trial: (ask(trial), 0.0), n_trials=1)
    assert study.trials[0].params == {}


@pytest.mark.parametrize(
    "ask",
    [
        lambda trial: trial.suggest_int("k", 0, 4),
        lambda trial: trial.suggest_float("k", 0, 4, step=0.5),
        lambda trial: trial.suggest_categorical("k", [0, 4]),
    ],
    ids=["int", "step", "choice"],
)
def test_knobs_on_a_grid_are_refused(ask):
    with pytest.raises(ValueError, match="knob 'k' is suggested by .*round it in the objective"):
        played(lambda trial: (ask(trial), 0.0), 1, knobs={"k": (0.0, 4.0)})
    assert (
        len(
            played(
                lambda trial: (trial.suggest_float("k", 0.1, 4.0, log=True), sum(suggested(trial))),
                12,
                knobs={"k": (0.1, 4.0)},
            ).trials
        )
        == 12
    )


def test_a_knob_cannot_be_a_member():
    with pytest.raises(ValueError, match="'a' is a member and a knob"):
        SimplexGPSampler(NAMES, seed=0, knobs={"a": (0.0, 1.0)})


# ---------------------------------------------------------------- enqueued, running and missing


def test_enqueued_weights_are_kept_and_the_others_share_the_rest():
    study = study_of()
    for weights in ({"a": 0.7}, {"d": 0.2, "b": 0.3}, dict.fromkeys(NAMES, 0.25), {"c": 1.0}):
        study.enqueue_trial(weights)
    study.optimize(plain, n_trials=8)
    assert sums(study) == pytest.approx(1.0) and (rows(study) >= 0).all()
    assert study.trials[0].params["a"] == 0.7 and study.trials[3].params == {
        "a": 0.0,
        "b": 0.0,
        "c": 1.0,
        "d": 0.0,
    }
    assert (study.trials[1].params["d"], study.trials[1].params["b"]) == (0.2, 0.3)


def test_enqueued_weights_that_leave_no_row_are_refused():
    study = study_of()
    study.enqueue_trial({"b": 0.8, "c": 0.7})
    with pytest.raises(
        ValueError,
        match=r"trial 0 holds the weights \{'b': 0.8, 'c': 0.7\}, which leave no row.*can sum to "
        r"1.5",
    ):
        study.optimize(plain, n_trials=1)


def test_trials_of_other_processes_that_have_said_nothing_yet_take_other_points_of_the_opening(
    tmp_path,
):
    """What the storage shows when several processes start at once: numbers, and no parameters."""
    url = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(study_name="s", storage=url, directions=["maximize"] * 2)
    processes = [
        optuna.load_study(study_name="s", storage=url, sampler=SimplexGPSampler(NAMES, seed=0))
        for _ in range(4)
    ]
    space = {name: optuna.distributions.FloatDistribution(0, 1) for name in NAMES}
    alone = study_of()
    expected = []
    for _ in range(4):
        trial = alone.ask(space)
        expected.append(trial.params)
        alone.tell(trial, score(trial.params.values()))
    trials = [process.ask() for process in processes]
    for trial in (trials[2], trials[0], trials[3], trials[1]):
        suggested(trial)
    assert [trial.params for trial in trials] == expected


def test_points_that_killed_processes_had_taken_come_back():
    study, alone = study_of(), played(num_trials=6)
    for _ in range(2):
        study.ask()
    study.optimize(plain, n_trials=13)
    taken = [trial.params for trial in study.trials]
    assert (
        taken[2] == alone.trials[2].params
        and taken[10] == alone.trials[0].params
        and alone.trials[1].params in taken
    )


@pytest.mark.long
def test_several_processes_on_one_storage_score_nothing_twice(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(study_name="s", storage=url, directions=["maximize"] * 2)
    code = f"""
import optuna
from recycler.search import SimplexGPSampler
optuna.logging.set_verbosity(optuna.logging.ERROR)
def objective(trial):
    a, b, c, d = [trial.suggest_float(name, 0, 1) for name in {NAMES!r}]
    return a + 0.3 * b - 0.2 * d**2, c + 0.5 * b - 0.1 * a**2
sampler = SimplexGPSampler({NAMES!r}, seed=0)
study = optuna.load_study(study_name="s", storage={url!r}, sampler=sampler)
study.optimize(objective, n_trials=4)
"""
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [one.wait(timeout=240) for one in running] == [0, 0, 0]
    study = optuna.load_study(study_name="s", storage=url)
    assert len(study.trials) == 12 and len(np.unique(rows(study).round(6), axis=0)) == 12


def test_a_member_that_is_never_suggested_is_named():
    with pytest.warns(UserWarning, match="trial 0 teaches nothing: 'd' was not suggested"):
        study = played(lambda trial: score([*suggested(trial, names=NAMES[:3]), 0.0]), 4)
    with pytest.raises(
        ValueError, match="none of the 4 complete trials has all weights: 'd' is not in 4 of them"
    ):
        posterior_front(study)
    assert posterior_front(study, members=NAMES[:3])


def test_frozen_members_need_not_be_suggested():
    def objective(trial):
        return score([*suggested(trial, names=NAMES[:3]), 0.25])

    study = played(objective, 12, frozen={"d": 0.25})
    assert [sum(trial.params.values()) for trial in study.trials] == pytest.approx(
        [0.75] * 12
    ) and posterior_front(study)


def test_trials_without_the_weights_are_left_out_with_a_word():
    study = played()
    study.add_trial(
        optuna.trial.create_trial(
            params={"other": 0.5},
            distributions={"other": optuna.distributions.FloatDistribution(0, 1)},
            values=[9.0, 9.0],
        )
    )
    with pytest.warns(UserWarning, match=r"1 of 15 complete trials .*left out"):
        assert 14 not in {trial.number for trial in posterior_front(study)}


# ---------------------------------------------------------------- floors


@pytest.mark.long
@pytest.mark.parametrize("sign, direction", [(1, "maximize"), (-1, "minimize")])
def test_what_is_below_a_floor_is_not_shipped(sign, direction):
    def objective(trial):
        first, second = plain(trial)
        return sign * first, second

    study = played(objective, 24, directions=[direction, "maximize"], floors=[sign * 0.5, 0.1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shipped = posterior_front(study)
    assert shipped and all(
        sign * trial.values[0] > 0.48 and trial.values[1] > 0.08 for trial in shipped
    )
    loose = {trial.number for trial in posterior_front(study, floors=[np.nan, np.nan])}
    assert {trial.number for trial in shipped} < loose, (
        "members alone are on the front without floors"
    )


def test_a_front_that_keeps_no_floor_is_that_without_floors_and_says_so():
    study = played(floors=[5.0, np.nan])
    with pytest.warns(UserWarning, match="No trial keeps every floor"):
        shipped = posterior_front(study)
    assert [trial.number for trial in shipped] == [
        trial.number for trial in posterior_front(study, floors=[np.nan] * 2)
    ]


@pytest.mark.long
def test_a_sampler_with_floors_knows_each_study_by_its_directions():
    used, fresh = (
        SimplexGPSampler(NAMES, seed=0, floors=[0.2, 0.2]),
        SimplexGPSampler(NAMES, seed=0, floors=[0.2, 0.2]),
    )
    played(num_trials=10, sampler=used)
    again, first = (
        played(num_trials=12, sampler=sampler, directions=["minimize"] * 2)
        for sampler in (used, fresh)
    )
    assert [trial.params for trial in again.trials] == [trial.params for trial in first.trials]


@pytest.mark.parametrize("floors", [[0.1], [0.1] * 3, 0.1, ["x", "y"], [float("inf"), 0.0]])
def test_floors_that_do_not_fit_the_study_are_refused(floors):
    with pytest.raises(
        ValueError, match="floors is .*the study has 2 objectives; give one number for each"
    ):
        played(num_trials=1, floors=floors)


# ---------------------------------------------------------------- a run as a study, and the page


def a_run(groups=1, floor=None):
    objectives = (
        Objective(suite="s", metric="x", direction="maximize", floor=floor),
        Objective(suite="s", metric="y", direction="minimize"),
    )
    parts = (
        (Group(name="all"),)
        if groups == 1
        else tuple(Group(name=f"g{index}", match="" if index else "x") for index in range(groups))
    )
    rng, trials = np.random.default_rng(0), []
    kinds = (
        [("base", np.zeros(4))]
        + [("member", row) for row in np.eye(4)]
        + [("merge", rng.dirichlet(np.ones(4))) for _ in range(14)]
    )
    for number, (kind, weights) in enumerate(kinds):
        own = parts if kind == "merge" else parts[-1:]
        recipe = Recipe(
            method="linear",
            members=() if kind == "base" else tuple(NAMES),
            weights=((),) if kind == "base" else (tuple(weights),) * len(own),
            groups=(Group(name="all"),) if kind == "base" else own,
            base="base",
        )
        values = score(weights)
        trials.append(
            Trial(
                number=number,
                kind=kind,
                state="SCORED",
                recipe=recipe,
                search=tuple(
                    Score(objective=objective.name, value=objective.sign * value, stderr=0.01, n=50)
                    for objective, value in zip(objectives, values, strict=True)
                ),
            )
        )
    refined = Recipe(
        method="linear",
        members=tuple(NAMES),
        weights=((0.25,) * 4,) * 5,
        groups=tuple(Group(name=f"layer {index}", match=str(index)) for index in range(5)),
        base="base",
    )
    trials.append(
        Trial(
            number=len(trials),
            kind="merge",
            label="refined 7",
            state="SCORED",
            recipe=refined,
            search=trials[-1].search,
        )
    )
    return trials, objectives


@pytest.mark.parametrize("groups", [1, 3])
def test_a_run_written_as_a_study_has_its_front(tmp_path, groups):
    url = f"sqlite:///{tmp_path}/study.db"
    write_study(*a_run(groups, floor="best - 0.5"), storage=url, name="run")
    study = optuna.load_study(study_name="run", storage=url)
    assert study.user_attrs["weights"] == (
        NAMES if groups == 1 else [f"g{index}/{name}" for index in range(3) for name in NAMES]
    )
    assert study.user_attrs["floors"] == [0.5, None] and all(
        trial.user_attrs["stderr"] == [0.01, 0.01] for trial in study.trials
    )
    with pytest.warns(
        UserWarning, match="1 of 20 complete trials"
    ):  # the refined one has other groups
        shipped = posterior_front(study)
    assert shipped and all(trial.values[0] > 0.48 for trial in shipped)


@pytest.mark.long
def test_the_example_of_the_readme_runs(capsys):
    blocks = [
        block
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
        if "SimplexGPSampler" in block
    ]
    assert len(blocks) == 1
    names = {}
    exec(blocks[0], names)
    study = names["study"]
    assert all(
        sum(trial.params.values()) == pytest.approx(1.0) and len(trial.user_attrs["stderr"]) == 2
        for trial in study.trials
    )
    assert len(capsys.readouterr().out.splitlines()) == len(posterior_front(study)) >= 2


def test_a_first_trial_with_a_narrow_range_goes_on_and_one_that_ends_with_it_is_told_the_remedy():
    def objective(ranges):
        return lambda trial: [
            trial.suggest_float(name, *limits) for name, limits in ranges.items()
        ][:2]

    narrow_first = optuna.create_study(
        directions=["maximize"] * 2, sampler=SimplexGPSampler(["a", "b", "c"], seed=0)
    )
    narrow_first.optimize(objective({"a": (0, 0.3), "b": (0, 1), "c": (0, 1)}), n_trials=6)
    assert all(
        trial.params["a"] <= 0.3 and sum(trial.params.values()) == pytest.approx(1.0)
        for trial in narrow_first.trials
    )
    narrow_last = optuna.create_study(
        directions=["maximize"] * 2, sampler=SimplexGPSampler(["a", "b", "c"], seed=0)
    )
    with pytest.raises(ValueError, match=r"bounds=\{'a': \(0.4, 1.0\)\}"):
        narrow_last.optimize(objective({"b": (0, 1), "c": (0, 1), "a": (0.4, 1)}), n_trials=1)


def test_parameters_the_model_does_not_see_resume_the_same_and_differ_between_trials():
    def drawn(cuts):
        study = optuna.create_study(directions=["maximize"] * 2)
        for count in cuts:
            study.sampler = SimplexGPSampler(["a", "b"], seed=0)
            study.optimize(
                lambda trial: [
                    trial.suggest_float("lr", 0, 1) * 0 + trial.suggest_float(name, 0, 1)
                    for name in "ab"
                ],
                n_trials=count,
            )
        return [trial.params["lr"] for trial in study.trials]

    assert drawn([8]) == drawn([3, 5]) and len(set(drawn([8]))) == 8


def test_standard_errors_may_be_an_array():
    study = optuna.create_study(
        directions=["maximize"] * 2, sampler=SimplexGPSampler(["a", "b"], seed=0)
    )

    def objective(trial):
        trial.set_user_attr("stderr", np.array([0.01, 0.02], dtype=np.float32))
        return [trial.suggest_float(name, 0, 1) for name in "ab"]

    study.optimize(objective, n_trials=5)
    assert len(study.trials) == 5 and posterior_front(study)
