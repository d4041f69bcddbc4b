"""Score one live model on frozen items: ask the engine once for everything, then turn answers into
figures.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from recycler.digest import digest
from recycler.engines.port import Engine, SideBySide
from recycler.engines.watch import HopelessError, Watch, refuse_non_finite
from recycler.scoring.outcomes import _outcomes, aggregate, outcomes_of, start_texts
from recycler.scoring.result_cache import ResultCache
from recycler.scoring.sandbox.code import may_differ_next_time
from recycler.types import (
    UNMERGED,
    Completion,
    Failure,
    GenerateRequest,
    Item,
    LoglikelihoodRequest,
    Objective,
    Outcome,
    Recipe,
    Role,
    Scorecard,
)


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
    """Put the recipe into the engine's weights and score it on the items of `role`, as far as the
    cache does not know them.

    A known answer whose program did not pass is judged again, which costs no engine time. `gated`:
    weights that give no finite numbers, or nothing but babble, are given up early. Raises
    HopelessError then.
    """
    started = time.monotonic()
    applied = engine.apply(recipe)
    merged = time.monotonic()
    found = cache.read(applied, engine.fingerprint, items) if cache else {}
    asked = [item for item in items if item.id not in found]
    unsure = [
        item for item in items if item.id in found and may_differ_next_time(item, found[item.id])
    ]
    judging = start_texts(
        unsure,
        [
            Completion(
                text=found[item.id].output, num_tokens=found[item.id].num_tokens, finish="stop"
            )
            for item in unsure
        ],
    )
    new = {
        outcome.item: outcome
        for outcome in (score_items(engine, asked, gated=gated) if asked else ())
    }
    found |= {
        item.id: replace(found[item.id], values=tuple(values.items()))
        for item, values in zip(unsure, judging(), strict=True)
    }
    if cache and (asked or unsure):
        cache.write(applied, engine.fingerprint, [*asked, *unsure], found | new)
    outcomes = tuple(new.get(item.id) or found[item.id] for item in items)
    return Scorecard(
        role=role,
        scores=aggregate(items, outcomes, objectives),
        outcomes=outcomes,
        weights_digest=applied,
        engine_fingerprint=engine.fingerprint,
        num_tokens=sum(outcome.num_tokens for outcome in new.values()),
        merge_seconds=merged - started,
        score_seconds=time.monotonic() - merged,
    )


def score_side_by_side(
    engine: SideBySide,
    recipes: Sequence[Recipe],
    items: Sequence[Sequence[Item]],
    objectives: Sequence[Objective],
    role: Role,
    gated: Sequence[bool],
) -> tuple[Scorecard | Failure, ...]:
    """Score several recipes in one batch, each on its own items, without merging any; each
    scorecard says so and bears an equal part of the time.

    Those of `gated` that give no finite numbers get the Failure that they would get alone, and are
    asked nothing more. Babble is not looked for, and no cache is asked: it goes by the digests of
    merged weights, and here there are none.
    """
    started = time.monotonic()
    names = engine.side_by_side(recipes)
    loaded = time.monotonic()
    hopeless = _hopeless(engine, names, items, gated)
    asked = [
        ([], []) if failed else requests_of(own, name)
        for failed, own, name in zip(hopeless, items, names, strict=True)
    ]
    completions = iter(engine.generate([request for texts, _ in asked for request in texts]))
    likelihoods = iter(engine.loglikelihood([request for _, taught in asked for request in taught]))
    answers = [
        ([next(completions) for _ in texts], [next(likelihoods) for _ in taught])
        for texts, taught in asked
    ]
    outcomes = [
        () if failed else outcomes_of(own, *answer)
        for failed, own, answer in zip(hopeless, items, answers, strict=True)
    ]
    merge_seconds, score_seconds = (
        (loaded - started) / len(recipes),
        (time.monotonic() - loaded) / len(recipes),
    )
    return tuple(
        failed
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
        for failed, recipe, own, found in zip(hopeless, recipes, items, outcomes, strict=True)
    )


def _hopeless(
    engine: Engine, names: Sequence[str], items: Sequence[Sequence[Item]], gated: Sequence[bool]
) -> list[Failure | None]:
    """Why each merge is given up, where it is gated and gives no finite numbers; all are probed in
    one batch.
    """
    failures: list[Failure | None] = [None] * len(names)
    probed = [index for index, gate in enumerate(gated) if gate and items[index]]
    for index, answer in zip(
        probed,
        engine.loglikelihood([_probe(items[index][0], names[index]) for index in probed]),
        strict=True,
    ):
        try:
            refuse_non_finite([answer])
        except HopelessError as error:
            failures[index] = Failure(blame="recipe", reason=str(error))
    return failures


def score_items(
    engine: Engine, items: Sequence[Item], *, gated: bool = False
) -> tuple[Outcome, ...]:
    """One outcome an item, in the order of the items.

    Each answer is scored as it ends; programs run in the sandbox meanwhile.
    """
    texts, likelihoods = requests_of(items)
    if gated and items:
        refuse_non_finite(engine.loglikelihood([_probe(items[0])]))
    own, waiting = [item for item in items if item.kind == "generate"], {}
    completions = engine.generate(
        texts,
        Watch(
            done=lambda index, completion: waiting.update(
                {index: start_texts([own[index]], [completion])}
            ),
            gate=gated,
        ),
    )
    return _outcomes(
        items,
        completions,
        engine.loglikelihood(likelihoods),
        lambda: [waiting[index]()[0] for index in range(len(own))],
    )


def _probe(item: Item, merge: str = "") -> LoglikelihoodRequest:
    """The shortest question to weights whether they give numbers: the last token of a prompt after
    what stands before it.
    """
    ids = item.prompt_ids[:32] if len(item.prompt_ids) > 1 else item.prompt_ids * 2
    return LoglikelihoodRequest(context_ids=ids[:-1], continuation_ids=ids[-1:], merge=merge)


def requests_of(
    items: Sequence[Item], merge: str = ""
) -> tuple[list[GenerateRequest], list[LoglikelihoodRequest]]:
    """What an engine is asked for these items, of one of the merges that it holds side by side or
    of its live weights; a choice is one request an option.
    """
    return (
        [
            GenerateRequest(
                prompt_ids=item.prompt_ids,
                max_new_tokens=item.max_new_tokens,
                stop=item.stop,
                merge=merge,
            )
            for item in items
            if item.kind == "generate"
        ],
        [
            LoglikelihoodRequest(context_ids=item.prompt_ids, continuation_ids=ids, merge=merge)
            for item in items
            if item.kind == "loglikelihood"
            for ids in item.continuations
        ],
    )
