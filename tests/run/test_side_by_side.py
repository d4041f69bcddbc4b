"""Merges scored side by side, unmerged: what proposes is quick, what ships is merged and asked
everything again.
"""

from dataclasses import dataclass, replace

import pytest

from fakes import OBJECTIVES, Killed
from item_search import POOL, SEARCH, ItemWorkers, fidelity, run
from recycler.cluster.workers import MAX_ATTEMPTS, LocalWorkers, Request, ScoringWorker, Work
from recycler.engines.live import check_generate, check_loglikelihood
from recycler.engines.watch import LOGPROB_FLOOR
from recycler.errors import UnsafeInputError, UsageError
from recycler.export.export import export_recipe
from recycler.results.front import read_front
from recycler.testing import make_pico_pool
from recycler.types import (
    UNMERGED,
    Completion,
    Failure,
    GenerateRequest,
    Loglikelihood,
    LoglikelihoodRequest,
    Recipe,
    Scorecard,
    Trial,
)

WORK = Work(
    pool=POOL, engine="fake", items=SEARCH, objectives=OBJECTIVES, settings={"lora_batch": 3}
)


def recipe(*weights):
    return Recipe(method="linear", members=POOL.names, weights=(weights,), base="base")


# ---------------------------------------------------------------- the worker


class Engine:
    """Says what it was asked, by which weights."""

    fingerprint = "fake"

    def __init__(self):
        self.live, self.beside, self.batches = None, {}, []

    def apply(self, merged):
        self.live, self.beside = merged, {}
        return f"digest of {merged.weights}"

    def side_by_side(self, recipes):
        if any(found.method != "linear" for found in recipes):
            raise UsageError("no sum of adapters")
        self.beside = {
            f"merge-{len(self.batches)}-{index}": found for index, found in enumerate(recipes)
        }
        self.batches.append(len(recipes))
        return tuple(self.beside)

    def _weights(self, request):
        return (self.beside[request.merge] if request.merge else self.live).weights[0]

    def generate(self, requests, watch=None):
        answers = [
            Completion(text=str(self._weights(request)), num_tokens=1, finish="stop")
            for request in requests
        ]
        for index, answer in enumerate(answers if watch else ()):
            watch.done(index, answer)
        return answers

    def loglikelihood(self, requests):
        return [
            Loglikelihood(
                logprob=-sum(self._weights(request)),
                token_logprobs=(-sum(self._weights(request)),),
                is_greedy=False,
            )
            for request in requests
        ]

    def close(self):
        pass


def test_a_worker_takes_what_need_not_be_merged_together_and_all_else_alone():
    engine = Engine()
    workers = LocalWorkers(WORK, build=lambda work: ScoringWorker(work, engine))
    assert workers.num_workers == 3
    merged, beside = [0, 3], [1, 2, 4, 5, 6]
    for number in range(7):
        workers.submit(
            Request(
                number=number,
                recipe=recipe(float(number), 1.0, 0.0, 0.0),
                role="search",
                items=tuple(item.id for item in SEARCH[number:-1]),
                unmerged=number in beside,
            )
        )
    taken = []
    while sum(map(len, taken)) < 7:
        taken.append(workers.wait())
    assert [[result.number for result in results] for results in taken] == [
        [0],
        [1, 2, 4],
        [3],
        [5, 6],
    ] and engine.batches == [3, 2]
    for result in (result for results in taken for result in results):
        card = result.answer
        assert isinstance(card, Scorecard) and card.weights_digest.startswith(UNMERGED) == (
            result.number not in merged
        )
        assert [outcome.item for outcome in card.outcomes] == [
            item.id for item in SEARCH[result.number : -1]
        ], "each was asked its own items"
        assert {outcome.output for outcome in card.outcomes if "/a/" in outcome.item} == {
            str((float(result.number), 1.0, 0.0, 0.0))
        }, "and answered by its own weights"


def test_what_is_no_sum_of_adapters_is_merged():
    engine = Engine()
    workers = LocalWorkers(WORK, build=lambda work: ScoringWorker(work, engine))
    for number, method in enumerate(("linear", "ties")):
        own = replace(recipe(1.0, 0.0, 0.0, 0.0), method=method)
        workers.submit(Request(number=number, recipe=own, role="search", unmerged=True))
    assert [result.answer.weights_digest for result in workers.wait()] == [
        "digest of ((1.0, 0.0, 0.0, 0.0),)"
    ] * 2


class Overflowing(Engine):
    """Weights above a thousand give no finite numbers."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def generate(self, requests, watch=None):
        self.asked += [request.merge for request in requests]
        return super().generate(requests, watch)

    def loglikelihood(self, requests):
        return [
            replace(answer, token_logprobs=(LOGPROB_FLOOR,))
            if max(self._weights(request)) > 1000
            else answer
            for request, answer in zip(requests, super().loglikelihood(requests), strict=True)
        ]


@pytest.mark.parametrize("gated", [True, False])
def test_a_merge_whose_numbers_are_not_finite_fails_in_a_batch_as_it_fails_alone(gated):
    """The others of the batch go on, and nothing more is asked of it.

    Members and soups, which are not gated, are never given up.
    """
    found, engines = [], []
    for unmerged in (False, True):
        engines.append(Overflowing())
        workers, results = (
            LocalWorkers(WORK, build=lambda work: ScoringWorker(work, engines[-1])),
            [],
        )
        for number, weight in enumerate((1.0, 1e6, 2.0)):
            own = recipe(weight, 0.0, 0.0, 0.0)
            workers.submit(
                Request(number=number, recipe=own, role="search", gated=gated, unmerged=unmerged)
            )
        while len(results) < 3:
            results += workers.wait()
        found.append([result.answer for result in results])
    alone, batched = found
    assert engines[-1].batches == [3] and [type(answer) for answer in alone] == [
        type(answer) for answer in batched
    ] == [Scorecard, Failure if gated else Scorecard, Scorecard]
    assert (
        not gated
        or alone[1] == batched[1]
        and batched[1].blame == "recipe"
        and "not finite" in batched[1].reason
    )
    assert [alone[index].scores for index in (0, 2)] == [batched[index].scores for index in (0, 2)]
    assert ("merge-0-1" in engines[-1].asked) is not gated and {"merge-0-0", "merge-0-2"} <= set(
        engines[-1].asked
    )


def test_an_engine_that_breaks_in_mid_batch_is_built_anew_and_loses_no_trial():
    class Breaking(Engine):
        def generate(self, requests, watch=None):
            raise RuntimeError("a process of vLLM has died")

    engines = [Breaking(), Engine()]
    workers = LocalWorkers(WORK, build=lambda work: ScoringWorker(work, engines.pop(0)))
    for number in range(3):
        own = recipe(1.0, 0.0, 0.0, float(number))
        workers.submit(Request(number=number, recipe=own, role="search", unmerged=True))
    results = workers.wait()
    assert (
        [result.number for result in results] == [0, 1, 2]
        and all(isinstance(result.answer, Scorecard) for result in results)
        and not engines
    )
    engines += [Breaking() for _ in range(MAX_ATTEMPTS + 1)]
    workers = LocalWorkers(WORK, build=lambda work: ScoringWorker(work, engines.pop()))
    for number in range(2):
        own = recipe(1.0, 0.0, 0.0, float(number))
        workers.submit(Request(number=number, recipe=own, role="search", unmerged=True))
    assert [(result.number, result.answer.blame) for result in workers.wait()] == [
        (0, "system"),
        (1, "system"),
    ]


@pytest.mark.parametrize(
    ("check", "request_"),
    [
        (check_generate, GenerateRequest(prompt_ids=(1,), max_new_tokens=1, merge="merge-1")),
        (
            check_loglikelihood,
            LoglikelihoodRequest(context_ids=(1,), continuation_ids=(1,), merge="merge-1"),
        ),
    ],
)
def test_an_engine_of_one_model_refuses_to_answer_for_another(check, request_):
    with pytest.raises(UsageError, match="lora_batch"):
        check([request_], 10)


# ---------------------------------------------------------------- the search


@dataclass
class Unmerged(ItemWorkers):
    """Scores an unmerged trial a little off, as rounding would."""

    num_workers: int = 4

    def submit(self, request):
        seed = request.recipe.seed + 1000 * request.unmerged
        super().submit(replace(request, recipe=replace(request.recipe, seed=seed)))

    def answer(self, recipe, role, items):
        unmerged, true = recipe.seed >= 1000, replace(recipe, seed=recipe.seed % 1000)
        card = super().answer(true, role, items)
        if not unmerged:
            return card
        nudged = tuple(
            replace(outcome, values=tuple((name, value + 1e-4) for name, value in outcome.values))
            for outcome in card.outcomes
        )
        return replace(card, outcomes=nudged, weights_digest=UNMERGED + str(true.weights))


@pytest.mark.parametrize("items_per_task", [None, 60])
def test_whatever_ships_was_merged_and_asked_everything(tmp_path, items_per_task):
    """Members and soups are merged from the start; proposals are not; finalists are, and no answer
    of an adapter stays with them.
    """
    rules = replace(fidelity(items_per_task), unmerged=True)
    trials, outcomes, _ = run(tmp_path / "ledger.sqlite", Unmerged(), rules)
    assert not any(trial.is_unmerged for trial in trials if not trial.is_proposed)
    assert any(trial.is_unmerged for trial in trials)
    finalists = read_front(trials, OBJECTIVES, POOL, "bfloat16").finalists
    assert any(trial.is_proposed for trial in finalists)
    for trial in finalists:
        dense = ItemWorkers().answer(trial.recipe, "search", None)
        assert trial.weights_digest == dense.weights_digest and trial.holdout
        assert {outcome.item: outcome.values for outcome in outcomes[trial.number]} == {
            outcome.item: outcome.values for outcome in dense.outcomes
        }
        assert {score.objective: score.value for score in trial.search} == {
            score.objective: score.value for score in dense.scores
        }


def test_killed_and_resumed_it_confirms_the_same_finalists(tmp_path):
    rules = replace(fidelity(60), unmerged=True)
    whole = run(tmp_path / "whole.sqlite", Unmerged(num_workers=1), rules)
    for kill_after in (0, 3, 9, 4, 6, 2, 1):
        with pytest.raises(Killed):
            run(tmp_path / "killed.sqlite", Unmerged(num_workers=1, kill_after=kill_after), rules)
    assert run(tmp_path / "killed.sqlite", Unmerged(num_workers=1), rules) == whole


def test_a_trial_that_was_never_merged_is_not_exported_as_if_it_had_been_scored(tmp_path):
    pool = make_pico_pool(tmp_path)
    half = Recipe(method="linear", members=pool.names, weights=((0.5, 0.5, 0.0),), base="base")
    with pytest.raises(UnsafeInputError, match="unmerged"):
        export_recipe(
            half,
            pool,
            tmp_path / "out",
            trial=Trial(
                number=7, kind="merge", state="SCORED", recipe=half, weights_digest=f"{UNMERGED}abc"
            ),
        )
    assert not (tmp_path / "out").exists()
