"""The workers' port: submit requests, wait for the first that ends.

And its simplest implementation: one worker in this process.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from recycler.engines import build_engine
from recycler.engines.port import Engine, SideBySide
from recycler.errors import InfrastructureError, RecyclerError
from recycler.pool.materialise import materialise
from recycler.scoring.evaluate import score_recipe, score_side_by_side
from recycler.scoring.result_cache import ResultCache, surroundings
from recycler.scoring.sandbox.box import SANDBOX
from recycler.scoring.sandbox.code import probe_sandbox
from recycler.types import Failure, Item, Objective, Pool, Recipe, Role, Scorecard

MAX_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Everything that a worker holds for the whole job: pool, engine, frozen items, objectives."""

    pool: Pool
    engine: str
    items: tuple[Item, ...]
    objectives: tuple[Objective, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    reuse: str = ""  # folder with answers of earlier runs; none without

    @property
    def together(self) -> int:
        """Number of trials that an engine can score side by side, unmerged."""
        return int(self.settings.get("lora_batch", 1))

    def items_of(self, role: Role, only: Sequence[str] | None = None) -> tuple[Item, ...]:
        """The items of a split, or those of them that are named."""
        chosen = None if only is None else set(only)
        return tuple(
            item
            for item in self.items
            if item.role == role and (chosen is None or item.id in chosen)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A trial to be scored: its recipe, the items to ask, and how it may be scored."""

    number: int
    recipe: Recipe
    role: Role
    items: tuple[str, ...] | None = None  # ids of the items to ask; None for the whole split
    gated: bool = False  # may be given up for degenerate output, with a Failure of the recipe
    unmerged: bool = False  # may be scored beside others, in one batch of an engine that can
    attempt: int = 1  # counted by the workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The final answer to one request."""

    number: int
    role: Role
    answer: Scorecard | Failure


class Workers(Protocol):
    """Engines that score requests; stateless to the search.

    A system failure is retried inside, so every result is final. Scores of a scorecard are plain
    means over the items of its request.
    """

    @property
    def num_workers(self) -> int:
        """Number of requests that are scored at once."""

    def submit(self, request: Request) -> None:
        """Queue a request."""

    def wait(self) -> Sequence[Result]:
        """Block until at least one request has ended, and return the results."""

    def close(self) -> None:
        """Let the engines go."""


class ScoringWorker:
    """One live engine that scores recipes: the body of every worker, wherever it runs."""

    def __init__(self, work: Work, engine: Engine | None = None):
        self.work = work
        probe_sandbox(work.items)
        pool = materialise(work.pool) if engine is None or work.reuse else work.pool
        self._cache = ResultCache(Path(work.reuse), surroundings(pool)) if work.reuse else None
        self.engine = engine or build_engine(work.engine, pool, **work.settings)

    def score(self, request: Request) -> Scorecard | Failure:
        """The scorecard; or a Failure that blames the recipe when the recipe cannot be run.

        Anything else is raised.
        """
        try:
            return score_recipe(
                self.engine,
                request.recipe,
                self.work.items_of(request.role, request.items),
                self.work.objectives,
                request.role,
                gated=request.gated,
                cache=self._cache,
            )
        except RecyclerError as error:
            _raise_system_error(error)
            return Failure(blame="recipe", reason=str(error))

    def score_all(self, requests: Sequence[Request]) -> list[Scorecard | Failure]:
        """The answers to a batch of `next_batch`, scored side by side where the engine can.

        Requests that it cannot hold side by side are merged one by one.
        """
        if len(requests) > 1:
            asked = [self.work.items_of(request.role, request.items) for request in requests]
            try:
                return list(
                    score_side_by_side(
                        cast(SideBySide, self.engine),
                        [request.recipe for request in requests],
                        asked,
                        self.work.objectives,
                        requests[0].role,
                        [request.gated for request in requests],
                    )
                )
            except RecyclerError as error:
                _raise_system_error(error)
        return [self.score(request) for request in requests]

    def close(self) -> None:
        self.engine.close()


def _raise_system_error(error: RecyclerError) -> None:
    """Raise InfrastructureError for an error that says nothing about the recipe."""
    if isinstance(error, InfrastructureError) or any(
        problem.thing == SANDBOX for problem in error.problems
    ):
        raise InfrastructureError(error.problems) from None


def results_of(requests: Sequence[Request], answers: Sequence[Scorecard | Failure]) -> list[Result]:
    """Results from the answers to requests, in order."""
    return [
        Result(number=request.number, role=request.role, answer=answer)
        for request, answer in zip(requests, answers, strict=True)
    ]


def next_batch(waiting: deque[Request], max_size: int) -> list[Request]:
    """Take the first request, and beside an unmerged one up to `max_size` of its kind in all."""
    first = waiting.popleft()
    if not first.unmerged:
        return [first]
    alike = [request for request in waiting if request.unmerged and request.role == first.role]
    others = alike[: max_size - 1]
    for request in others:
        waiting.remove(request)
    return [first, *others]


class LocalWorkers:
    """One worker in this process, for tests and for scoring a single model."""

    def __init__(self, work: Work, *, build: Callable[[Work], ScoringWorker] = ScoringWorker):
        self._work, self._build, self.num_workers = work, build, work.together
        self._worker: ScoringWorker | None = None
        self._queue: deque[Request] = deque()

    def submit(self, request: Request) -> None:
        self._queue.append(request)

    def wait(self) -> Sequence[Result]:
        batch = next_batch(self._queue, self._work.together)
        reason = ""
        for _ in range(MAX_ATTEMPTS):
            try:
                self._worker = self._worker or self._build(self._work)
                return results_of(batch, self._worker.score_all(batch))
            except InfrastructureError as error:
                if self._worker is None:  # no engine to try again with
                    raise
                reason = str(error)
            # the engine broke, not the recipe: build a new one
            except (RuntimeError, MemoryError, OSError) as error:
                reason = "".join(traceback.format_exception_only(error)).strip()
                self._worker = None
        failure = Failure(blame="system", reason=reason, attempts=MAX_ATTEMPTS)
        return results_of(batch, [failure] * len(batch))

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
