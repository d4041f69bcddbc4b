"""Insight into a run: a preview from its members alone, and an explanation of a merge's scores.

The preview is written down as soon as the members are scored, so that nobody can think it was made
afterwards; how far it was off is added when the search has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recycler.errors import NotFoundError, Problem
from recycler.ledger import Ledger
from recycler.ledger.facts import Outlook
from recycler.ledger.runs import open_ledger
from recycler.objectives.costs import benchmarks
from recycler.results.attribution import SearchModel
from recycler.results.documents import choice_document
from recycler.results.explanation import why_document
from recycler.results.front import choose, read_front
from recycler.results.measured_costs import read_costs
from recycler.results.preview import Preview
from recycler.search.outlook import FORECAST_TRIALS, GainForecast
from recycler.search.refine import refined_from
from recycler.search.simplex.proposer import SimplexProposer
from recycler.specs.space import SearchSpace
from recycler.types import Item, Objective, Trial, scored_members


def write_space(ledger: Ledger, space: SearchSpace, method: str) -> None:
    """Keep the space of a run, so that its model can be fitted later without the job's files."""
    if ledger.facts.space is None:
        ledger.facts.space = space
        ledger.facts.method = method


def write_preview(
    ledger: Ledger, items: Sequence[Item], objectives: Sequence[Objective], num_members: int
) -> dict[str, Any] | None:
    """Preview a run once all its members are scored; None before.

    A later call only brings the errors of the preview up to date. Costs are left out, since they
    are known and need no guess.
    """
    trials = ledger.trials()
    members = scored_members(trials)
    if len(members) < max(2, num_members):
        return None
    outcomes = {trial.number: ledger.outcomes(trial.number, "search") for trial in members}
    search_items = [item for item in items if item.role == "search"]
    preview = Preview(members, outcomes, search_items, benchmarks(objectives))
    stored = ledger.facts.preview
    before = preview.document(()) if stored is None else stored
    now = {**before, "errors": [asdict(error) for error in preview.errors(trials)]}
    if stored is None or now != before:
        ledger.facts.preview = now
    return now


def write_outlook(ledger: Ledger, forecast: GainForecast, trials: Sequence[Trial]) -> float | None:
    """Forecast the share of hypervolume that the next trials add, and keep the forecast.

    None, and nothing is kept, while there are too few trials for a model.
    """
    gain = forecast.gain(trials)
    if gain is not None:
        ledger.facts.outlook = Outlook(
            after_trials=len(trials), next_trials=FORECAST_TRIALS, expected_gain=round(gain, 4)
        )
    return gain


def open_preview(run: str | Path) -> dict[str, Any]:
    """The preview of a run. Raises NotFoundError before its members are scored."""
    with closing(open_ledger(run)) as ledger:
        stored = ledger.facts.preview
    if stored is None:
        raise NotFoundError(
            Problem(
                thing="preview",
                cause="the members have not all been scored yet",
                remedy="Wait for them; recycler status RUN tells how far it is",
            )
        )
    return stored


def open_explanation(run: str | Path, what: str = "knee") -> dict[str, Any]:
    """Explain the scores of the merge `what` of a run: a trial's number, knee, best:OBJECTIVE.

    Raises NotFoundError for too few trials.
    """
    with closing(open_ledger(run)) as ledger:
        job, trials = ledger.facts.require_job(), ledger.trials()
        smoothed = ledger.facts.smoothed
        front = read_front(trials, job.objectives, job.pool, job.dtype, smoothed=smoothed)
        chosen = choose(front, what)
        try:
            surrogate = read_surrogate(ledger, trials, job.objectives)
        except ValueError as error:
            raise NotFoundError(
                Problem(
                    thing=f"why of trial {chosen.number}",
                    cause=str(error),
                    remedy="Wait for more trials",
                )
            ) from None
    explained = _covered(surrogate, trials, chosen)
    found = why_document(surrogate, explained)
    if explained is not chosen:
        note = (
            f"Merge {chosen.number} is merge {explained.number} refined; the search's model does "
            f"not know its {len(chosen.recipe.weights)} rows of weights, so this is told of "
            f"merge {explained.number}."
        )
        found = {**found, "said": [note, *found["said"]]}
    return {**found, "chosen": choice_document(front, what)}


def _covered(surrogate: SearchModel, trials: Sequence[Trial], chosen: Trial) -> Trial:
    """The trial itself where the model covers it, else the one that it was refined from.

    Raises NotFoundError for another kind of merge.
    """
    by_number = {trial.number: trial for trial in trials}
    found: Trial | None = chosen
    while found is not None and not surrogate.covers(found):
        origin = refined_from(found)
        found = None if origin is None else by_number.get(origin)
    if found is None:
        raise NotFoundError(
            Problem(
                thing=f"why of trial {chosen.number}",
                cause="the model of this search does not cover its kind of merge",
                remedy="Ask for one that the sampler could have proposed: recycler front names "
                "them",
            )
        )
    return found


def open_surrogate(run: str | Path) -> SearchModel:
    """The search's model over a run's trials. Raises ValueError for too few of them."""
    with closing(open_ledger(run)) as ledger:
        return read_surrogate(ledger, ledger.trials(), ledger.facts.require_job().objectives)


def read_surrogate(
    ledger: Ledger, trials: Sequence[Trial], objectives: Sequence[Objective]
) -> SearchModel:
    """The search's model over a run's trials. Raises ValueError for too few of them."""
    facts = ledger.facts
    space, method = facts.space or _seen(trials), facts.method
    own = [trial for trial in trials if trial.recipe.method == method]
    return SearchModel(
        SimplexProposer(
            space,
            objectives,
            seed=0,
            gram=facts.gram,
            known_costs=read_costs(ledger, objectives),
        ),
        own,
        objectives,
    )


def _seen(trials: Sequence[Trial]) -> SearchSpace:
    """A space as wide as what was tried, for runs that were made before recycler kept theirs."""
    recipes = [trial.recipe for trial in trials]
    if not recipes:
        raise ValueError("there is no trial")
    largest = max(recipes, key=lambda recipe: len(recipe.weights))
    comparable = [recipe for recipe in recipes if recipe.members == largest.members]
    rows = [row for recipe in comparable for row in recipe.weights]
    sums = [sum(row) for row in rows if any(row)] or [1.0]
    total = (1.0, 1.0)
    if largest.base is not None:
        total = (max(0.01, min(0.99, *sums)), max(1.01, *sums))
    return SearchSpace(
        groups=largest.groups,
        members=largest.members,
        low=tuple(min(0.0, *column) for column in zip(*rows, strict=True)),
        high=tuple(max(total[1], *column) for column in zip(*rows, strict=True)),
        total=total,
    )
