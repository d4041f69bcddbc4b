"""Outcomes of single items, and the scores that they add up to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from recycler.objectives.stats import clustered_mean, unseen_events_stderr
from recycler.scoring.scorers import SCORERS, item_weight
from recycler.types import (
    Completion,
    Item,
    Loglikelihood,
    Objective,
    Outcome,
    Score,
)

Values = dict[str, float]


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
