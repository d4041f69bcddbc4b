"""Refine a merge of a finished run: steps down the loss on its search items, and the result as one
more trial of the run.

    trial of the front -> its weights, a row for each block of layers if wanted -> steps -> a trial
    called "refined N"

The loss is that of the right answers, teacher-forced: for each objective the mean -log p of a
token, as a share of what it was at the start, weighted by preference. Only search items are looked
at; the trial is then scored and held out like any other, so what the steps have learned by heart
shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recycler.engines import build_engine
from recycler.engines.port import Engine
from recycler.engines.weight_slopes import weight_slopes
from recycler.errors import Problem, UsageError, did_you_mean
from recycler.ledger import Ledger
from recycler.ledger.local_lock import only_driver
from recycler.ledger.runs import open_ledger
from recycler.pool.materialise import materialise
from recycler.pool.storage.tensors import ResidentPool
from recycler.results.front import choose
from recycler.results.open import front_of
from recycler.run.prepared import PreparedJob
from recycler.run.wiring import work_of
from recycler.scoring.scorers import items_of
from recycler.search.refine import REFINED, Floats, descend, spsa
from recycler.specs.space import SearchSpace, layer_groups
from recycler.types import Item, LoglikelihoodRequest, Objective, Recipe, Trial

How = Literal["gradient", "spsa"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to refine. `layers`: a row of weights for each of so many blocks of layers, 0 for the rows that the merge has.
    `batch`: items an objective and step. `reach`: how far a step moves a weight. `prefer`: share of each objective by name."""

    by: How = "gradient"
    steps: int = 10
    layers: int = 0
    batch: int = 16
    reach: float = 0.03
    prefer: Mapping[str, float] | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refined:
    """A merge that was refined: its losses by objective before and after (nats a token, all search items), and its trial, None
    where the loss did not fall."""

    of: int
    recipe: Recipe
    before: dict[str, float]
    after: dict[str, float]
    trial: int | None


def refine(
    run: Path,
    prepared: PreparedJob,
    what: str,
    settings: Settings,
    tell: Callable[[str], None] = lambda line: None,
) -> Refined:
    """Refine the trial that `what` names and open the result as a trial of the run, which the next
    `run_job` scores.

    Raises UsageError for a run that is being driven or a merge whose loss has no slope,
    NotFoundError for no such trial. A run that is killed meanwhile has no new trial.
    """
    with only_driver(run), closing(open_ledger(run)) as ledger:
        ledger.hold()
        trial = choose(front_of(ledger), what)
        start = _start(trial, prepared, settings)
        losses = _Losses(prepared, start, settings)
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
        number = _open(ledger, trial, recipe, settings, steps, before, after) if better else None
        return Refined(of=trial.number, recipe=recipe, before=before, after=after, trial=number)


def _start(trial: Trial, prepared: PreparedJob, settings: Settings) -> Recipe:
    """The trial's recipe over all members of the pool, with its row repeated for each block of
    layers. Raises UsageError.
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
    groups = (
        layer_groups(pool.template.num_layers, settings.layers)
        if settings.layers
        else recipe.groups
    )
    rows = recipe.weights * (len(groups) if settings.layers else 1)
    own = [dict(zip(recipe.members, row, strict=True)) for row in rows]
    base = recipe.base or (
        pool.base.name if pool.base and all(abs(sum(row) - 1) < 1e-6 for row in rows) else None
    )
    return replace(
        recipe,
        members=pool.names,
        groups=groups,
        weights=tuple(tuple(row.get(name, 0.0) for name in pool.names) for row in own),
        base=base,
    )


def _walk(
    losses: _Losses,
    start: Recipe,
    space: SearchSpace,
    settings: Settings,
    tell: Callable[[str], None],
) -> tuple[Floats, list[Any]]:
    space, weights = replace(space, groups=start.groups), np.array(start.weights)

    def told(
        value: Callable[[Floats, int], Any], loss_of: Callable[[Any], float]
    ) -> Callable[[Floats, int], Any]:
        def asked(point: Floats, index: int) -> Any:
            found = value(replace(start, weights=_rows(point)), index)
            tell(
                f"step {index + 1} of {settings.steps}: {loss_of(found):.4f} of the loss at the "
                f"start, on {settings.batch} items an objective"
            )
            return found

        return asked

    if settings.by == "gradient":
        weights, met = descend(
            told(losses.slopes, lambda found: found[0]),
            weights,
            space,
            steps=settings.steps,
            reach=settings.reach,
        )
        return weights, list(met)
    weights, steps = spsa(
        told(losses.batch, float),
        weights,
        space,
        steps=settings.steps,
        reach=settings.reach,
        seed=settings.seed,
    )
    return weights, [asdict(step) for step in steps]


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
    """Write the trial and how it came about: from what, by which steps (seeds and scalars for SPSA,
    which replay exactly).
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


class _Losses:
    """Losses of recipes on the search items of a job, on a live engine: all items, or a step's
    batch of them.
    """

    def __init__(self, prepared: PreparedJob, start: Recipe, settings: Settings):
        self._start, self._settings = start, settings
        self._asked = {
            objective.name: _requests(objective, prepared.items)
            for objective in prepared.benchmarks
        }
        self._preference = _shares(prepared.benchmarks, settings.prefer)
        pool, work = materialise(prepared.pool), work_of(prepared)
        self._resident = ResidentPool(pool)
        if settings.by == "gradient":  # the only engine that has one
            self._engine: Any = build_engine(
                "transformers",
                pool,
                dtype=work.settings["dtype"],
                max_model_len=work.settings["max_model_len"],
            )
        else:
            self._engine = build_engine(work.engine, pool, **work.settings)

    def begin(self) -> dict[str, float]:
        """Losses at the start, of which all later ones are told as shares."""
        self._unit = self.whole(self._start)
        return self._unit

    def whole(self, recipe: Recipe) -> dict[str, float]:
        """Mean -log p of a token of the right answers, by objective, over all search items."""
        return _measured(self._engine, recipe, self._asked)

    def share(self, losses: Mapping[str, float]) -> float:
        return sum(
            share * losses[name] / self._unit[name] for name, share in self._preference.items()
        )

    def batch(self, recipe: Recipe, index: int) -> float:
        return self.share(_measured(self._engine, recipe, self._drawn(index)))

    def slopes(self, recipe: Recipe, index: int) -> tuple[float, Floats]:
        """`batch` and its gradient (G, K) by the recipe's weights."""
        drawn = self._drawn(index)
        tokens = {
            name: sum(len(request.continuation_ids) for request in own)
            for name, own in drawn.items()
        }
        shares = [
            self._preference[name] / (self._unit[name] * tokens[name])
            for name, own in drawn.items()
            for _ in own
        ]
        self._engine.apply(recipe)
        losses, gradients = self._engine.loss_slopes(
            [request for own in drawn.values() for request in own], shares
        )
        return float(np.dot(losses, shares)), weight_slopes(gradients, recipe, self._resident)

    def close(self) -> None:
        self._engine.close()

    def _drawn(self, index: int) -> dict[str, list[LoglikelihoodRequest]]:
        """The items of a step: another few of each objective, the same for every recipe that is
        asked in it.
        """
        rng = np.random.default_rng([self._settings.seed, index])
        return {
            name: [own[place] for place in rng.permutation(len(own))[: self._settings.batch]]
            for name, own in self._asked.items()
        }


def _measured(
    engine: Engine, recipe: Recipe, asked: Mapping[str, Sequence[LoglikelihoodRequest]]
) -> dict[str, float]:
    engine.apply(recipe)
    answers = iter(engine.loglikelihood([request for own in asked.values() for request in own]))
    return {
        name: -sum(next(answers).logprob for _ in own)
        / sum(len(request.continuation_ids) for request in own)
        for name, own in asked.items()
    }


def _requests(objective: Objective, items: Sequence[Item]) -> list[LoglikelihoodRequest]:
    """The right answers of an objective's search items, to be teacher-forced.

    Raises UsageError where answers are generated.
    """
    own = [item for item in items_of(objective, items) if item.role == "search"]
    if any(item.kind != "loglikelihood" for item in own) or not own:
        raise UsageError(
            Problem(
                thing=f"objective {objective.name}",
                cause="is scored on generated answers, whose score has no slope",
                remedy="Refine jobs whose suites are scored by likelihood, such as bpb or bbh",
            )
        )
    return [
        LoglikelihoodRequest(
            context_ids=item.prompt_ids,
            continuation_ids=item.continuations[
                int(item.gold) if len(item.continuations) > 1 else 0
            ],
        )
        for item in own
    ]


def _shares(
    objectives: Sequence[Objective], prefer: Mapping[str, float] | None
) -> dict[str, float]:
    """How much each objective counts, summing to 1: all the same unless preferred.

    Raises UsageError for unknown names.
    """
    names = [objective.name for objective in objectives]
    for name in prefer or {}:
        if name not in names:
            raise UsageError(
                Problem(
                    thing=f"objective {name!r}",
                    cause="is not one of this run's that have a slope: those scored on items",
                    remedy=did_you_mean(name, names),
                )
            )
    shares = {name: float((prefer or {}).get(name, 0.0 if prefer else 1.0)) for name in names}
    if min(shares.values()) < 0 or sum(shares.values()) <= 0:
        raise UsageError(
            Problem(
                thing="--prefer",
                cause="gives no objective a share above 0",
                remedy="Give shares such as math/bits_per_byte=0.7",
            )
        )
    return {name: share / sum(shares.values()) for name, share in shares.items()}
