"""Score one live model on frozen items: ask the engine once for everything, then turn answers into figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from recycler.engines.port import Engine
from recycler.scoring.scorers import SCORERS, item_weight
from recycler.stats import clustered_mean, unseen_events_stderr
from recycler.types import Completion, GenerateRequest, Item, LoglikelihoodRequest, Objective, Outcome, Recipe, Role, Score, Scorecard

Values = dict[str, float]


def score_recipe(engine: Engine, recipe: Recipe, items: Sequence[Item], objectives: Sequence[Objective], role: Role) -> Scorecard:
    """Put the recipe into the engine's weights and score it on the items of `role`."""
    started = time.monotonic()
    digest = engine.apply(recipe)
    merged = time.monotonic()
    outcomes = score_items(engine, items)
    return Scorecard(role=role, scores=aggregate(items, outcomes, objectives), outcomes=outcomes, weights_digest=digest, engine_fingerprint=engine.fingerprint,
                     num_tokens=sum(outcome.num_tokens for outcome in outcomes), merge_seconds=merged - started, score_seconds=time.monotonic() - merged)


def score_items(engine: Engine, items: Sequence[Item]) -> tuple[Outcome, ...]:
    """One outcome an item, in the order of the items. Programs run in the sandbox while the engine gives likelihoods."""
    texts = [item for item in items if item.kind == "generate"]
    likelihoods = [item for item in items if item.kind == "loglikelihood"]
    outcomes: dict[str, Outcome] = {}
    completions = engine.generate([GenerateRequest(prompt_ids=item.prompt_ids, max_new_tokens=item.max_new_tokens, stop=item.stop) for item in texts])
    finish = start_texts(texts, completions)
    requests = [LoglikelihoodRequest(context_ids=item.prompt_ids, continuation_ids=ids) for item in likelihoods for ids in item.continuations]
    answers = iter(engine.loglikelihood(requests))
    for item in likelihoods:
        own = [next(answers) for _ in item.continuations]
        values = SCORERS[item.scorer].score_likelihoods(item, own)
        outcomes[item.id] = Outcome(item=item.id, values=tuple(values.items()), num_tokens=sum(map(len, item.continuations)))
    for item, completion, values in zip(texts, completions, finish(), strict=True):
        outcomes[item.id] = Outcome(item=item.id, values=tuple(values.items()), output=completion.text, num_tokens=completion.num_tokens)
    return tuple(outcomes[item.id] for item in items)


def start_texts(items: Sequence[Item], completions: Sequence[Completion]) -> Callable[[], list[Values]]:
    """Begin to score answers; the function given back waits and gives one dict of values an item, in their order."""
    values: dict[int, Values] = {}
    waiting = []
    for name in {item.scorer for item in items}:
        scorer, own = SCORERS[name], [index for index, item in enumerate(items) if item.scorer == name]
        if scorer.start_texts:
            waiting.append((own, scorer.start_texts([items[index] for index in own], [completions[index] for index in own])))
        else:
            values |= {index: scorer.score_text(items[index], completions[index]) for index in own}

    def finish() -> list[Values]:
        for own, wait in waiting:
            values.update(zip(own, wait(), strict=True))
        return [values[index] for index in range(len(items))]

    return finish


def aggregate(items: Sequence[Item], outcomes: Iterable[Outcome], objectives: Sequence[Objective]) -> tuple[Score, ...]:
    """One score an objective from the outcomes of its items. Raises ValueError when an objective has no items."""
    values = {outcome.item: dict(outcome.values) for outcome in outcomes}
    scores = []
    for objective in objectives:
        own = [item for item in items if item.suite == objective.suite and objective.task in (None, item.task) and objective.metric in values.get(item.id, {})]
        figures, clusters = [values[item.id][objective.metric] for item in own], [item.cluster or item.id for item in own]
        value, stderr = clustered_mean(figures, clusters, [item_weight(item, objective.metric) for item in own])
        scores.append(Score(objective=objective.name, value=value, stderr=max(stderr, unseen_events_stderr(figures, len(set(clusters)))), n=len(own)))
    return tuple(scores)
