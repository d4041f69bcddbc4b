"""What counts as right, scorer by scorer, and how items become figures."""

from __future__ import annotations

import json
import math

import pytest

from recycler.scoring.evaluate import score_items
from recycler.scoring.outcomes import aggregate
from recycler.scoring.scorers import SCORERS, item_metrics, item_weight, lm_eval_filter
from recycler.types import Completion, Item, Loglikelihood, Objective, Outcome


def item(**changes) -> Item:
    fields = {
        "id": "s/t/0",
        "suite": "s",
        "task": "t",
        "role": "search",
        "kind": "generate",
        "scorer": "exact_match",
        "prompt": "p",
        "prompt_ids": (1,),
        "gold": "8",
    }
    return Item(**fields | changes)


def said(text: str) -> Completion:
    return Completion(text=text, num_tokens=3, finish="stop")


def likely(logprob: float, tokens: int = 1) -> Loglikelihood:
    return Loglikelihood(
        logprob=logprob, token_logprobs=(logprob / tokens,) * tokens, is_greedy=False
    )


@pytest.mark.parametrize(("text", "right"), [("8", 1), (" 8\n", 1), ("8.", 0), ("", 0), ("88", 0)])
def test_exact_match_minds_everything_but_outer_spaces(text, right):
    assert SCORERS["exact_match"].score_text(item(), said(text)) == {"exact_match": right}


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("It is $1,234.00.", "1234", 1),
        ("so -3", "-3", 1),
        ("5 + 3 = 8", "8", 1),
        ("8 then 9", "8", 0),
        ("none", "8", 0),
        (".5", "0.50", 1),
        ("1e", "1", 1),
        ("7-8", "8", 0),
    ],
)
def test_number_match_compares_the_last_number_as_a_decimal(text, gold, right):
    assert SCORERS["number_match"].score_text(item(gold=gold), said(text)) == {"exact_match": right}


def test_bits_per_byte_of_a_uniform_model_is_its_entropy():
    """Two tokens of a vocabulary of 256, four bytes: 16 bits over 4 bytes."""
    own = item(kind="loglikelihood", scorer="bits_per_byte", num_bytes=4)
    assert SCORERS["bits_per_byte"].score_likelihoods(own, [likely(2 * math.log(1 / 256))]) == {
        "bits_per_byte": pytest.approx(4.0)
    }


def test_choice_normalises_by_the_characters_of_the_choice():
    own = item(
        kind="loglikelihood",
        scorer="choice",
        gold="1",
        detail=(("choices", json.dumps(["no", "yes, of course"])),),
    )
    assert SCORERS["choice"].score_likelihoods(own, [likely(-2.0), likely(-7.0)]) == {
        "acc": 0.0,
        "acc_norm": 1.0,
    }
    assert SCORERS["choice"].score_likelihoods(
        item(kind="loglikelihood", scorer="choice", gold="-1"), [likely(-1.0), likely(-2.0)]
    ) == {"acc": 0.0, "acc_norm": 0.0}
    assert (
        SCORERS["choice"].score_likelihoods(
            item(kind="loglikelihood", scorer="choice", gold="0"), [likely(-1.0), likely(-1.0)]
        )["acc"]
        == 1.0
    )  # the first of equals


FLEXIBLE = {
    "function": "regex",
    "group_select": -1,
    "regex_pattern": r"(-?[$0-9.,]{2,})|(-?[0-9]+)",
}


@pytest.mark.parametrize(
    ("text", "answer"),
    [("5 and $70.", "$70."), ("so 7", "7"), ("", "[invalid]"), ("x", "[invalid]")],
)
def test_lm_eval_filters(text, answer):
    assert lm_eval_filter([FLEXIBLE, {"function": "take_first"}], text) == answer


def test_lm_eval_match_gives_a_metric_for_each_filter():
    match = {
        "filters": {
            "exact_match,strict-match": [
                {"function": "regex", "regex_pattern": r"#### (\-?[0-9\.\,]+)"}
            ],
            "exact_match,flexible-extract": [FLEXIBLE],
        },
        "exact_match": {
            "ignore_case": True,
            "regexes_to_ignore": [",", r"\$", "(?s).*#### ", r"\.$"],
        },
    }
    own = item(
        scorer="lm_eval_match",
        gold="blah\n#### 1,070",
        detail=(("match", json.dumps(match)), ("metrics", json.dumps(list(match["filters"])))),
    )
    score = SCORERS["lm_eval_match"].score_text
    assert score(own, said("#### 1070 or 3")) == {
        "exact_match,strict-match": 1.0,
        "exact_match,flexible-extract": 0.0,
    }
    assert score(own, said("it is $1,070.")) == {
        "exact_match,strict-match": 0.0,
        "exact_match,flexible-extract": 1.0,
    }
    assert item_metrics(own) == ("exact_match,strict-match", "exact_match,flexible-extract")


def test_items_weigh_by_bytes_or_by_instructions_or_alike():
    assert item_weight(item(scorer="bits_per_byte", num_bytes=7), "bits_per_byte") == 7.0
    assert item_weight(item(scorer="lm_eval", detail=(("weights", '{"inst": 3}'),)), "inst") == 3.0
    assert (
        item_weight(item(scorer="lm_eval", detail=(("weights", '{"inst": 3}'),)), "prompt") == 1.0
    )
    assert item_weight(item(), "exact_match") == 1.0


def test_bits_per_byte_is_a_ratio_of_sums():
    items = [
        item(id=str(size), kind="loglikelihood", scorer="bits_per_byte", num_bytes=size)
        for size in (10, 30)
    ]
    outcomes = [
        Outcome(item="10", values=(("bits_per_byte", 1.0),)),
        Outcome(item="30", values=(("bits_per_byte", 2.0),)),
    ]
    (score,) = aggregate(
        items, outcomes, [Objective(suite="s", metric="bits_per_byte", direction="minimize")]
    )
    assert score.value == pytest.approx((10 * 1.0 + 30 * 2.0) / 40) and score.n == 2


class _Echo:
    """An engine that answers with the prompt's first id, and finds every token equally likely."""

    def generate(self, requests, watch=None):
        completions = [said(str(request.prompt_ids[0])) for request in requests]
        for index, completion in enumerate(completions):
            watch.done(index, completion)
        return completions

    def loglikelihood(self, requests):
        return [
            likely(-float(len(request.continuation_ids)), len(request.continuation_ids))
            for request in requests
        ]


def test_outcomes_come_in_the_order_of_the_items_whatever_their_kind():
    items = [
        item(id="a", prompt_ids=(8,)),
        item(
            id="b",
            kind="loglikelihood",
            scorer="bits_per_byte",
            continuations=((1, 2),),
            num_bytes=2,
        ),
        item(id="c", prompt_ids=(9,)),
        item(id="d", kind="loglikelihood", scorer="choice", gold="0", continuations=((1,), (1, 2))),
    ]
    outcomes = score_items(_Echo(), items)
    assert [outcome.item for outcome in outcomes] == ["a", "b", "c", "d"]
    assert [dict(outcome.values) for outcome in outcomes][::2] == [
        {"exact_match": 1.0},
        {"exact_match": 0.0},
    ]
    assert (
        dict(outcomes[1].values)["bits_per_byte"] == pytest.approx(1 / math.log(2))
        and dict(outcomes[3].values)["acc"] == 1.0
    )
    assert [outcome.num_tokens for outcome in outcomes] == [3, 2, 3, 3]


def test_every_scorer_says_how_it_is_asked():
    for name, scorer in SCORERS.items():
        assert (
            sum(map(bool, (scorer.score_text, scorer.score_likelihoods, scorer.start_texts))) == 1
        ), name
        assert scorer.kind == ("loglikelihood" if scorer.score_likelihoods else "generate")
