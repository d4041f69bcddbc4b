"""Workers whose scorecards tell the costs of each merge besides its scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from recycler.cluster.workers import Request, Result, Workers
from recycler.objectives.costs import Costs
from recycler.types import Recipe, Role, Scorecard


class CostWorkers:
    """Workers that add costs to every scorecard; their engines are asked for nothing more."""

    def __init__(self, workers: Workers, costs: Costs):
        self._workers, self._costs = workers, costs
        self._recipes: dict[tuple[int, Role], Recipe] = {}

    @property
    def num_workers(self) -> int:
        return self._workers.num_workers

    def submit(self, request: Request) -> None:
        self._recipes[request.number, request.role] = request.recipe
        self._workers.submit(request)

    def wait(self) -> Sequence[Result]:
        return [
            self._with_costs(result, self._recipes.pop((result.number, result.role)))
            for result in self._workers.wait()
        ]

    def close(self) -> None:
        self._workers.close()

    def _with_costs(self, result: Result, recipe: Recipe) -> Result:
        if not isinstance(result.answer, Scorecard):
            return result
        return replace(result, answer=self._costs.added(result.answer, recipe))
