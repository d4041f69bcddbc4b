"""Score one live model on frozen items: the engine is asked once for everything.

outcomes.py turns what it answers into figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from recycler.digest import digest
from recycler.engines.port import Engine, SideBySide
from recycler.engines.watch import HopelessError, Watch, refuse_non_finite
from recycler.scoring.outcomes import aggregate, gather_outcomes, outcomes_of, start_texts
from recycler.scoring.result_cache import ResultCache
from recycler.scoring.sandbox.code import may_differ_next_time
from recycler.scoring.scorers import Values
from recycler.types import (
    UNMERGED,
    Completion,
    Failure,
    GenerateRequest,
    Item,
    Loglikelihood,
    LoglikelihoodRequest,
    Objective,
    Outcome,
    Recipe,
    Role,
    Scorecard,
)

Questions = tuple[list[GenerateRequest], list[LoglikelihoodRequest]]
Answers = tuple[list[Completion], list[Loglikelihood]]


def score_recipe(
    engine: Engine,
    recipe: Recipe,
    items: Sequence[Item],
    objectives: Sequence[Objective],
    role: Role,
    *,
    gated: bool = False,
    cache: ResultCache | None = None,
) -> Scorecard:
    """Put the recipe into the engine's weights and score it on those items that `cache` lacks.

    `items` are those of `role`. A known answer whose program did not pass is judged again, which
    costs no engine time. `gated`: weights that yield no finite numbers, or nothing but degenerate
    output, are given up early. Raises HopelessError then.
    """
    started = time.monotonic()
    weights = engine.apply(recipe)
    merged = time.monotonic()
    known: dict[str, Outcome] = {}
    if cache:
        known = cache.read(weights, engine.fingerprint, items)
    asked = [item for item in items if item.id not in known]
    found = [item for item in items if item.id in known]
    unsure = [item for item in found if may_differ_next_time(item, known[item.id])]
    judging = _judge_again(unsure, known)
    new: dict[str, Outcome] = {}
    if asked:
        new = {outcome.item: outcome for outcome in score_items(engine, asked, gated=gated)}
    for item, values in zip(unsure, judging(), strict=True):
        known[item.id] = replace(known[item.id], values=tuple(values.items()))
    if cache and (asked or unsure):
        cache.write(weights, engine.fingerprint, [*asked, *unsure], known | new)
    outcomes = tuple(new.get(item.id) or known[item.id] for item in items)
    return Scorecard(
        role=role,
        scores=aggregate(items, outcomes, objectives),
        outcomes=outcomes,
        weights_digest=weights,
        engine_fingerprint=engine.fingerprint,
        num_tokens=sum(outcome.num_tokens for outcome in new.values()),
        merge_seconds=merged - started,
        score_seconds=time.monotonic() - merged,
    )


def _judge_again(items: Sequence[Item], known: dict[str, Outcome]) -> Callable[[], list[Values]]:
    """Begin to score known answers once more; the returned function waits for their values."""
    answers = [known[item.id] for item in items]
    completions = [
        Completion(text=answer.output, num_tokens=answer.num_tokens, finish="stop")
        for answer in answers
    ]
    return start_texts(items, completions)


def score_side_by_side(
    engine: SideBySide,
    recipes: Sequence[Recipe],
    items: Sequence[Sequence[Item]],
    objectives: Sequence[Objective],
    role: Role,
    gated: Sequence[bool],
) -> tuple[Scorecard | Failure, ...]:
    """Score several recipes in one batch, each on its own items, without merging any.

    Each scorecard says so and bears an equal part of the time. Those of `gated` that yield no
    finite numbers get the Failure that they would get alone, and are asked nothing more. Degenerate
    output is not looked for, and no cache is asked: it goes by the digests of merged weights, and
    here there are none.
    """
    started = time.monotonic()
    names = engine.side_by_side(recipes)
    loaded = time.monotonic()
    failures = _probe_all(engine, names, items, gated)
    asked: list[Sequence[Item]] = []
    for failure, own in zip(failures, items, strict=True):
        asked.append(() if failure else own)
    questions = [requests_of(own, name) for own, name in zip(asked, names, strict=True)]
    answers = _ask_at_once(engine, questions)
    outcomes = [outcomes_of(own, *answer) for own, answer in zip(asked, answers, strict=True)]
    merge_seconds = (loaded - started) / len(recipes)
    score_seconds = (time.monotonic() - loaded) / len(recipes)
    results: list[Scorecard | Failure] = []
    for failure, recipe, own, found in zip(failures, recipes, items, outcomes, strict=True):
        results.append(
            failure
            or Scorecard(
                role=role,
                scores=aggregate(own, found, objectives),
                outcomes=found,
                weights_digest=UNMERGED + digest(recipe),
                engine_fingerprint=f"{engine.fingerprint}, unmerged adapter",
                num_tokens=sum(outcome.num_tokens for outcome in found),
                merge_seconds=merge_seconds,
                score_seconds=score_seconds,
            )
        )
    return tuple(results)


def _ask_at_once(engine: Engine, questions: Sequence[Questions]) -> list[Answers]:
    """Ask the questions of several merges in one batch of each kind."""
    completions = iter(engine.generate([request for texts, _ in questions for request in texts]))
    likelihoods = iter(
        engine.loglikelihood([request for _, forced in questions for request in forced])
    )
    return [
        ([next(completions) for _ in texts], [next(likelihoods) for _ in forced])
        for texts, forced in questions
    ]


def _probe_all(
    engine: Engine, names: Sequence[str], items: Sequence[Sequence[Item]], gated: Sequence[bool]
) -> list[Failure | None]:
    """The Failure of each gated merge that yields no finite numbers, probed in one batch."""
    failures: list[Failure | None] = [None] * len(names)
    probed = [index for index, gate in enumerate(gated) if gate and items[index]]
    probes = [_probe(items[index][0], names[index]) for index in probed]
    for index, answer in zip(probed, engine.loglikelihood(probes), strict=True):
        try:
            refuse_non_finite([answer])
        except HopelessError as error:
            failures[index] = Failure(blame="recipe", reason=str(error))
    return failures


def score_items(
    engine: Engine, items: Sequence[Item], *, gated: bool = False
) -> tuple[Outcome, ...]:
    """One outcome for each item, in the order of the items.

    Each answer is scored as it ends; programs run in the sandbox meanwhile.
    """
    texts, likelihoods = requests_of(items)
    if gated and items:
        refuse_non_finite(engine.loglikelihood([_probe(items[0])]))
    generating = [item for item in items if item.kind == "generate"]
    waiting: dict[int, Callable[[], list[Values]]] = {}

    def start(index: int, completion: Completion) -> None:
        waiting[index] = start_texts([generating[index]], [completion])

    def finish() -> list[Values]:
        return [waiting[index]()[0] for index in range(len(generating))]

    completions = engine.generate(texts, Watch(done=start, gate=gated))
    return gather_outcomes(items, completions, engine.loglikelihood(likelihoods), finish)


def _probe(item: Item, merge: str = "") -> LoglikelihoodRequest:
    """The shortest request that shows if weights yield numbers.

    It asks for the last token of a prompt after the tokens before it.
    """
    ids = item.prompt_ids * 2
    if len(item.prompt_ids) > 1:
        ids = item.prompt_ids[:32]
    return LoglikelihoodRequest(context_ids=ids[:-1], continuation_ids=ids[-1:], merge=merge)


def requests_of(items: Sequence[Item], merge: str = "") -> Questions:
    """Requests to an engine for these items; a choice is one request for each option.

    `merge`: one of the merges that it holds side by side, "" for its live weights.
    """
    texts = [
        GenerateRequest(
            prompt_ids=item.prompt_ids,
            max_new_tokens=item.max_new_tokens,
            stop=item.stop,
            merge=merge,
        )
        for item in items
        if item.kind == "generate"
    ]
    likelihoods = [
        LoglikelihoodRequest(context_ids=item.prompt_ids, continuation_ids=ids, merge=merge)
        for item in items
        if item.kind == "loglikelihood"
        for ids in item.continuations
    ]
    return texts, likelihoods
