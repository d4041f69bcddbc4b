"""Scores from some items: nested draws, no bias, intervals that cover, and less error through the
members.
"""

from __future__ import annotations

import numpy as np
import pytest

from recycler.objectives.stats import Z95
from recycler.scoring.outcomes import aggregate
from recycler.scoring.subsets import MIN_ITEMS, draw, estimate, share_for, strata
from recycler.types import Item, Objective, Outcome


def items_of(
    task: str,
    number: int,
    *,
    clusters: int | None = None,
    num_bytes=lambda index: 0,
    suite: str = "s",
    scorer: str = "exact_match",
) -> list[Item]:
    return [
        Item(
            id=f"{suite}/{task}/{index}",
            suite=suite,
            task=task,
            role="search",
            kind="generate",
            scorer=scorer,
            prompt="p",
            prompt_ids=(1,),
            gold="g",
            cluster=f"{index % clusters}" if clusters else f"{task}-{index}",
            num_bytes=num_bytes(index),
        )
        for index in range(number)
    ]


def outcomes_of(items, values, metric="exact_match"):
    return [Outcome(item=item.id, values=((metric, float(values[item.id])),)) for item in items]


ACCURACY = Objective(suite="s", metric="exact_match", direction="maximize")


def test_draws_are_nested_deterministic_and_never_small():
    items = items_of("a", 400) + items_of("b", 60)
    small, large = draw(items, 7, 0.2), draw(items, 7, 0.5)
    assert {item.id for item in small} < {item.id for item in large}
    assert draw(items, 7, 0.2) == small and draw(items, 8, 0.2) != small
    assert [sum(item.task == task for item in small) for task in "ab"] == [80, MIN_ITEMS]
    added = draw(items, 7, 0.5, beyond=0.2)
    assert {item.id for item in added} == {item.id for item in large} - {item.id for item in small}
    assert draw(items, 7, 1.0) == tuple(items)


def test_problems_are_drawn_whole_and_together_across_tasks():
    items = (
        items_of("es", 125, clusters=125)
        + items_of("de", 125, clusters=125)
        + items_of("other", 100)
    )
    assert [len(stratum) for stratum in strata(items)] == [250, 100]
    chosen = draw(items, 1, 0.5)
    problems = [{item.cluster for item in chosen if item.task == task} for task in ("es", "de")]
    assert problems[0] == problems[1] and len(problems[0]) == 63


def test_all_items_give_the_plain_mean_without_error():
    items = items_of("a", 60) + items_of("b", 90)
    values = dict(
        zip((item.id for item in items), np.random.default_rng(0).random(150) < 0.5, strict=True)
    )
    found = estimate(items, outcomes_of(items, values), ACCURACY, [dict(values)])
    (whole,) = aggregate(items, outcomes_of(items, values), [ACCURACY])
    assert (
        found.score.value == pytest.approx(whole.value)
        and found.score.stderr == 0.0
        and found.score.n == 150
    )


def test_a_trial_that_equals_a_member_is_known_from_few_items():
    items = items_of("a", 300)
    rng = np.random.default_rng(1)
    member = {item.id: float(rng.random() < 0.4) for item in items}
    found = estimate(items, outcomes_of(draw(items, 3, 0.2), member), ACCURACY, [member])
    assert (
        found.score.value == pytest.approx(np.mean(list(member.values())))
        and found.score.stderr
        < 0.25 * estimate(items, outcomes_of(draw(items, 3, 0.2), member), ACCURACY).score.stderr
    )
    with pytest.raises(ValueError, match="was scored"):
        estimate(items, [], ACCURACY)


def test_a_subset_without_one_success_is_not_certain():
    items = items_of("a", 200)
    found = estimate(
        items,
        outcomes_of(draw(items, 1, 0.25), dict.fromkeys((item.id for item in items), 0.0)),
        ACCURACY,
        [dict.fromkeys((item.id for item in items), 0.0)],
    )
    assert (
        found.score.value == 0.0
        and 0.005 < found.score.stderr < 0.02
        and found.at_large.stderr > found.score.stderr
    )


def _study(kind: str, num_runs: int = 400):
    """Shares of intervals that cover, mean bias in errors, and the variance ratio, for merges of
    six members on 300 items.
    """
    rng = np.random.default_rng(2)
    lengths = rng.integers(20, 200, 300)
    items = items_of(
        "a",
        300,
        clusters=150 if kind == "clustered" else None,
        num_bytes=lambda index: int(lengths[index]),
        scorer="bits_per_byte" if kind == "bits" else "exact_match",
    )
    metric = "bits_per_byte" if kind == "bits" else "exact_match"
    objective = Objective(suite="s", metric=metric, direction="maximize")
    hard = (
        rng.normal(0, 1, 150)[np.arange(300) % 150]
        if kind == "clustered"
        else rng.normal(0, 1, 300)
    )
    skills = rng.normal(0, 1, (6, 300)) * 0.7

    def answer(latent):
        return (
            0.6 + 0.1 * latent + rng.normal(0, 0.02, 300)
            if kind == "bits"
            else (latent + rng.logistic(0, 0.4, 300) > 0).astype(float)
        )

    members = [
        dict(zip((item.id for item in items), answer(hard + skill), strict=True))
        for skill in skills
    ]
    covered, gaps, ratios, errors, plain_errors = 0, [], [], [], []
    for run in range(num_runs):
        recipe = rng.dirichlet(np.ones(6))
        values = dict(zip((item.id for item in items), answer(hard + recipe @ skills), strict=True))
        (truth,) = aggregate(items, outcomes_of(items, values, metric), [objective])
        told = outcomes_of(draw(items, run, 0.25), values, metric)
        found, plain = estimate(items, told, objective, members), estimate(items, told, objective)
        gap = found.score.value - truth.value
        covered += abs(gap) <= Z95 * found.score.stderr
        gaps.append(gap)
        errors.append(gap**2)
        plain_errors.append((plain.score.value - truth.value) ** 2)
        ratios.append(found.variance_ratio)
    return (
        covered / num_runs,
        np.mean(gaps) / (np.std(gaps) / np.sqrt(num_runs)),
        np.mean(ratios),
        np.mean(errors) / np.mean(plain_errors),
    )


@pytest.mark.parametrize("kind", ["yes or no", "clustered", "bits"])
def test_estimates_are_unbiased_cover_and_gain(kind):
    coverage, bias, claimed, real = _study(kind)
    assert 0.92 <= coverage <= 0.98
    assert abs(bias) < 3.0
    assert real < (0.2 if kind == "bits" else 0.8)
    assert 0.7 < claimed / real < 1.5


def test_the_share_makes_scoring_as_long_as_merging():
    items = items_of("a", 100)
    assert (
        share_for(items, 10.0, 2.0) == 0.2
        and share_for(items, 1.0, 2.0) == 1.0
        and share_for(items, 10.0, 0.0) == 0.01
    )
