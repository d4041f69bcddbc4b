"""Score one live model on frozen items: ask the engine once for everything, then turn answers into
figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from recycler.digest import digest
from recycler.engines.port import Engine, SideBySide
from recycler.engines.watch import HopelessError, Watch, refuse_non_finite
from recycler.scoring.code import may_differ_next_time
from recycler.scoring.result_cache import ResultCache
from recycler.scoring.scorers import SCORERS, item_weight
from recycler.stats import clustered_mean, unseen_events_stderr
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
    Score,
    Scorecard,
)

Values = dict[str, float]


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


def outcomes_of(
    items: Sequence[Item], completions: Sequence[Completion], likelihoods: Sequence[Loglikelihood]
) -> tuple[Outcome, ...]:
    """Outcomes from what an engine answered to `requests_of` these items."""
    return _outcomes(
        items,
        completions,
        likelihoods,
        start_texts([item for item in items if item.kind == "generate"], completions),
    )


def _outcomes(
    items: Sequence[Item],
    completions: Sequence[Completion],
    likelihoods: Sequence[Loglikelihood],
    finish: Callable[[], list[Values]],
) -> tuple[Outcome, ...]:
    answers, outcomes = iter(likelihoods), {}
    for item in items:
        if item.kind == "loglikelihood":
            values = SCORERS[item.scorer].score_likelihoods(
                item, [next(answers) for _ in item.continuations]
            )
            outcomes[item.id] = Outcome(
                item=item.id,
                values=tuple(values.items()),
                num_tokens=sum(map(len, item.continuations)),
            )
    for item, completion, values in zip(
        [item for item in items if item.kind == "generate"], completions, finish(), strict=True
    ):
        outcomes[item.id] = Outcome(
            item=item.id,
            values=tuple(values.items()),
            output=completion.text,
            num_tokens=completion.num_tokens,
        )
    return tuple(outcomes[item.id] for item in items)


def start_texts(
    items: Sequence[Item], completions: Sequence[Completion]
) -> Callable[[], list[Values]]:
    """Begin to score answers; the function given back waits and gives one dict of values an item,
    in their order.
    """
    values: dict[int, Values] = {}
    waiting = []
    for name in {item.scorer for item in items}:
        scorer, own = (
            SCORERS[name],
            [index for index, item in enumerate(items) if item.scorer == name],
        )
        if scorer.start_texts:
            waiting.append(
                (
                    own,
                    scorer.start_texts(
                        [items[index] for index in own], [completions[index] for index in own]
                    ),
                )
            )
        else:
            values |= {index: scorer.score_text(items[index], completions[index]) for index in own}

    def finish() -> list[Values]:
        for own, wait in waiting:
            values.update(zip(own, wait(), strict=True))
        return [values[index] for index in range(len(items))]

    return finish


def aggregate(
    items: Sequence[Item], outcomes: Iterable[Outcome], objectives: Sequence[Objective]
) -> tuple[Score, ...]:
    """One score an objective from the outcomes of its items.

    Raises ValueError when an objective has no items.
    """
    values = {outcome.item: dict(outcome.values) for outcome in outcomes}
    scores = []
    for objective in objectives:
        own = [
            item
            for item in items
            if item.suite == objective.suite
            and objective.task in (None, item.task)
            and objective.metric in values.get(item.id, {})
        ]
        figures, clusters = (
            [values[item.id][objective.metric] for item in own],
            [item.cluster or item.id for item in own],
        )
        value, stderr = clustered_mean(
            figures, clusters, [item_weight(item, objective.metric) for item in own]
        )
        scores.append(
            Score(
                objective=objective.name,
                value=value,
                stderr=max(stderr, unseen_events_stderr(figures, len(set(clusters)))),
                n=len(own),
            )
        )
    return tuple(scores)
