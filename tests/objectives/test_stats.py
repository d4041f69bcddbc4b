"""Error bars that mean what they say: coverage by simulation with known truth, and laws that need
no golden numbers.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from recycler.objectives.stats import (
    Z95,
    bootstrap_difference,
    bootstrap_means,
    clustered_mean,
    mcnemar,
    minimal_detectable_difference,
    paired_difference,
    probability_non_dominated,
    shrunken,
    unseen_events_stderr,
)

NUM_RUNS = 2000


def _coverage(draw, truth: float, seed: int) -> float:
    """Share of runs whose 95 % interval, mean +- 1.96 stderr, holds the truth."""
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(NUM_RUNS):
        mean, stderr = draw(rng)
        hits += abs(mean - truth) <= Z95 * stderr
    return hits / NUM_RUNS


def test_no_success_is_not_certainty():
    assert (
        unseen_events_stderr([0.0] * 32, 32) == pytest.approx(0.0216, abs=1e-4)
        and unseen_events_stderr([0.0, 0.3], 2) == 0.0
    )


def test_intervals_of_independent_items_cover():
    names = [str(index) for index in range(200)]
    assert (
        0.93 <= _coverage(lambda rng: clustered_mean(rng.random(200) < 0.7, names), 0.7, 1) <= 0.97
    )


def test_intervals_of_clustered_items_cover_and_naive_ones_do_not():
    """125 problems in 11 languages: a problem's difficulty is shared by its translations."""
    clusters = [str(index // 11) for index in range(125 * 11)]

    def values(rng):
        difficulty = np.repeat(rng.beta(1.0, 1.0, 125), 11)
        return rng.random(125 * 11) < difficulty

    assert 0.93 <= _coverage(lambda rng: clustered_mean(values(rng), clusters), 0.5, 2) <= 0.97
    alone = [str(index) for index in range(125 * 11)]
    assert _coverage(lambda rng: clustered_mean(values(rng), alone), 0.5, 3) < 0.8


def test_intervals_of_ratios_cover():
    """Bits per byte: long answers weigh more, and cost fewer bits a byte."""
    truth = 150.0 * 1.2 / 150.0 * 0.5  # E[w x] / E[w] with x = 0.6 + noise, whatever w

    def draw(rng):
        lengths = rng.integers(20, 280, 150).astype(float)
        return clustered_mean(
            0.6 + rng.normal(0, 0.2, 150) / np.sqrt(lengths / 100),
            [str(index) for index in range(150)],
            lengths,
        )

    assert truth == pytest.approx(0.6)
    assert 0.93 <= _coverage(draw, 0.6, 4) <= 0.97


def test_intervals_of_subsets_of_a_finite_population_cover():
    """100 of 400 frozen items: the mean over the 400 is meant, so the error is smaller than for
    items at large.
    """
    population = np.random.default_rng(5).random(400) < 0.4

    def draw(rng):
        chosen = rng.choice(400, 100, replace=False)
        return clustered_mean(population[chosen], list(map(str, chosen)), population_clusters=400)

    assert 0.93 <= _coverage(draw, population.mean(), 6) <= 0.97


def test_intervals_of_paired_differences_cover():
    def run(rng):
        difficulty = rng.random(150)
        a, b = rng.random(150) < np.clip(difficulty + 0.05, 0, 1), rng.random(150) < difficulty
        return paired_difference(dict(enumerate(a * 1.0)), dict(enumerate(b * 1.0)))

    rng = np.random.default_rng(7)
    truth = np.mean(np.minimum(np.linspace(0, 1, 100001) + 0.05, 1) - np.linspace(0, 1, 100001))
    found = [run(rng) for _ in range(600)]
    assert 0.93 <= np.mean([entry.low <= truth <= entry.high for entry in found]) <= 0.975


def test_one_item_a_cluster_is_the_textbook_error():
    values = np.random.default_rng(0).normal(size=40)
    mean, stderr = clustered_mean(values, [str(index) for index in range(40)])
    assert mean == pytest.approx(values.mean()) and stderr == pytest.approx(
        values.std(ddof=1) / math.sqrt(40)
    )


def test_copies_of_items_in_their_clusters_change_nothing():
    values = np.random.default_rng(1).normal(size=30)
    names = [str(index) for index in range(30)]
    assert clustered_mean(np.repeat(values, 5), np.repeat(names, 5).tolist()) == pytest.approx(
        clustered_mean(values, names)
    )


def test_weights_scale_away_and_order_does_not_matter():
    rng = np.random.default_rng(2)
    values, weights, clusters = (
        rng.normal(size=30),
        rng.random(30) + 0.1,
        [str(index % 10) for index in range(30)],
    )
    order = rng.permutation(30)
    expected = clustered_mean(values, clusters, weights)
    assert clustered_mean(values, clusters, weights * 7) == pytest.approx(expected)
    assert clustered_mean(
        values[order], [clusters[index] for index in order], weights[order]
    ) == pytest.approx(expected)


def test_a_census_has_no_error_and_a_lone_cluster_is_never_certain():
    names = [str(index) for index in range(10)]
    assert clustered_mean(range(10), names, population_clusters=10)[1] == 0.0
    assert clustered_mean([1.0, 1.0], ["a", "a"])[1] == 0.5
    with pytest.raises(ValueError, match="no items"):
        clustered_mean([], [])


def test_pairing_is_antisymmetric_and_sees_what_unpaired_errors_hide():
    rng = np.random.default_rng(3)
    a = dict(enumerate((rng.random(200) < 0.5) * 1.0))
    b = a | {index: 1.0 - a[index] for index in range(4) if a[index] == 1.0}
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert (
        forth.difference == -back.difference
        and forth.p_value == back.p_value
        and forth.low == -back.high
    )
    assert forth.stderr < clustered_mean(list(a.values()), list(map(str, a)))[1] / 2
    assert paired_difference(a, a).p_value == 1.0 and not paired_difference(a, a).distinguishable


@pytest.mark.parametrize("n", [2, 5, 6, 8, 40, 3000])
def test_differences_that_all_go_one_way_are_as_certain_as_the_sign_test(n):
    """No spread is no certainty: 2 of 2 says nothing, 8 of 8 is 2 / 2^8."""
    for gap in (1.0, 0.1, 1e-9):
        a, b = dict.fromkeys(range(n), gap), dict.fromkeys(range(n), 0.0)
        found, back = paired_difference(a, b), paired_difference(b, a)
        assert found.p_value == pytest.approx(max(2 * 0.5**n, 2 * 0.5**100)) and found.stderr > 0.0
        assert found.distinguishable == (found.p_value < 0.05) == (n >= 6)
        assert (back.difference, back.low, back.p_value) == (
            -found.difference,
            -found.high,
            found.p_value,
        )
    two = paired_difference({1: 1.0, 2: 1.0}, {1: 0.0, 2: 0.0}, {1: "same", 2: "same"})
    assert two.stderr == 0.5 and not two.distinguishable


def test_a_few_flips_one_way_are_no_surer_than_mcnemar():
    for flips, ties in ((2, 998), (5, 195), (7, 1), (12, 88)):
        a = dict(enumerate([1.0] * flips + [0.0] * ties))
        b = dict.fromkeys(a, 0.0)
        assert paired_difference(a, b).p_value >= mcnemar(a, b).p_value * (1 - 1e-9)


def test_paired_and_mcnemar_look_at_common_items_only():
    a, b = {1: 1.0, 2: 0.0, 3: 1.0}, {2: 1.0, 3: 1.0, 4: 0.0}
    assert paired_difference(a, b).n == 2
    flips = mcnemar(a, b)
    assert (flips.a_only, flips.b_only, flips.both, flips.neither, flips.discordance) == (
        (),
        (2,),
        1,
        0,
        0.5,
    )
    with pytest.raises(ValueError, match="no item in common"):
        mcnemar({1: 1.0}, {2: 1.0})
    with pytest.raises(ValueError, match="0 and 1"):
        mcnemar({1: 0.5}, {1: 1.0})


def test_mcnemar_is_the_sign_test_of_the_flips():
    a, b = dict.fromkeys(range(10), 1.0), dict.fromkeys(range(10), 0.0)
    assert mcnemar(a, b).p_value == pytest.approx(2 * 0.5**10)
    assert mcnemar(a, a).p_value == 1.0


def test_bootstrap_errors_agree_with_the_formula():
    rng = np.random.default_rng(4)
    clusters = [str(index // 3) for index in range(300)]
    values = np.repeat(rng.random(100), 3) + rng.normal(0, 0.3, 300)
    draws = bootstrap_means(values[None, :], clusters, draws=4000, seed=1)
    assert draws.std() == pytest.approx(clustered_mean(values, clusters)[1], rel=0.06)
    assert draws.mean() == pytest.approx(values.mean(), abs=0.01)


def test_bootstrap_difference_is_deterministic_and_certain_of_certain_things():
    rng = np.random.default_rng(5)
    a = dict(enumerate(rng.random(50)))
    b = {item: value - 0.1 for item, value in a.items()}
    low, high, share = bootstrap_difference(a, b)
    assert low == pytest.approx(0.1) and high == pytest.approx(0.1) and share == 1.0
    assert bootstrap_difference(a, a)[2] == 0.5
    noisy = {
        item: value + noise
        for (item, value), noise in zip(a.items(), rng.normal(0, 1, 50), strict=True)
    }
    assert bootstrap_difference(a, noisy) == bootstrap_difference(a, noisy)


def test_probability_of_non_domination():
    draws = np.zeros((4, 3, 2))
    draws[:, 0], draws[:, 1], draws[:, 2] = (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)
    assert probability_non_dominated(draws, (1, 1)).tolist() == [1.0, 1.0, 1.0]
    draws[:2, 2] = (-1.0, -1.0)
    assert probability_non_dominated(draws, (1, 1)).tolist() == [1.0, 1.0, 0.5]
    assert probability_non_dominated(draws, (-1, -1))[2] == 1.0
    draws[:, 0, 0] = np.nan
    assert probability_non_dominated(draws, (1, 1))[0] == 0.0
    twins = np.ones((2, 2, 2))
    assert probability_non_dominated(twins, (1, 1)).tolist() == [1.0, 1.0]


def test_the_minimal_detectable_difference_is_detected_with_its_power():
    n, discordance = 400, 0.2
    gap = minimal_detectable_difference(n, discordance=discordance)
    rng = np.random.default_rng(6)
    found = 0
    for _ in range(NUM_RUNS):
        signs = rng.choice(
            [1.0, -1.0, 0.0],
            n,
            p=[(discordance + gap) / 2, (discordance - gap) / 2, 1 - discordance],
        )
        mean, stderr = clustered_mean(signs, list(map(str, range(n))))
        found += abs(mean) > Z95 * stderr
    assert 0.77 <= found / NUM_RUNS <= 0.83
    assert minimal_detectable_difference(4 * n, discordance=discordance) == pytest.approx(
        gap / 2, rel=0.03
    )


def test_shrinking_undoes_the_winners_curse():
    """100 equal candidates: the best looks better than it is; shrunken it does not."""
    rng = np.random.default_rng(7)
    raw, mended = [], []
    for _ in range(300):
        scores = 0.6 + rng.normal(0, 0.03, 100)
        raw.append(scores.max() - 0.6)
        mended.append(shrunken(scores, [0.03] * 100).max() - 0.6)
    assert np.mean(raw) > 0.06 and np.mean(mended) < 0.02
    assert shrunken([0.1, 0.9], [0.1, 0.1]).tolist() == [0.1, 0.9]
    assert shrunken([0.1, 0.5, 0.9], [0.0, 0.0, 0.0]) == pytest.approx([0.1, 0.5, 0.9])
