"""Refine a merge of a finished run by steps down its loss; the result is one more trial.

    trial of the front -> its weights, a row for each block of layers if wanted -> steps -> a trial
    called "refined N"

The loss is that of the right answers, teacher-forced: for each objective the mean -log p of a
token, as a share of what it was at the start, weighted by preference. Only search items are looked
at; the trial is then scored and held out like any other, so what the steps have learned by heart
shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recycler.errors import Problem, UsageError
from recycler.ledger import Ledger
from recycler.ledger.local_lock import only_driver
from recycler.ledger.runs import open_ledger
from recycler.results.front import choose
from recycler.results.open import front_of
from recycler.run.prepared import PreparedJob
from recycler.run.refine_losses import Losses, Settings
from recycler.search.refine import REFINED, Floats, descend, spsa
from recycler.specs.resolve import layer_groups
from recycler.specs.space import SearchSpace
from recycler.types import Recipe, Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Refined:
    """A merge that was refined, and its losses in nats per token over all search items."""

    of: int  # number of the trial that it comes from
    recipe: Recipe
    before: dict[str, float]  # loss by objective
    after: dict[str, float]
    trial: int | None  # its own number; None where the loss did not fall


def refine(
    run: Path,
    prepared: PreparedJob,
    what: str,
    settings: Settings,
    tell: Callable[[str], None] = lambda line: None,
) -> Refined:
    """Refine the trial that `what` names, and open the result as a trial of the run.

    The next `run_job` scores it. A run that is killed meanwhile has no new trial. Raises UsageError
    for a run that is being driven or a merge whose loss has no slope, NotFoundError for no such
    trial.
    """
    with only_driver(run), closing(open_ledger(run)) as ledger:
        ledger.hold()
        trial = choose(front_of(ledger), what)
        start = _start(trial, prepared, settings)
        losses = Losses(prepared, start, settings)
        try:
            before = losses.begin()
            tell(
                f"refining trial {trial.number} by {settings.by}: "
                f"{len(start.groups) * len(start.members)} weights, {_said(before)}"
            )
            weights, steps = _walk(losses, start, prepared.space, settings, tell)
            recipe = replace(start, weights=_rows(weights))
            after = losses.whole(recipe)
        finally:
            losses.close()
        better = losses.share(after) < 1.0
        number = None
        if better:
            number = _open(ledger, trial, recipe, settings, steps, before, after)
        return Refined(of=trial.number, recipe=recipe, before=before, after=after, trial=number)


def _start(trial: Trial, prepared: PreparedJob, settings: Settings) -> Recipe:
    """The trial's recipe over all members of the pool, its row repeated for each block of layers.

    Raises UsageError where it cannot be refined so.
    """
    recipe, pool = trial.recipe, prepared.pool
    if settings.by == "gradient" and (recipe.method != "linear" or recipe.option("normalize")):
        raise UsageError(
            Problem(
                thing=f"trial {trial.number}",
                cause=f"is a merge by {recipe.method}, whose weights have no slope that we know",
                remedy="Use --by spsa, which asks for losses alone",
            )
        )
    if not 0 <= settings.layers <= pool.template.num_layers:
        raise UsageError(
            Problem(
                thing="--layers",
                cause=f"is {settings.layers}, the model has {pool.template.num_layers} layers",
                remedy="Take fewer blocks",
            )
        )
    if settings.layers and len(recipe.groups) > 1:
        raise UsageError(
            Problem(
                thing="--layers",
                cause=f"trial {trial.number} has {len(recipe.groups)} rows of weights already",
                remedy="Leave it out: its own rows are refined",
            )
        )
    groups, rows = recipe.groups, recipe.weights
    if settings.layers:
        groups = layer_groups(pool.template.num_layers, settings.layers)
        rows = recipe.weights * len(groups)
    own = [dict(zip(recipe.members, row, strict=True)) for row in rows]
    base = recipe.base
    if base is None and pool.base and all(abs(sum(row) - 1) < 1e-6 for row in rows):
        base = pool.base.name
    return replace(
        recipe,
        members=pool.names,
        groups=groups,
        weights=tuple(tuple(row.get(name, 0.0) for name in pool.names) for row in own),
        base=base,
    )


def _walk(
    losses: Losses,
    start: Recipe,
    space: SearchSpace,
    settings: Settings,
    tell: Callable[[str], None],
) -> tuple[Floats, list[Any]]:
    """Weights (G, K) after all steps, and the steps as the ledger keeps them."""

    def told(share: float, index: int) -> float:
        tell(
            f"step {index + 1} of {settings.steps}: {share:.4f} of the loss at the start, on "
            f"{settings.batch} items an objective"
        )
        return share

    def loss(point: Floats, index: int) -> float:
        return told(losses.batch(replace(start, weights=_rows(point)), index), index)

    def slopes(point: Floats, index: int) -> tuple[float, Floats]:
        share, gradient = losses.slopes(replace(start, weights=_rows(point)), index)
        return told(share, index), gradient

    own, weights = replace(space, groups=start.groups), np.array(start.weights)
    steps, reach = settings.steps, settings.reach
    if settings.by == "gradient":
        weights, met = descend(slopes, weights, own, steps=steps, reach=reach)
        return weights, list(met)
    weights, taken = spsa(loss, weights, own, steps=steps, reach=reach, seed=settings.seed)
    return weights, [asdict(step) for step in taken]


def _rows(weights: Floats) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(weight) for weight in row) for row in weights)


def _open(
    ledger: Ledger,
    trial: Trial,
    recipe: Recipe,
    settings: Settings,
    steps: list[Any],
    before: dict[str, float],
    after: dict[str, float],
) -> int:
    """Write the trial and its refinement: start, settings, losses, and steps.

    Seeds and scalars of SPSA replay exactly.
    """
    number = len(ledger.trials())
    how = {
        "of": trial.number,
        **asdict(settings),
        "steps_taken": steps,
        "before": before,
        "after": after,
    }
    ledger.facts.set_refinement(number, how)
    ledger.open_trial(number, "merge", recipe, label=f"{REFINED} {trial.number}")
    return number


def _said(losses: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in losses.items()) + " nats a token"
