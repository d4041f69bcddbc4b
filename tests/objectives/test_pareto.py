"""Laws of fronts: dominance, hypervolume, reference point, knee."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from recycler.objectives.pareto import (
    as_maximized,
    free_boxes,
    hypervolume,
    knee,
    non_dominated,
    probability_non_dominated,
    reference_point,
    volume_gains,
)

BENCHMARKS = ("MBPP", "GSM8K", "IFEval", "MMLUPro", "MUSR", "MTBench", "LBPP")
KHALIFA = np.array(
    [  # the 16 checkpoints of Khalifa et al. 2024 (arXiv:2412.04144), numbered from 1
        [58.4, 76.6, 64.1, 29.4, 18.1, 8.01, 30.4],
        [54.4, 75.3, 65.7, 29.0, 17.9, 7.74, 25.5],
        [63.0, 79.0, 66.6, 31.1, 14.6, 7.42, 29.2],
        [63.0, 68.2, 59.0, 31.9, 10.5, 7.55, 26.7],
        [64.0, 75.7, 56.5, 31.1, 17.0, 7.68, 32.9],
        [60.8, 76.7, 65.7, 29.0, 17.1, 7.80, 31.7],
        [58.2, 76.6, 66.9, 29.0, 21.1, 7.59, 27.3],
        [63.4, 37.8, 32.1, 26.0, 0.0, 4.75, 30.4],
        [57.0, 75.0, 63.0, 26.8, 15.0, 7.90, 24.8],
        [57.4, 74.0, 63.0, 27.5, 16.0, 7.85, 23.0],
        [60.4, 77.0, 66.0, 28.3, 18.0, 8.08, 24.8],
        [56.8, 81.0, 72.0, 28.0, 19.0, 8.50, 28.0],
        [59.0, 75.0, 66.0, 28.9, 20.0, 8.22, 24.2],
        [58.8, 77.0, 69.0, 28.5, 20.0, 8.04, 26.1],
        [58.6, 75.0, 66.0, 28.9, 21.0, 8.41, 24.2],
        [58.6, 74.0, 67.0, 29.0, 19.0, 8.37, 24.2],
    ]
)


@pytest.mark.parametrize(
    ("pair", "front"),
    [
        (("MBPP", "IFEval"), {3, 5, 12, 14}),
        (("MBPP", "MUSR"), {5, 6, 7, 11, 13, 15}),
        (("MMLUPro", "MBPP"), {4, 5}),
        (("GSM8K", "IFEval"), {12}),
    ],
)
def test_khalifa_checkpoints_have_their_published_fronts(pair, front):
    columns = [BENCHMARKS.index(name) for name in pair]
    assert {int(index) + 1 for index in np.flatnonzero(non_dominated(KHALIFA[:, columns]))} == front


def test_non_dominated_agrees_with_the_definition():
    rng = np.random.default_rng(0)
    for num_objectives in (1, 2, 3, 5):
        points = rng.integers(0, 4, (60, num_objectives)).astype(float)  # many ties and duplicates
        slow = [not any((q >= p).all() and (q > p).any() for q in points) for p in points]
        assert non_dominated(points).tolist() == slow


def test_nan_is_neither_on_the_front_nor_dominates():
    assert non_dominated([[np.nan, 9.0], [1.0, 1.0], [0.0, 0.0]]).tolist() == [False, True, False]
    assert non_dominated(np.zeros((0, 2))).tolist() == []


def test_minimised_objectives_turn_round_and_back():
    values = [[1.0, 2.0], [3.0, 4.0]]
    turned = as_maximized(values, ["maximize", "minimize"])
    assert turned.tolist() == [[1.0, -2.0], [3.0, -4.0]]
    assert as_maximized(turned, ["maximize", "minimize"]).tolist() == values
    with pytest.raises(ValueError, match="2 objectives need as many directions"):
        as_maximized(values, ["maximize"])


def inclusion_exclusion(points: np.ndarray) -> float:
    """Volume of a union of boxes from the origin, by inclusion and exclusion: slow and obvious."""
    total = 0.0
    for size in range(1, len(points) + 1):
        for subset in itertools.combinations(points, size):
            total -= (-1) ** size * np.prod(np.clip(np.min(subset, axis=0), 0, None))
    return total


@pytest.mark.parametrize("num_objectives", [1, 2, 3, 4, 5])
def test_hypervolume_is_the_volume_of_the_union(num_objectives):
    rng = np.random.default_rng(num_objectives)
    for points in (
        rng.random((9, num_objectives)),
        rng.integers(-1, 4, (9, num_objectives)).astype(float),
    ):
        assert hypervolume(points + 2.0, np.full(num_objectives, 2.0)) == pytest.approx(
            inclusion_exclusion(points)
        )


@pytest.mark.parametrize("num_objectives", [2, 3, 4, 5])
def test_hypervolume_agrees_with_optuna(num_objectives):
    compute_hypervolume = pytest.importorskip("optuna._hypervolume").compute_hypervolume
    front = np.abs(np.random.default_rng(1).normal(size=(40, num_objectives)))
    front /= np.linalg.norm(front, axis=1, keepdims=True)
    corner = np.full(num_objectives, -0.1)
    assert hypervolume(front, corner) == pytest.approx(
        compute_hypervolume(-front, -corner), rel=1e-10
    )


def test_hypervolume_ignores_dominated_duplicate_and_missing_points():
    front = [[1.0, 2.0], [2.0, 1.0]]
    more = [*front, [1.0, 2.0], [0.5, 0.5], [np.nan, 3.0], [-1.0, 9.0]]
    assert hypervolume(more, [0.0, 0.0]) == hypervolume(front, [0.0, 0.0]) == 3.0
    assert hypervolume(np.zeros((0, 3)), np.zeros(3)) == 0.0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("points", "corner"),
    [
        ([[5.0, 1.0, np.inf], [6.0, 2.0, 0.5]], [0.0, 0.0, -np.inf]),
        ([[5.0, 1.0, np.inf], [6.0, 2.0, np.inf]], [0.0, 0.0, 0.0]),
        ([[np.inf, 1.0, 1.0], [np.inf, 2.0, 0.5]], [0.0, 0.0, 0.0]),
        ([[1.0, 2.0], [2.0, 1.0]], [-np.inf, 0.0]),
        ([[np.inf]], [0.0]),
    ],
)
def test_hypervolume_without_an_end_is_infinite(points, corner):
    assert hypervolume(points, corner) == np.inf
    assert hypervolume([*points, [-np.inf] * len(corner)], corner) == np.inf


def test_an_infinite_point_beside_the_corner_adds_nothing():
    assert hypervolume([[np.inf, -1.0], [1.0, 1.0], [3.0, -np.inf]], [0.0, 0.0]) == 1.0


def test_volume_gain_is_the_difference_of_hypervolumes():
    rng = np.random.default_rng(2)
    for num_objectives in (1, 2, 3, 4):
        points, corner = rng.random((15, num_objectives)), np.full(num_objectives, 0.2)
        new = rng.random((20, num_objectives)) * 1.2
        gains = volume_gains(new, free_boxes(points, corner))
        before = hypervolume(points, corner)
        slow = [hypervolume(np.vstack([points, point]), corner) - before for point in new]
        assert gains == pytest.approx(slow, abs=1e-12)


def test_reference_point_is_the_fronts_nadir_less_a_tenth_of_its_range():
    values = [[1.0, 0.0], [0.0, 1.0], [-50.0, -50.0]]  # a hopeless trial says nothing
    assert reference_point(values) == pytest.approx([-0.1, -0.1])
    assert reference_point(values, floors=[0.5, np.nan]) == pytest.approx([0.5, -0.1])
    assert reference_point([[2.0, 3.0]]) == pytest.approx([1.9, 2.9])
    with pytest.raises(ValueError, match="no point has all its objectives"):
        reference_point([[np.nan, 1.0]])


def test_knee_is_where_the_front_bulges():
    assert knee([[0.0, 10.0], [8.0, 8.0], [10.0, 0.0], [7.0, 7.0]]) == 1
    assert knee([[0.0, 1.0], [0.2, 0.2], [1.0, 0.0]]) in (0, 2)  # a dent has no bulge
    assert knee([[5.0, 5.0]]) == 0


def test_probability_of_non_domination_follows_the_errors():
    values = np.array([[1.0, 0.0], [0.0, 1.0], [-0.05, 0.95], [np.nan, 9.0]])
    exact = probability_non_dominated(values, np.zeros_like(values), seed=0)
    assert exact.tolist() == [1.0, 1.0, 0.0, 0.0]
    noisy = probability_non_dominated(values, np.full_like(values, 0.1), seed=0)
    assert 0.3 < noisy[2] < noisy[1] < 1.0 and noisy[3] == 0.0
    assert (
        noisy.tolist()
        == probability_non_dominated(values, np.full_like(values, 0.1), seed=0).tolist()
    )


def test_the_chance_to_be_non_dominated_is_that_of_comparing_every_pair():
    """What is dropped early changes nothing: 200 rows with ties, NaN and infinities, draw by draw
    against all pairs.
    """
    rng = np.random.default_rng(5)
    values = rng.integers(0, 12, (200, 3)) / 10
    values[3, 1], values[7, 0], values[9, 2] = np.nan, np.inf, -np.inf
    errors = rng.choice([0.0, 0.05], values.shape)
    draws, hits = np.random.default_rng(11), np.zeros(len(values))
    for _ in range(20):
        drawn = values + errors * draws.standard_normal(values.shape)
        at_least, better = (
            (drawn[:, None] >= drawn[None]).all(axis=2),
            (drawn[:, None] > drawn[None]).any(axis=2),
        )
        hits += ~(at_least & better).any(axis=0) & ~np.isnan(drawn).any(axis=1)
    assert (probability_non_dominated(values, errors, seed=11, num_samples=20) == hits / 20).all()
