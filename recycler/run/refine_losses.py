"""Losses of a merge while it is refined, on a live engine, and their slopes by its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from recycler.engines import build_engine
from recycler.engines.port import Engine
from recycler.engines.weight_slopes import weight_slopes
from recycler.errors import Problem, UsageError, did_you_mean
from recycler.pool.materialise import materialise
from recycler.pool.storage.tensors import ResidentPool
from recycler.run.prepared import PreparedJob
from recycler.run.wiring import work_of
from recycler.scoring.scorers import items_of
from recycler.search.refine import Floats
from recycler.types import Item, LoglikelihoodRequest, Objective, Recipe

How = Literal["gradient", "spsa"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of a refinement."""

    by: How = "gradient"
    steps: int = 10
    layers: int = 0  # blocks of layers with a row of weights each; 0 for the rows of the merge
    batch: int = 16  # items per objective and step
    reach: float = 0.03  # usual length of a step of one weight
    prefer: Mapping[str, float] | None = None  # share of each objective by name
    seed: int = 0


class Losses:
    """Losses of recipes on the search items of a job, on a live engine.

    They are over all items, or over a batch of items for each step.
    """

    def __init__(self, prepared: PreparedJob, start: Recipe, settings: Settings):
        self._start, self._settings = start, settings
        self._asked = {
            objective.name: _requests(objective, prepared.items)
            for objective in prepared.benchmarks
        }
        self._preference = preference_shares(prepared.benchmarks, settings.prefer)
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
        """Losses at the start, the unit of all later shares."""
        self._unit = self.whole(self._start)
        return self._unit

    def whole(self, recipe: Recipe) -> dict[str, float]:
        """Mean -log p of a token of the right answers, by objective, over all search items."""
        return _measured(self._engine, recipe, self._asked)

    def share(self, losses: Mapping[str, float]) -> float:
        """Losses as a share of those at the start, weighted by preference."""
        return sum(
            share * losses[name] / self._unit[name] for name, share in self._preference.items()
        )

    def batch(self, recipe: Recipe, index: int) -> float:
        """The share of the loss on the items of step `index`."""
        return self.share(_measured(self._engine, recipe, self._drawn(index)))

    def slopes(self, recipe: Recipe, index: int) -> tuple[float, Floats]:
        """`batch` and its gradient (G, K) by the recipe's weights."""
        requests: list[LoglikelihoodRequest] = []
        shares: list[float] = []  # of each request in the loss
        for name, own in self._drawn(index).items():
            share = self._preference[name] / (self._unit[name] * _num_tokens(own))
            requests += own
            shares += [share] * len(own)
        self._engine.apply(recipe)
        losses, gradients = self._engine.loss_slopes(requests, shares)
        return float(np.dot(losses, shares)), weight_slopes(gradients, recipe, self._resident)

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()

    def _drawn(self, index: int) -> dict[str, list[LoglikelihoodRequest]]:
        """The items of a step: a sample of each objective, the same for all of its recipes."""
        rng = np.random.default_rng([self._settings.seed, index])
        return {
            name: [own[place] for place in rng.permutation(len(own))[: self._settings.batch]]
            for name, own in self._asked.items()
        }


def _measured(
    engine: Engine, recipe: Recipe, asked: Mapping[str, Sequence[LoglikelihoodRequest]]
) -> dict[str, float]:
    """Mean -log p of a token by objective, of all requests asked at once."""
    engine.apply(recipe)
    answers = iter(engine.loglikelihood([request for own in asked.values() for request in own]))
    losses = {}
    for name, own in asked.items():
        logprob = sum(next(answers).logprob for _ in own)
        losses[name] = -logprob / _num_tokens(own)
    return losses


def _num_tokens(requests: Sequence[LoglikelihoodRequest]) -> int:
    return sum(len(request.continuation_ids) for request in requests)


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
    return [_right_answer(item) for item in own]


def _right_answer(item: Item) -> LoglikelihoodRequest:
    right = int(item.gold) if len(item.continuations) > 1 else 0
    return LoglikelihoodRequest(
        context_ids=item.prompt_ids, continuation_ids=item.continuations[right]
    )


def preference_shares(
    objectives: Sequence[Objective], prefer: Mapping[str, float] | None
) -> dict[str, float]:
    """The share of each objective in the loss, summing to 1: equal unless preferred.

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
