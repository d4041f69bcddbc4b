"""Laws of the sampler that lives on merge weights: what it may propose, that it repeats itself
exactly, that it helps.
"""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import optuna
import pytest

from recycler.objectives.pareto import hypervolume, non_dominated
from recycler.search import SimplexGPSampler, posterior_front
from recycler.search.simplex.domain import weight_domain
from recycler.search.simplex.proposals import opening, perturb, random_sparse
from recycler.search.simplex.simplex_gp import SimplexGP
from recycler.search.simplex.surrogate import observations

optuna.logging.set_verbosity(optuna.logging.ERROR)
NAMES = [f"m{index}" for index in range(8)]
RULES = {
    "plain": {},
    "scaled": {"scale": (0.3, 3.0)},
    "bounded": {"bounds": {"m0": (0.1, 0.2), "m1": (-0.3, 0.5), "m2": (0.0, 0.05)}},
    "frozen": {"frozen": {"m0": 0.25, "m3": 0.0}, "scale": (1.0, 2.0)},
    "few": {"max_nonzero": 3, "bounds": {"m5": (0.1, 1.0)}},
    "few, little room": {"max_nonzero": 2, "bounds": dict.fromkeys(NAMES[:6], (0.0, 0.3))},
    "groups and knobs": {
        "groups": 3,
        "knobs": [(0.2, 0.9), (1.0, 16.0)],
        "max_nonzero": 4,
        "scale": (0.3, 3.0),
    },
}


def toy_goals(members: int, seed: int) -> np.ndarray:
    return np.random.default_rng([1, seed]).dirichlet(np.full(members, 0.6), 3)


def toy_truth(weights: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """Three bumps inside the hull: weights (n, K) to true scores (n, 3)."""
    far = ((np.atleast_2d(weights)[:, None, : goals.shape[1]] - goals) ** 2).sum(axis=2)
    return 0.2 + 0.6 * np.exp(-far / (2 * 0.35**2))


def play(proposer: SimplexGP, num_trials: int, seed: int = 0):
    """Points and noisy scores of a search that asks and tells one by one."""
    goals, rng = toy_goals(proposer.domain.num_members, seed), np.random.default_rng([2, seed])
    points, values = np.zeros((0, proposer.domain.size)), np.zeros((0, 3))
    for number in range(num_trials):
        observed = observations(points, values, np.full_like(values, 0.03)) if number else None
        point = proposer.ask(observed, number=number)
        points = np.vstack([points, point])
        values = np.vstack([values, toy_truth(point[None], goals) + 0.03 * rng.standard_normal(3)])
    return points, values, goals


# ---------------------------------------------------------------- what may be proposed


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_every_draw_obeys_sum_bounds_frozen_and_number_of_members(rules):
    domain = weight_domain(NAMES, **rules)
    rng = np.random.default_rng(0)
    points = np.concatenate([opening(domain, rng), random_sparse(domain, rng, 200)])
    points = np.concatenate([points, perturb(domain, rng, points, 400)])
    assert domain.contains(points).all()
    rows, knobs = domain.split(points)
    assert rows.shape[1:] == (domain.groups, 8) and knobs.shape[1] == len(rules.get("knobs", ()))
    if "frozen" in rules:
        assert (rows[..., 0] == 0.25).all() and (rows[..., 3] == 0.0).all()
    if domain.scale == (1.0, 1.0):
        assert rows.sum(axis=2) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_every_proposal_obeys_the_rules_and_none_comes_twice(rules):
    proposer = SimplexGP(NAMES, 3, seed=3, **rules)
    points, _, _ = play(proposer, 24)
    assert proposer.domain.contains(points).all()
    assert len(np.unique(np.round(points, 6), axis=0)) == 24


def test_allowed_rows_are_left_as_they_are():
    domain = weight_domain(NAMES, scale=(0.5, 2.0), max_nonzero=4)
    row = np.array([[0.5, 0.0, 0.3, 0.0, 0.4, 0.0, 0.0, 0.1]])
    assert domain.repair(row) == pytest.approx(row, abs=1e-15)


def test_contradictory_rules_are_told_at_once():
    with pytest.raises(ValueError, match="'m9' is not a member.*reversed"):
        weight_domain(NAMES, bounds={"m9": (0, 1), "m1": (0.5, 0.1)})
    with pytest.raises(ValueError, match="sum to"):
        weight_domain(NAMES, max_nonzero=2, bounds=dict.fromkeys(NAMES, (0, 0.3)))
    with pytest.raises(ValueError, match="must be non-zero"):
        weight_domain(NAMES, max_nonzero=1, frozen={"m0": 0.2, "m1": 0.2})
    with pytest.raises(ValueError, match="must be finite.*whole number.*finite, got"):
        weight_domain(NAMES, max_nonzero=1.5, scale=(0.3, np.inf), bounds={"m0": (np.nan, 1.0)})
    with pytest.raises(ValueError, match=r"gram must be \(8, 8\)"):
        SimplexGP(NAMES, 2, seed=0, gram=np.eye(3))


# ---------------------------------------------------------------- replay and pending


def test_a_proposal_depends_on_observations_pending_number_and_seed_only():
    first, again = SimplexGP(NAMES, 3, seed=5), SimplexGP(NAMES, 3, seed=5)
    points, values, _ = play(first, 20)
    told = observations(points, values, np.full_like(values, 0.03))
    one = first.ask(told, number=20)
    first.ask(
        observations(points[:15], values[:15]), number=15
    )  # another question in between changes nothing
    assert np.array_equal(first.ask(told, number=20), one)
    assert np.array_equal(again.ask(told, number=20), one)
    assert not np.array_equal(again.ask(told, number=21), one)
    assert not np.array_equal(SimplexGP(NAMES, 3, seed=6).ask(told, number=20), one)


@pytest.mark.long
def test_pending_trials_are_not_proposed_again():
    proposer = SimplexGP(NAMES, 3, seed=1)
    points, values, _ = play(proposer, 18)
    pending = []
    for number in range(18, 26):
        pending.append(proposer.ask(observations(points, values), pending, number))
    everything = np.vstack([points, pending])
    assert len(np.unique(np.round(everything, 6), axis=0)) == 26
    apart = np.abs(np.array(pending)[:, None] - np.array(pending)).sum(axis=2)[
        np.triu_indices(8, 1)
    ]
    assert apart.min() > 1e-3


def test_members_scored_elsewhere_are_not_scored_again():
    proposer = SimplexGP(NAMES, 2, seed=0)
    told = observations(np.eye(8), np.random.default_rng(0).random((8, 2)))
    asked = proposer.ask(told, number=0)
    assert np.allclose(asked, 1 / 8)  # the uniform soup comes first, the members are known


@pytest.mark.long
@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf, 1e308])
def test_failed_trials_teach_nothing_and_are_not_repeated(score):
    proposer = SimplexGP(NAMES, 3, seed=1)
    points, values, _ = play(proposer, 18)
    values[5, 1] = score
    point = proposer.ask(observations(points, values), number=18)
    assert np.isfinite(point).all() and np.abs(points - point).max(axis=1).min() > 1e-6
    front = proposer.front(observations(points, values))
    assert 5 not in front.indices and np.isnan(front.mean[5]).all() and front.probability[5] == 0


@pytest.mark.parametrize("num_objectives", [1, 2, 5])
def test_any_number_of_objectives(num_objectives):
    proposer = SimplexGP(NAMES[:4], num_objectives, seed=0)
    points = np.random.default_rng(0).dirichlet(np.ones(4), 14)
    values = points @ np.random.default_rng(1).random((4, num_objectives))
    points = np.concatenate([opening(proposer.domain, np.random.default_rng(0)), points])
    values = points @ np.random.default_rng(1).random((4, num_objectives))
    assert proposer.domain.contains(
        proposer.ask(observations(points, values), number=30)[None]
    ).all()


# ---------------------------------------------------------------- what it is for


@pytest.mark.long
def test_thirty_trials_beat_random_mixtures():
    """Averaged over 5 pools the true hypervolume of what was tried is at least 1.2 times that of
    random Dirichlet.
    """
    ours, theirs = [], []
    for seed in range(5):
        points, _, goals = play(SimplexGP(NAMES, 3, seed=seed), 30, seed)
        corner = toy_truth(np.eye(8), goals).min(axis=0)
        ours.append(hypervolume(toy_truth(points, goals), corner))
        random = np.random.default_rng(seed).dirichlet(np.ones(8), 30)
        theirs.append(hypervolume(toy_truth(random, goals), corner))
    assert np.mean(ours) > 1.2 * np.mean(theirs)


def test_posterior_front_leaves_a_lucky_score_at_home():
    rng = np.random.default_rng(0)
    points = rng.dirichlet(np.ones(4), 40)
    truth = points @ np.array([[1.0, 0.0], [0.0, 1.0], [0.3, 0.3], [0.1, 0.2]])
    values = truth + 0.01 * rng.standard_normal(truth.shape)
    unlucky = int(np.argmin(truth.sum(axis=1)))
    values[unlucky] += 0.9  # a score nobody would believe, and its standard error says so
    stderrs = np.full_like(values, 0.01)
    stderrs[unlucky] = 1.0
    front = SimplexGP(["a", "b", "c", "d"], 2, seed=0).front(observations(points, values, stderrs))
    assert unlucky not in front.indices and len(front.indices) >= 2
    assert np.abs(front.mean - truth).max() < 0.15
    covered = np.abs(front.mean - truth) < 2.5 * front.sd + 0.01
    assert covered.mean() > 0.9


def test_duplicate_members_are_one_member_to_the_gram_metric():
    from recycler.search.simplex.gp import gram_root

    deltas = np.random.default_rng(0).standard_normal((3, 50))
    deltas = np.vstack([deltas, deltas[0]])
    root = gram_root(deltas @ deltas.T)
    assert root[0] == pytest.approx(root[3], abs=1e-6)
    step = np.array([1.0, -1.0, 0.0, 0.0])
    other = np.array([0.0, 1.0, -1.0, 0.0])
    ratio = np.linalg.norm(step @ deltas) / np.linalg.norm(other @ deltas)
    assert np.linalg.norm(step @ root) / np.linalg.norm(other @ root) == pytest.approx(ratio)


# ---------------------------------------------------------------- inside Optuna


def test_ten_lines_of_optuna():
    def objective(trial):
        weights = [trial.suggest_float(member, 0, 1) for member in ("math", "code", "chat")]
        assert sum(weights) == pytest.approx(1.0)
        trial.set_user_attr("stderr", [0.01, 0.01])
        return 1 - (weights[0] - 0.6) ** 2, (weights[1] - 0.5) ** 2

    study = optuna.create_study(
        directions=["maximize", "minimize"],
        sampler=SimplexGPSampler(["math", "code", "chat"], seed=0),
    )
    study.optimize(objective, n_trials=20)
    shipped = posterior_front(study)
    assert (
        max(trial.values[0] for trial in shipped) > 0.99
        and min(trial.values[1] for trial in shipped) < 0.01
    )


@pytest.mark.long
def test_a_study_resumed_from_its_trials_proposes_the_same():
    def objective(trial):
        weights = [trial.suggest_float(name, 0, 1) for name in NAMES[:4]]
        return weights[0] + 0.3 * weights[1], weights[2] - weights[3] ** 2

    def study(trials=()):
        made = optuna.create_study(
            directions=["maximize"] * 2, sampler=SimplexGPSampler(NAMES[:4], seed=2)
        )
        made.add_trials(list(trials))
        return made

    whole, killed = study(), study()
    whole.optimize(objective, n_trials=16)
    killed.optimize(objective, n_trials=12)
    resumed = study(killed.trials)
    resumed.sampler = pickle.loads(pickle.dumps(killed.sampler))
    resumed.optimize(objective, n_trials=4)
    assert [trial.params for trial in resumed.trials] == [trial.params for trial in whole.trials]


def members_used(points):
    return (points != 0).sum(axis=1)


def minus_members_used(points):
    return -members_used(points)


def frugal_study(cost, sign, trials=(), **changes):
    """A score and what a merge costs, written to be made small or large, at most two members."""
    sampler = SimplexGPSampler(
        NAMES[:4], seed=2, **{"exact": {1: cost}, "floors": [np.nan, 2 * sign]} | changes
    )
    made = optuna.create_study(
        directions=["maximize", "minimize" if sign > 0 else "maximize"], sampler=sampler
    )
    made.add_trials(list(trials))
    return made


def frugal(sign):
    def objective(trial):
        weights = np.array([trial.suggest_float(name, 0, 1) for name in NAMES[:4]])
        trial.set_user_attr("stderr", [0.02, 0.0])
        return float(
            weights @ [0.9, 0.5, 0.4, 0.1]
            - 0.5 * weights @ weights
            + 0.02 * np.random.default_rng(trial.number).standard_normal()
        ), sign * int(members_used(weights[None])[0])

    return objective


@pytest.mark.long
def test_an_exact_objective_of_a_study_is_known_and_its_floor_kept_in_either_direction():
    small, large = frugal_study(members_used, 1), frugal_study(minus_members_used, -1)
    small.optimize(frugal(1), n_trials=24)
    large.optimize(frugal(-1), n_trials=24)
    assert [trial.params for trial in small.trials] == [trial.params for trial in large.trials]
    assert max(trial.values[1] for trial in small.trials) <= 2
    learned = frugal_study(None, 1, exact=None)
    learned.optimize(frugal(1), n_trials=24)
    assert max(trial.values[1] for trial in learned.trials) > 2, (
        "a cost that has to be guessed is overstepped"
    )
    shipped = posterior_front(small)
    assert sorted({trial.values[1] for trial in shipped}) == [1, 2] and len(shipped) == 2, (
        "of each number of members one"
    )
    assert [trial.number for trial in shipped] == [trial.number for trial in posterior_front(large)]


@pytest.mark.long
@pytest.mark.parametrize(
    "sampler_of",
    [
        lambda killed: frugal_study(members_used, 1).sampler,
        lambda killed: pickle.loads(pickle.dumps(killed.sampler)),
    ],
    ids=["made again", "pickled"],
)
def test_a_study_with_an_exact_objective_goes_on_the_same_from_its_trials(sampler_of):
    whole, killed = frugal_study(members_used, 1), frugal_study(members_used, 1)
    whole.optimize(frugal(1), n_trials=18)
    killed.optimize(frugal(1), n_trials=12)
    resumed = frugal_study(members_used, 1, killed.trials)
    resumed.sampler = sampler_of(killed)
    resumed.optimize(frugal(1), n_trials=6)
    assert [trial.params for trial in resumed.trials] == [trial.params for trial in whole.trials]


def test_exact_functions_see_knobs_after_the_weights():
    seen = []
    study = frugal_study(
        lambda points: seen.append(points) or points[:, 4],
        1,
        knobs={"density": (0.1, 1.0)},
        floors=[np.nan, 0.6],
    )

    def objective(trial):
        density = trial.suggest_float("density", 0.1, 1.0)
        return frugal(1)(trial)[0], density

    study.optimize(objective, n_trials=12)
    assert {points.shape[1] for points in seen} == {5} and max(
        trial.params["density"] for trial in study.trials
    ) <= 0.6 + 1e-9


@pytest.mark.parametrize(
    "columns, said",
    [
        ((2,), "tells objective 2, and the study has objectives 0 to 1"),
        ((0, 1), "tells every objective"),
    ],
)
def test_exact_functions_that_do_not_fit_the_study_are_refused(columns, said):
    with pytest.raises(ValueError, match=said):
        frugal_study(None, 1, exact=dict.fromkeys(columns, members_used)).optimize(
            frugal(1), n_trials=1
        )


def test_batches_and_an_upper_bound_above_one_search_the_scale():
    study = optuna.create_study(
        directions=["maximize"] * 2,
        sampler=SimplexGPSampler(NAMES[:3], seed=0, knobs={"density": (0.1, 1.0)}),
    )
    space = {name: optuna.distributions.FloatDistribution(0, 2.5) for name in NAMES[:3]}
    space["density"] = optuna.distributions.FloatDistribution(0.1, 1.0)
    for _ in range(4):
        batch = [study.ask(space) for _ in range(4)]
        assert len({tuple(trial.params.values()) for trial in batch}) == 4
        for trial in batch:
            total = sum(trial.params[name] for name in NAMES[:3])
            assert 0.3 - 1e-9 <= total <= 2.5 + 1e-9
            study.tell(trial, [total, trial.params["m0"] * trial.params["density"]])
    assert {round(sum(trial.params[name] for name in NAMES[:3]), 3) for trial in study.trials} != {
        1.0
    }


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, recycler, recycler.search, recycler.objectives.pareto; print({'optuna', "
        "'scipy', "
        "'torch'} & set(sys.modules))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "set()"
    )


def test_an_objective_at_chance_has_no_say_and_live_ones_keep_theirs():
    rng = np.random.default_rng(3)
    points = rng.dirichlet(np.full(4, 0.6), 40)
    values = np.stack(
        [points @ [0.9, 0.2, 0.1, 0.4], points @ [0.1, 0.8, 0.3, 0.4], np.full(40, 0.25)], axis=1
    ) + 0.02 * rng.standard_normal((40, 3))
    told = observations(points, values, np.full((40, 3), 0.02))
    front = SimplexGP(["a", "b", "c", "d"], 3, seed=0).front(told)
    assert front.dead.tolist() == [False, False, True]
    assert list(front.indices) == [
        index
        for index in np.argsort(-front.mean[:, 0], kind="stable")
        if index in np.flatnonzero(non_dominated(front.mean[:, :2]))
    ]
    two_dead = SimplexGP(["a", "b", "c", "d"], 2, seed=0).front(
        observations(points, values[:, 1:], np.full((40, 2), 0.02))
    )
    assert not two_dead.dead.any()  # with one objective left there would be no front
