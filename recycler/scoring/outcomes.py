"""Outcomes of single items, from an engine's answers, and the scores that they add up to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from recycler.objectives.stats import clustered_mean, unseen_events_stderr
from recycler.scoring.scorers import SCORERS, Values, item_weight
from recycler.types import (
    Completion,
    Item,
    Loglikelihood,
    Objective,
    Outcome,
    Score,
)


def outcomes_of(
    items: Sequence[Item], completions: Sequence[Completion], likelihoods: Sequence[Loglikelihood]
) -> tuple[Outcome, ...]:
    """Outcomes from an engine's answers to `requests_of` these items."""
    generating = [item for item in items if item.kind == "generate"]
    return gather_outcomes(items, completions, likelihoods, start_texts(generating, completions))


def gather_outcomes(
    items: Sequence[Item],
    completions: Sequence[Completion],
    likelihoods: Sequence[Loglikelihood],
    finish: Callable[[], list[Values]],
) -> tuple[Outcome, ...]:
    """Outcomes in the order of the items.

    `finish` waits for the values of the generated answers, whose scoring has begun.
    """
    outcomes: dict[str, Outcome] = {}
    answers = iter(likelihoods)
    for item in items:
        if item.kind == "loglikelihood":
            own = [next(answers) for _ in item.continuations]
            values = SCORERS[item.scorer].values_of(item, own)
            outcomes[item.id] = Outcome(
                item=item.id,
                values=tuple(values.items()),
                num_tokens=sum(map(len, item.continuations)),
            )
    generating = [item for item in items if item.kind == "generate"]
    for item, completion, values in zip(generating, completions, finish(), strict=True):
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
    """Begin to score generated answers; the returned function waits for the values of each item."""
    waiting: list[tuple[list[int], Callable[[], list[Values]]]] = []
    for name in {item.scorer for item in items}:
        own = [index for index, item in enumerate(items) if item.scorer == name]
        wait = SCORERS[name].start(
            [items[index] for index in own], [completions[index] for index in own]
        )
        waiting.append((own, wait))

    def finish() -> list[Values]:
        values: dict[int, Values] = {}
        for own, wait in waiting:
            values.update(zip(own, wait(), strict=True))
        return [values[index] for index in range(len(items))]

    return finish


def aggregate(
    items: Sequence[Item], outcomes: Iterable[Outcome], objectives: Sequence[Objective]
) -> tuple[Score, ...]:
    """One score for each objective, from the outcomes of its items.

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
        figures = [values[item.id][objective.metric] for item in own]
        clusters = [item.cluster or item.id for item in own]
        weights = [item_weight(item, objective.metric) for item in own]
        value, stderr = clustered_mean(figures, clusters, weights)
        stderr = max(stderr, unseen_events_stderr(figures, len(set(clusters))))
        scores.append(Score(objective=objective.name, value=value, stderr=stderr, n=len(own)))
    return tuple(scores)
