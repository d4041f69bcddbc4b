"""Laws of the scale an objective is modelled on, and of an opening that ends when the soup beats
the members.
"""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.search.families import dominated
from benchmarks.search.samplers import Simplex
from recycler.search.simplex.gp import Features, WeightGP
from recycler.search.simplex.linked_gp import LINKS, Link, LinkedGP
from recycler.search.simplex.proposals import vertices
from recycler.search.simplex.settings import SETTINGS
from recycler.search.simplex.simplex_gp import SimplexGP
from recycler.search.simplex.surrogate import observations

FEATURES = Features(np.eye(6), 1, np.zeros(0), np.zeros(0), ard=False)
ERROR = 0.02


def points(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([3, seed]).dirichlet(np.full(6, 0.7), count)


def peak(weights: np.ndarray) -> np.ndarray:
    """Right answers to many tokens: exp(-loss) above chance, the loss a quadratic of the weights
    (n, 6).
    """
    goal = np.array([0.4, 0.3, 0.2, 0.1, 0.0, 0.0])
    return 0.1 + 0.7 * np.exp(-((weights - goal) ** 2).sum(axis=1) / 0.08)


def average(weights: np.ndarray) -> np.ndarray:
    return weights @ np.linspace(0.2, 0.7, 6)


def seen(truth, count: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    places = points(count)
    return (
        places,
        truth(places) + ERROR * np.random.default_rng(4).standard_normal(count),
        np.full(count, ERROR),
    )


@pytest.mark.parametrize("share", [np.inf, *LINKS])
def test_a_link_comes_back_from_where_it_went_and_its_slope_is_its_derivative(share):
    link, values, step = Link(-0.3, share * 0.8, 1.3), np.linspace(-0.3, 1.2, 31), 1e-6
    assert link.back(link.forward(values)) == pytest.approx(values, abs=1e-12)
    assert link.slope(values) == pytest.approx(
        (link.forward(values + step) - link.forward(values - step)) / (2 * step), rel=1e-5
    )


def test_what_is_linear_keeps_its_own_scale_and_the_plain_process():
    linked, plain = LinkedGP(FEATURES).fit(*seen(average)), WeightGP(FEATURES).fit(*seen(average))
    assert linked.link.is_identity
    for one, other in zip(
        linked.predict(points(50, seed=1)), plain.predict(points(50, seed=1)), strict=True
    ):
        assert np.array_equal(one, other)


def test_a_peak_takes_a_logarithm_and_is_known_better_for_it():
    linked, plain = LinkedGP(FEATURES).fit(*seen(peak)), WeightGP(FEATURES).fit(*seen(peak))
    fresh = points(300, seed=1)
    wrong = [np.sqrt(np.mean((gp.predict(fresh)[0] - peak(fresh)) ** 2)) for gp in (linked, plain)]
    assert not linked.link.is_identity
    assert wrong[0] < 0.8 * wrong[1]


def test_draws_and_predictions_tell_the_same_and_none_is_beyond_belief():
    gp, fresh = LinkedGP(FEATURES).fit(*seen(peak)), points(20, seed=1)
    draws = gp.draw(fresh, np.random.default_rng(5).standard_normal((20, 4000)))
    mean, sd = gp.predict(fresh)
    assert draws.max() <= gp.link.high
    assert draws.mean(axis=1) == pytest.approx(mean, abs=5 * sd.max() / 4000**0.5)
    assert draws.std(axis=1) == pytest.approx(sd, rel=0.15)


def test_scores_that_are_all_the_same_are_no_reason_to_take_a_logarithm():
    places = points(15)
    mean, sd = LinkedGP(FEATURES).fit(places, np.full(15, 0.25), np.full(15, ERROR)).predict(places)
    assert mean == pytest.approx(0.25) and np.isfinite(sd).all()


def test_a_unit_changes_nothing():
    places, values, errors = seen(peak)
    ours, others = (
        LinkedGP(FEATURES).fit(places, values, errors),
        LinkedGP(FEATURES).fit(places, 100 * values - 7, 100 * errors),
    )
    (mean, sd), (other_mean, other_sd) = (
        ours.predict(points(9, seed=1)),
        others.predict(points(9, seed=1)),
    )
    assert other_mean == pytest.approx(100 * mean - 7, rel=1e-3) and other_sd == pytest.approx(
        100 * sd, rel=1e-2
    )


# ---------------------------------------------------------------- members alone

NAMES = [f"m{index:02d}" for index in range(12)]


def opened(best_member: float) -> list[np.ndarray]:
    """What is proposed first where the soup scores 0.5 at everything and members 0.3, but for one
    of the first SETTINGS.patience.
    """
    proposer, rows, values = SimplexGP(NAMES, 2, seed=1), [], []
    special = vertices(proposer.domain, np.random.default_rng(1))[SETTINGS.patience - 1]
    for number in range(20):
        point = proposer.ask(observations(rows, values) if rows else None, number=number)
        single = point.max() == 1.0
        rows.append(point)
        values.append(
            [best_member, 0.3]
            if np.array_equal(point, special)
            else [0.3 if single else 0.5 - 1e-3 * number] * 2
        )
    return rows


def test_members_that_the_soup_beats_at_everything_end_the_opening():
    assert (
        sum(row.max() == 1.0 for row in opened(0.4)[: SETTINGS.patience + 6]) == SETTINGS.patience
    )


def test_one_member_that_is_better_at_something_keeps_all_of_them():
    assert sum(row.max() == 1.0 for row in opened(0.6)[:13]) == len(NAMES)


@pytest.mark.long
def test_a_star_among_the_members_left_out_is_found_all_the_same():
    """On this pool the first members are worse than the soup and the best one, which dominates all
    others, comes late.
    """
    pool = dominated(16, 5)
    search, noise = Simplex(pool, 5), np.random.default_rng([7, 5, 5])
    tried = []
    for _ in range(30):
        tried.append(search.ask())
        search.tell(tried[-1], *pool.score(tried[-1], noise))
    assert sum(weights.max() == 1.0 for weights in tried) <= SETTINGS.patience + 2, (
        "the opening was to end early here"
    )
    assert (
        pool.truth(np.array(tried)).mean(axis=1).max()
        >= 0.95 * pool.truth(np.eye(16)).mean(axis=1).max()
    )


@pytest.mark.parametrize("depth", [3.0, 1e3, 1e9])
def test_one_merge_that_broke_hides_nothing_of_the_others(depth):
    """How bad it was makes no difference: the front and what is believed of the others stay as if
    it had been bad.
    """
    places, values, errors = seen(peak)
    table = np.stack([values, average(places)], axis=1)
    fronts = []
    for worst in (table.min(axis=0) - 0.3, np.full(2, -depth)):
        told = observations(
            np.vstack([places, np.eye(6)[5]]),
            np.vstack([table, worst]),
            np.full((len(table) + 1, 2), ERROR),
        )
        fronts.append(SimplexGP([f"m{index}" for index in range(6)], 2, seed=0).front(told))
    assert len(places) not in fronts[1].indices
    assert np.abs(fronts[1].mean - fronts[0].mean)[:-1].max() < 2 * ERROR


def test_error_bars_know_no_unit():
    places, values, errors = seen(peak)
    (_, sd), (_, small) = (
        LinkedGP(FEATURES).fit(places, values * unit, errors * unit).predict(places)
        for unit in (1.0, 1e-9)
    )
    assert small / 1e-9 == pytest.approx(sd, rel=0.02)
