"""The printed front: what all trials say of it beside what its own scores say, and how it fares on
items that did not choose it.
"""

from dataclasses import replace

import pytest

from fakes import OBJECTIVES, named_pool
from recycler.cli.front_text import front_table
from recycler.results.documents import front_document, search_to_holdout
from recycler.results.front import read_front
from recycler.search.baselines import fixed_baselines
from recycler.types import Recipe, Score, Smoothed, Trial

POOL = named_pool(3)
FIRST, SECOND = (objective.name for objective in OBJECTIVES)  # maximised, minimised


def scores(first, second, stderr=0.01):
    return (
        Score(objective=FIRST, value=first, stderr=stderr, n=100),
        Score(objective=SECOND, value=second, stderr=stderr, n=100),
    )


def merge(number, first, second, **other):
    recipe = Recipe(
        method="linear", members=POOL.names, weights=((0.1 * number, 0.5, 0.5),), base="base"
    )
    return Trial(
        number=number,
        kind="merge",
        state="SCORED",
        recipe=recipe,
        search=scores(first, second),
        **other,
    )


def front_of(members=((0.5, 0.9), (0.4, 0.8), (0.3, 0.7)), smoothed=True, holdout=True):
    """Merge 5 is on both fronts, 6 on the observed one by luck, 7 on the posterior one alone."""
    planned = fixed_baselines(POOL, "bfloat16")
    values = [*members, (0.2, 1.0), (0.45, 0.85)]
    trials = [
        Trial(
            number=number,
            kind=plan.kind,
            label=plan.label,
            state="SCORED",
            recipe=plan.recipe,
            search=scores(*pair),
        )
        for number, (plan, pair) in enumerate(zip(planned, values, strict=True))
    ]
    trials += [merge(5, 0.7, 0.5), merge(6, 0.9, 0.6), merge(7, 0.68, 0.52)]
    if holdout:
        trials = [
            replace(
                trial,
                holdout=scores(
                    *(
                        score.value + change
                        for score, change in zip(trial.search, (-0.06, 0.02), strict=True)
                    ),
                    stderr=0.0075,
                ),
            )
            for trial in trials
        ]
    posterior = {trial.number: trial.search for trial in trials} | {
        6: scores(0.5, 0.6),
        7: scores(0.72, 0.51),
    }
    return read_front(
        trials,
        OBJECTIVES,
        POOL,
        "bfloat16",
        smoothed=Smoothed(scores=posterior) if smoothed else Smoothed(),
    )


def cells(table):
    """Words of each line that begins with a trial's number, by that number."""
    return {
        int(line.split()[0]): line
        for line in table.splitlines()
        if line and line.split()[0].isdecimal()
    }


def test_the_observed_front_stands_beside_the_posterior_one():
    front = front_of()
    assert [trial.number for trial in front.front] == [5, 7] and [
        trial.number for trial in front.observed
    ] == [5, 6]
    table = front_table(front)
    assert " observed " in table.splitlines()[1]
    shown = cells(table)
    assert list(shown) == [5, 7, 6, 0, 1, 2, 4, 3]  # both fronts, then the baselines
    assert {number for number, line in shown.items() if " yes" in line} == {5, 6}


def test_before_the_end_there_is_one_front():
    table = front_table(front_of(smoothed=False, holdout=False))
    assert "observed" not in table and "search to holdout" not in table and " yes" not in table


def test_the_gap_is_the_mean_over_the_front_with_the_error_of_one():
    front = front_of()
    found = search_to_holdout(front)
    assert [(name, number) for name, _, _, number in found] == [(FIRST, 2), (SECOND, 2)]
    assert [gap for _, gap, _, _ in found] == pytest.approx([-0.06, 0.02]) and [
        stderr for _, _, stderr, _ in found
    ] == pytest.approx([0.0125, 0.0125])
    assert (
        front_table(front, "holdout").splitlines()[-1]
        == f"search to holdout: {FIRST} -0.060 ± 0.013, {SECOND} +0.020 ± 0.013 over the 2 "
        "shipped merges"
    )
    assert front_document(front)["search_to_holdout"][FIRST]["value"] == pytest.approx(-0.06)


def test_benchmarks_that_do_not_trade_off_are_named_above_the_front():
    apart = front_of()
    assert "trade off" not in front_table(
        apart
    )  # a better first score comes with a worse second one
    alike = front_of(members=((0.5, 0.7), (0.4, 0.8), (0.3, 0.9)))
    assert (
        front_table(alike).splitlines()[0]
        == f"{FIRST} and {SECOND} do not trade off: m0 is the best member at both (Spearman +1.00)"
    )
