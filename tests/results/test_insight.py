"""What is said before the first merge, and why a merge is good: laws, and the two commands."""

import json
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from recycler.cli import main
from recycler.errors import NotFoundError
from recycler.ledger import Ledger
from recycler.results.attribution import SearchModel
from recycler.results.explanation import pair_sentences
from recycler.results.insight import (
    open_explanation,
    open_preview,
    write_outlook,
    write_preview,
    write_space,
)
from recycler.results.notices import Notices
from recycler.results.preview import Preview, tradeoffs
from recycler.search.outlook import GainForecast, expected_gain
from recycler.search.simplex.proposer import SimplexProposer
from recycler.search.simplex.simplex_gp import SimplexGP
from recycler.search.simplex.surrogate import observations
from recycler.specs.space import SearchSpace
from recycler.types import Group, Item, Objective, Outcome, Recipe, Score, Smoothed, Trial
from service_runs import ITEMS, NAMES, OBJECTIVES, frozen_suite, make_run

pytestmark = pytest.mark.long

# MBPP, GSM8K, IFEval of the sixteen checkpoints of Khalifa et al. 2024
PAPER = [
    (58.4, 76.6, 64.1),
    (54.4, 75.3, 65.7),
    (63.0, 79.0, 66.6),
    (63.0, 68.2, 59.0),
    (64.0, 75.7, 56.5),
    (60.8, 76.7, 65.7),
    (58.2, 76.6, 66.9),
    (63.4, 37.8, 32.1),
    (57.0, 75.0, 63.0),
    (57.4, 74.0, 63.0),
    (60.4, 77.0, 66.0),
    (56.8, 81.0, 72.0),
    (59.0, 75.0, 66.0),
    (58.8, 77.0, 69.0),
    (58.6, 75.0, 66.0),
    (58.6, 74.0, 67.0),
]
SPACE = SearchSpace(
    groups=(Group(name="all"),), members=NAMES, low=(0.0,) * 4, high=(3.0,) * 4, total=(0.3, 3.0)
)


def member(number, label, values, objectives, num_members):
    weights = tuple(float(index == number) for index in range(num_members))
    scores = tuple(
        Score(objective=objective.name, value=value, stderr=0.01, n=100)
        for objective, value in zip(objectives, values, strict=True)
    )
    return Trial(
        number=number,
        kind="member",
        state="SCORED",
        label=label,
        recipe=Recipe(
            method="linear", members=tuple(map(str, range(num_members))), weights=(weights,)
        ),
        search=scores,
    )


def test_trade_offs_of_the_papers_own_pool():
    objectives = [
        Objective(suite=name, metric="m", direction="maximize")
        for name in ("mbpp", "gsm8k", "ifeval")
    ]
    pairs = tradeoffs(
        [member(index, str(index + 1), row, objectives, 16) for index, row in enumerate(PAPER)],
        objectives,
    )
    found = {(pair.first, pair.second): pair for pair in pairs}
    code = found["mbpp/m", "ifeval/m"]
    assert code.members == ("3", "5", "12", "14") and code.spearman == pytest.approx(
        -0.35, abs=0.01
    )
    alone = found["gsm8k/m", "ifeval/m"]
    assert alone.members == ("12",) and alone.spearman == pytest.approx(0.61, abs=0.01)
    assert "do not trade off: 12 is the best member at both" in str(alone) and "trade off" in str(
        code
    )


@pytest.fixture
def guessed():
    """Three members on ten right-or-wrong items and on ten texts."""
    right, bits = (
        Objective(suite="s", task="a", metric="exact_match", direction="maximize"),
        Objective(suite="s", task="b", metric="bits_per_byte", direction="minimize"),
    )
    items = [
        Item(
            id=f"a{index}",
            suite="s",
            task="a",
            role="search",
            kind="generate",
            scorer="exact_match",
            prompt="",
            prompt_ids=(1,),
            gold="",
        )
        for index in range(10)
    ]
    items += [
        Item(
            id=f"b{index}",
            suite="s",
            task="b",
            role="search",
            kind="loglikelihood",
            scorer="bits_per_byte",
            prompt="",
            prompt_ids=(1,),
            gold="",
            continuations=((1,),),
            num_bytes=5 + index,
        )
        for index in range(10)
    ]
    rng = np.random.default_rng(0)
    outcomes = {
        number: [
            Outcome(
                item=item.id,
                values=(("exact_match", float(rng.random() < 0.5)),)
                if item.task == "a"
                else (("bits_per_byte", float(rng.uniform(0.3, 1.2))),),
            )
            for item in items
        ]
        for number in range(3)
    }
    means = {
        number: (
            np.mean([dict(outcome.values)["exact_match"] for outcome in own[:10]]),
            np.average(
                [dict(outcome.values)["bits_per_byte"] for outcome in own[10:]],
                weights=range(5, 15),
            ),
        )
        for number, own in outcomes.items()
    }
    trials = [member(number, f"m{number}", means[number], (right, bits), 3) for number in range(3)]
    return Preview(trials, outcomes, items, (right, bits)), means


def test_a_member_alone_is_guessed_at_its_own_score(guessed):
    preview, means = guessed
    for number in range(3):
        found = preview.guess(np.eye(3)[number])
        assert (found["s:a/exact_match"][0], found["s:b/bits_per_byte"][0]) == pytest.approx(
            means[number]
        )


def test_a_mixture_of_texts_is_no_worse_than_the_average_and_that_of_answers_is_it(guessed):
    preview, means = guessed
    for weights in np.random.default_rng(1).dirichlet([1, 1, 1], 20):
        found, average = preview.guess(weights), weights @ np.array(list(means.values()))
        assert (
            found["s:a/exact_match"][0] == pytest.approx(average[0])
            and found["s:b/bits_per_byte"][0] <= average[1] + 1e-12
        )
        assert preview.guess(3 * weights)["s:b/bits_per_byte"] == pytest.approx(
            found["s:b/bits_per_byte"]
        )


def test_the_guessed_front_beats_no_member_it_leaves_out(guessed):
    preview, means = guessed
    front = [
        (guess.scores["s:a/exact_match"][0], -guess.scores["s:b/bits_per_byte"][0])
        for guess in preview.front()
    ]
    best = max(right for right, _ in means.values())
    assert front and max(right for right, _ in front) == pytest.approx(best)
    assert not any(a[0] > b[0] and a[1] > b[1] for a in front for b in front)


@pytest.fixture
def run(tmp_path):
    folder = make_run(tmp_path, suites=True)
    with closing(Ledger(folder / "ledger.sqlite")) as ledger:
        write_space(ledger, SPACE, "linear")
        assert write_preview(ledger, frozen_suite(ITEMS).items, OBJECTIVES, len(NAMES)) is not None
    return folder


def test_the_preview_is_kept_as_it_was_and_only_its_errors_are_added(run):
    first = open_preview(run)
    with closing(Ledger(run / "ledger.sqlite")) as ledger:
        again = write_preview(ledger, frozen_suite(ITEMS).items, OBJECTIVES, len(NAMES))
        assert write_preview(ledger, frozen_suite(ITEMS).items, OBJECTIVES, len(NAMES) + 1) is None
    assert again == first == open_preview(run) and len(first["tradeoffs"]) == 3


def test_shares_add_up_to_what_the_merge_scores_above_its_base(run):
    with closing(Ledger(run / "ledger.sqlite")) as ledger:
        trials = [trial for trial in ledger.trials() if trial.recipe.method == "linear"]
    surrogate = SearchModel(SimplexProposer(SPACE, OBJECTIVES, seed=0), trials, OBJECTIVES)
    point = surrogate.observed.weights[-1]
    mean = surrogate.gp.predict(np.stack([point, np.zeros_like(point)]))[0] * surrogate.signs
    shares = surrogate.shares(point)
    assert {share.member for share in shares} == {
        name for name, weight in zip(NAMES, point, strict=True) if weight
    }
    for index, objective in enumerate(OBJECTIVES):
        assert sum(share.adds[objective.name][0] for share in shares) == pytest.approx(
            mean[0, index] - mean[1, index]
        )
    losses = surrogate.losses()
    assert {loss.member for loss in losses} == set(NAMES) and all(
        0.0 <= loss.low <= loss.hypervolume <= loss.high <= 1.0
        and loss.remaining[0][NAMES.index(loss.member)] == 0.0
        for loss in losses
    )


def test_a_member_that_does_nothing_is_given_nothing(run):
    """A fourth member whose delta is never in any score: scores depend on the first three alone."""
    rng, members = np.random.default_rng(3), ("a", "b", "c", "idle")
    objectives = OBJECTIVES[:2]
    trials = []
    for number in range(40):
        weights = (
            np.eye(4)[number] if number < 4 else rng.dirichlet([0.6] * 4) * rng.uniform(0.5, 2)
        )
        values = (
            0.2 + 0.3 * weights[0] - 0.05 * weights[0] ** 2,
            0.1 + 0.4 * weights[1] + 0.1 * weights[2],
        )
        scores = tuple(
            Score(objective=objective.name, value=float(value), stderr=0.002, n=1000)
            for objective, value in zip(objectives, values, strict=True)
        )
        trials.append(
            Trial(
                number=number,
                kind="member" if number < 4 else "merge",
                state="SCORED",
                recipe=Recipe(
                    method="linear",
                    members=members,
                    weights=(tuple(map(float, weights)),),
                    base="base",
                ),
                search=scores,
            )
        )
    space = SearchSpace(
        groups=(Group(name="all"),),
        members=members,
        low=(0.0,) * 4,
        high=(3.0,) * 4,
        total=(0.3, 3.0),
    )
    surrogate = SearchModel(SimplexProposer(space, objectives, seed=0), trials, objectives)
    shares = {share.member: share for share in surrogate.shares(np.full(4, 0.4))}
    for name in ("a", "b"):
        objective = objectives["ab".index(name)].name
        assert shares[name].adds[objective][0] > 0.08
    assert max(abs(value) for value, _ in shares["idle"].adds.values()) < 0.02
    lost = {loss.member: loss.hypervolume for loss in surrogate.losses()}
    assert lost["idle"] < 0.02 < lost["a"] and lost["idle"] < 0.02 < lost["b"]


@pytest.mark.long
def test_much_is_expected_of_a_young_search_and_little_of_an_old_one():
    """On a smooth truth with two specialists: 4 trials against 40, the same model twice says the
    same.
    """

    def truth(rows):
        synergy = 0.8 * rows[:, 0] * rows[:, 1]
        return np.stack([rows[:, 0] + synergy, rows[:, 1] + synergy], axis=1)

    rows = np.concatenate([np.eye(3), np.random.default_rng(0).dirichlet([0.7, 0.7, 0.2], 60)])
    gp = SimplexGP(("a", "b", "c"), 2, seed=0)
    young, old = (
        observations(rows[:count], truth(rows[:count]), np.full((count, 2), 0.01))
        for count in (6, 60)
    )
    early, late = expected_gain(gp, young, (0, 1, 2)), expected_gain(gp, old, (0, 1, 2))
    assert early > 2 * late >= 0.0 and expected_gain(gp, old, (0, 1, 2)) == late


def test_the_outlook_is_kept_for_status(run, capsys):
    forecast = GainForecast(proposer=SimplexProposer(SPACE, OBJECTIVES, seed=0))
    with closing(Ledger(run / "ledger.sqlite")) as ledger:
        assert (
            write_outlook(ledger, forecast, ledger.trials()[:5]) is None
            and ledger.facts.outlook is None
        )
        gain = write_outlook(ledger, forecast, ledger.trials())
    assert gain >= 0.0 and main(["status", str(run)]) == 0
    assert f"the next 20 merges are expected to add {round(gain, 4):.1%}" in capsys.readouterr().out


@pytest.mark.long
def test_the_two_commands(run, capsys):
    assert main(["preview", str(run)]) == 0
    assert "nothing of it was measured" in capsys.readouterr().out
    assert main(["why", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        found["estimated"]
        and found["said"][0].startswith(f"Merge {found['trial']} uses ")
        and len(found["losses"]) == len(NAMES)
    )
    assert main(["why", str(run)]) == 0 and "by the search's model" in capsys.readouterr().out
    assert main(["why", str(run), "--trial", "777"]) == 3


@pytest.mark.long
def test_why_says_by_which_score_a_merge_was_chosen_and_whose_search_score_is_best(run, capsys):
    """The search's end turns the choice from search scores to posterior ones; what is told turns
    with it.
    """
    name = OBJECTIVES[0].name
    before = open_explanation(run, f"best:{name}")["chosen"]
    assert (
        before["by"] == "search score"
        and before["best_by_search_score"]["trial"] == before["trial"]
    )
    with closing(Ledger(run / "ledger.sqlite")) as ledger:
        trials = [trial for trial in ledger.trials() if trial.state == "SCORED"]
        lucky, true = (
            before["trial"],
            next(trial.number for trial in reversed(trials) if trial.number != before["trial"]),
        )
        level = {lucky: 0.1, true: 0.99}
        scores = {
            trial.number: tuple(
                replace(score, value=level.get(trial.number, 0.05), stderr=0.01)
                if score.objective == name
                else score
                for score in trial.search
            )
            for trial in trials
        }
        ledger.facts.smoothed = Smoothed(scores=scores)
    after = open_explanation(run, f"best:{name}")["chosen"]
    assert (
        after["by"] == "posterior score"
        and after["trial"] == true
        and after["scores"][name]["posterior"]["value"] == 0.99
    )
    assert (
        after["best_by_search_score"]["trial"] == lucky
        and after["best_by_search_score"]["scores"][name]["posterior"]["value"] == 0.1
    )
    assert main(["why", str(run), "--trial", f"best:{name}"]) == 0
    said = capsys.readouterr().out
    assert (
        f"best:{name} is merge {true}, chosen by posterior score." in said
        and f"The best search score is merge {lucky}'s" in said
        and "0.990 ± 0.010" in said
    )


def test_runs_that_cannot_say_it_are_told_so(tmp_path):
    run = make_run(tmp_path, merges=0)
    with pytest.raises(NotFoundError, match="members have not all been scored"):
        open_preview(run)
    with pytest.raises(NotFoundError, match="scored trials are too few for a model"):
        open_explanation(run)


def test_a_run_that_kept_no_space_is_looked_at_as_wide_as_it_was_tried(tmp_path):
    found = open_explanation(make_run(tmp_path, merges=20))
    assert len(found["losses"]) == len(NAMES) and found["said"]


@pytest.mark.long
def test_why_of_a_refined_merge_is_told_of_the_one_it_comes_from(run, capsys):
    """Waiting would not help: its rows of weights are none that the search proposes."""
    with closing(Ledger(run / "ledger.sqlite")) as ledger:
        trials = [trial for trial in ledger.trials() if trial.state == "SCORED"]
        start = next(trial for trial in reversed(trials) if trial.kind == "merge")
        (row,) = start.recipe.weights
        for label, groups in (
            (f"refined {start.number}", 2),
            (f"refined {len(ledger.trials())}", 3),
            ("by hand", 2),
        ):
            number = len(ledger.trials())
            recipe = replace(
                start.recipe,
                groups=tuple(Group(name=f"g{index}") for index in range(groups)),
                weights=(row, *((0.5 * row[0], *row[1:]),) * (groups - 1)),
            )
            ledger.open_trial(number, "merge", recipe, label=label)
            ledger.close_trial(
                number, replace(ledger.scorecard(start.number, "search"), weights_digest=label)
            )
    found = open_explanation(run, str(number - 1))
    assert found["trial"] == start.number and found["chosen"]["trial"] == number - 1
    assert found["said"][0].startswith(
        f"Merge {number - 1} is merge {start.number} refined;"
    ) and found["said"][1].startswith(f"Merge {start.number} uses")
    assert (
        open_explanation(run, str(number - 2))["shares"]
        == open_explanation(run, str(start.number))["shares"]
    )
    assert main(["why", str(run), "--trial", str(number)]) == 3
    said = capsys.readouterr().err
    assert "does not cover its kind of merge" in said and "Wait" not in said


def test_what_does_not_trade_off_and_what_is_noise_is_said_once_and_kept_for_status(run, capsys):
    """The second objective follows the first; the third is a coin in every trial."""
    first, second, third = OBJECTIVES[0].name, OBJECTIVES[1].name, "s/coin"
    objectives = (*OBJECTIVES[:2], Objective(suite="s", metric="coin", direction="maximize"))
    rng = np.random.default_rng(5)
    trials = []
    for number in range(40):
        weights = np.eye(4)[number] if number < 4 else rng.dirichlet([0.6] * 4)
        values = (
            0.2 + 0.3 * weights[0] + 0.1 * weights[1],
            0.1 + 0.4 * weights[0] + 0.1 * weights[2],
            0.5 + 0.02 * rng.standard_normal(),
        )
        scores = tuple(
            Score(
                objective=objective.name, value=float(value) * objective.sign, stderr=stderr, n=100
            )
            for objective, value, stderr in zip(objectives, values, (0.01, 0.01, 0.03), strict=True)
        )
        trials.append(
            Trial(
                number=number,
                kind="member" if number < 4 else "merge",
                state="SCORED",
                label=NAMES[number] if number < 4 else "",
                recipe=Recipe(
                    method="linear",
                    members=NAMES,
                    weights=(tuple(map(float, weights)),),
                    base="base",
                ),
                search=scores,
            )
        )
    with closing(Ledger(run / "ledger.sqlite")) as ledger:
        notices = Notices(ledger=ledger, proposer=SimplexProposer(SPACE, objectives, seed=0))
        pairs = tradeoffs(trials[:4], objectives)
        preview = {"tradeoffs": [{"said": str(pair), "together": pair.together} for pair in pairs]}
        assert notices.of_members(None) == ()
        (said,) = [line for line in notices.of_members(preview) if first in line and second in line]
        assert (
            f"{first} and {second} do not trade off: {NAMES[0]} is the best member at both" in said
        )
        assert notices.of_noise(trials[:7]) == ()
        assert notices.of_noise(trials) == (
            f"{third} moves with no weights beyond its noise: it has no say in the front",
        )
        assert notices.of_members(preview) == () and notices.of_noise(trials) == ()
    assert main(["status", str(run)]) == 0
    shown = capsys.readouterr().out
    assert f"note: {said}" in shown and f"note: {third} moves with no weights" in shown
    with closing(Ledger(run / "ledger.sqlite")) as ledger:
        again = Notices(ledger=ledger, proposer=SimplexProposer(SPACE, objectives, seed=0))
        assert again.of_members(preview) == ()
        assert again.of_noise(trials[:7]) == (
            f"{third} moves with the weights after all: it has its say in the front again",
        )
    assert main(["status", str(run)]) == 0
    assert third not in capsys.readouterr().out


@pytest.fixture(scope="module")
def coupled():
    """The first score takes a and b together, in the second c and d replace one another; e adds a
    little to both.
    """
    members, objectives, rng = ("a", "b", "c", "d", "e"), OBJECTIVES[:2], np.random.default_rng(3)
    trials = []
    for number in range(70):
        weights = (
            np.eye(5)[number] if number < 5 else rng.dirichlet([0.7] * 5) * rng.uniform(0.8, 2.5)
        )
        a, b, c, d, e = weights
        values = (
            0.1 + 0.5 * np.tanh(a) * np.tanh(b) + 0.05 * e,
            0.1 + 0.4 * np.tanh(2 * (c + d)) + 0.05 * e,
        )
        scores = tuple(
            Score(objective=objective.name, value=float(value), stderr=0.002, n=1000)
            for objective, value in zip(objectives, values, strict=True)
        )
        trials.append(
            Trial(
                number=number,
                kind="member" if number < 5 else "merge",
                state="SCORED",
                recipe=Recipe(
                    method="linear",
                    members=members,
                    weights=(tuple(map(float, weights)),),
                    base="base",
                ),
                search=scores,
            )
        )
    space = SearchSpace(
        groups=(Group(name="all"),),
        members=members,
        low=(0.0,) * 5,
        high=(3.0,) * 5,
        total=(0.3, 3.0),
    )
    return SearchModel(SimplexProposer(space, objectives, seed=0), trials, objectives)


def test_members_that_need_one_another_and_members_that_replace_one_another_are_found(coupled):
    first, second = (objective.name for objective in coupled.objectives)
    pairs = {
        frozenset(pair.members): pair for pair in coupled.pairs(np.array([0.6, 0.6, 0.5, 0.5, 0.2]))
    }
    need, replaced = pairs[frozenset("ab")], pairs[frozenset("cd")]
    assert need.differs[first][0] > 0.03 and replaced.differs[second][0] < -0.03
    said = pair_sentences(tuple(pairs.values()), coupled.objectives)
    assert any(
        line.startswith(
            f"{' and '.join(need.members)} are worth more together than each alone at {first}"
        )
        for line in said
    )
    assert any(
        line.startswith(f"{' and '.join(replaced.members)} stand in for one another at {second}")
        for line in said
    )


def test_pairs_and_moves_are_differences_of_what_the_model_predicts(coupled):
    """By hand: four merges a pair, two a move; sums stay, and a merge of one member has neither."""
    point = np.array([0.8, 0.4, 0.3, 0.0, 0.5])

    def predicted(*rows):
        return coupled.gp.predict(np.array(rows))[0]

    for pair in coupled.pairs(point):
        i, j = (coupled.members.index(name) for name in pair.members)
        rows = [
            point * (np.isin(np.arange(5), gone, invert=True)) for gone in ([], [i], [j], [i, j])
        ]
        whole, one, other, none = predicted(*rows)
        assert [value for value, _ in pair.differs.values()] == pytest.approx(
            list(none - one - other + whole), abs=1e-9
        )
    moves = coupled.moves(point)
    assert [move.member for move in moves] == ["a", "e", "b", "c"]
    for move in moves:
        for factor, told in ((1.1, move.larger), (0.9, move.smaller)):
            row = point * np.where(np.arange(5) == coupled.members.index(move.member), factor, 1.0)
            before, after = predicted(point, row * point.sum() / row.sum())
            assert [value for value, _ in told.values()] == pytest.approx(
                list(after - before), abs=1e-9
            )
    alone = np.eye(5)[0]
    assert coupled.pairs(alone) == () and coupled.moves(alone) == ()


@pytest.mark.long
def test_why_shows_pairs_and_moves(run, capsys):
    found = open_explanation(run)
    assert 0 < len(found["pairs"]) <= 3 and len(found["moves"]) == len(found["shares"])
    assert main(["why", str(run)]) == 0
    shown = capsys.readouterr().out
    assert (
        "Taken out together, what changes beyond the sum of each alone:" in shown
        and f"10 % less, {OBJECTIVES[0].name}" in shown
        and " + ".join(found["pairs"][0]["members"]) in shown
    )
