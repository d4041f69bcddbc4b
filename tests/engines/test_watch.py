"""A merge that only babbles is given up early, told with its reason and to the sampler as the
worst; nothing else is touched.
"""

from dataclasses import replace

import pytest

from fake_engine import LOOPS, Engine
from fakes import OBJECTIVES
from item_search import ITEMS, POOL, ItemWorkers, fidelity, run
from recycler.cluster.workers import Request, ScoringWorker, Work
from recycler.engines.watch import (
    GATE_ANSWERS,
    GATE_TOKENS,
    HopelessError,
    gate_sample,
    refuse_degenerate,
    repeats_itself,
)
from recycler.ledger import Ledger
from recycler.run.fidelity import Fidelity
from recycler.scoring.evaluate import score_items
from recycler.search.proposer import make_proposer
from recycler.types import (
    Failure,
    GenerateRequest,
    Item,
    Outcome,
    Recipe,
    Scorecard,
)

PROSE = (
    "She had 16 eggs and used 3 for breakfast and 4 for muffins, so 16 - 3 - 4 = 9 were left. At "
    "2 dollars each she makes 18 dollars a day at the market."
)
PROGRAM = (
    "def count(words):\n    found = {}\n    for word in words:\n        found[word] = "
    "found.get(word, 0) + 1\n    return sorted(found, key=found.get)\n"
)


@pytest.mark.parametrize(
    "text, babble",
    [
        (PROSE, False),
        (PROGRAM, False),
        ("", False),
        ("7", False),
        ("ha ha ha", False),
        *((loop, True) for loop in LOOPS),
    ],
)
def test_loops_are_told_from_prose_and_programs(text, babble):
    assert repeats_itself(text) is babble


def test_one_answer_that_says_something_keeps_the_gate_open():
    refuse_degenerate([*LOOPS, PROSE])
    refuse_degenerate([])
    with pytest.raises(HopelessError, match="first 5 answers repeat themselves"):
        refuse_degenerate(LOOPS)


def test_short_answers_are_no_evidence():
    short, long = (
        GenerateRequest(prompt_ids=(1,), max_new_tokens=2 * GATE_TOKENS - 1),
        GenerateRequest(prompt_ids=(1,), max_new_tokens=2 * GATE_TOKENS),
    )
    assert (
        gate_sample([short] * 99, range(99)) == []
        and gate_sample([long] * (GATE_ANSWERS - 1), range(GATE_ANSWERS - 1)) == []
    )
    assert gate_sample([short] + [long] * 40, range(41)) == list(range(1, GATE_ANSWERS + 1))


def test_answers_are_scored_as_they_end_and_stay_with_their_items():
    items = [
        Item(
            id=f"i{index}",
            suite="s",
            task="t",
            role="search",
            kind="generate",
            scorer="exact_match",
            prompt="p",
            prompt_ids=(1, 2),
            gold=str(index),
            max_new_tokens=4,
        )
        for index in range(5)
    ]
    outcomes = score_items(Engine(), [*items, *(item for item in ITEMS[160:163])])
    assert [outcome.output for outcome in outcomes[:5]] == list("01234") and all(
        dict(outcome.values)["exact_match"] == 1.0 for outcome in outcomes[:5]
    )


@pytest.mark.parametrize(
    "engine, told",
    [(Engine(logprob=-1e4), "not finite"), (Engine(babbles=True), "repeat themselves")],
)
def test_hopeless_weights_fail_with_their_reason_and_only_where_asked(engine, told):
    recipe = Recipe(method="linear", members=POOL.names, weights=((1.0,) * 4,))
    worker = ScoringWorker(
        Work(
            pool=POOL,
            engine="fake",
            items=tuple(item for item in ITEMS if item.role == "search"),
            objectives=OBJECTIVES,
        ),
        engine,
    )
    failure = worker.score(Request(number=0, recipe=recipe, role="search", gated=True))
    assert isinstance(failure, Failure) and failure.blame == "recipe" and told in failure.reason
    assert isinstance(worker.score(Request(number=0, recipe=recipe, role="search")), Scorecard)


def test_the_sampler_hears_of_a_hopeless_merge_as_of_the_worst(tmp_path, monkeypatch):
    heard = []

    def listening(*arguments, **options):
        proposer = make_proposer(*arguments, **options)
        ask = proposer.ask
        proposer.ask = lambda number, trials: heard.append(trials) or ask(number, trials)
        return proposer

    monkeypatch.setattr("item_search.make_proposer", listening)
    trials, _, _ = run(
        tmp_path / "run.sqlite",
        ItemWorkers(break_numbers=frozenset({12})),
        fidelity(),
        num_merges=6,
    )
    assert trials[12].state == "FAILED" and trials[12].search == (), "the ledger knows no score"
    told = next(trial for trial in heard[-1] if trial.number == 12)
    others = [trial for trial in heard[-1] if trial.number != 12 and trial.state == "SCORED"]
    assert (
        told.state == "SCORED"
        and told.search[0].value == min(trial.search[0].value for trial in others)
        and told.search[1].value == max(trial.search[1].value for trial in others)
    )


def test_a_pool_whose_members_loop_is_not_gated(tmp_path):
    """Base models without a stop string repeat themselves after the right answer; a merge of them
    may, too.
    """
    long = tuple(
        replace(item, max_new_tokens=200)
        for item in ITEMS
        if item.role == "search" and item.task == "a"
    )
    for text, gated in ((PROSE, True), (LOOPS[1], False)):
        ledger = Ledger(tmp_path / f"{gated}.sqlite")
        rules = Fidelity(items=long, objectives=OBJECTIVES, items_per_task=None, seed=0)
        recipe = Recipe(method="linear", members=POOL.names, weights=((1.0, 0.0, 0.0, 0.0),))
        ledger.open_trial(0, "member", recipe)
        (member,) = ledger.trials()
        merge = replace(member, number=1, kind="merge")
        assert not rules.is_gated(merge, ledger, {0: member}), "nothing is known yet"
        ledger.close_trial(
            0,
            Scorecard(
                role="search",
                scores=ItemWorkers().answer(recipe, "search", None).scores,
                outcomes=tuple(
                    Outcome(item=item.id, values=(("exact_match", 1.0),), output=text)
                    for item in long
                ),
                weights_digest="",
                engine_fingerprint="",
            ),
        )
        (member,) = ledger.trials()
        assert rules.is_gated(merge, ledger, {0: member}) is gated and not rules.is_gated(
            member, ledger, {0: member}
        )
