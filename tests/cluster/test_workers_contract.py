"""All workers keep the laws of the contract: in this process, with costs, and the fake ones."""

from dataclasses import replace

import pytest

from fake_engine import Engine
from fakes import OBJECTIVES, FakeWorkers
from item_search import ITEMS, POOL
from recycler.cluster.workers import LocalWorkers, Request, ScoringWorker, Work
from recycler.objectives.costs import Costs
from recycler.run.cost_workers import CostWorkers
from recycler.types import Objective, Recipe
from workers_contract import WorkersContract

WORK = Work(pool=POOL, engine="fake", items=ITEMS, objectives=OBJECTIVES)
MEMBERS = Objective(suite="", metric="members", direction="minimize")


class Contract(WorkersContract):
    @pytest.fixture
    def recipe(self):
        return Recipe(method="linear", members=POOL.names, weights=((1.0, 0.0, 0.5, 0.0),))


class TestFakeWorkers(Contract):
    @pytest.fixture
    def workers(self):
        return FakeWorkers(num_workers=2)


class TestLocalWorkers(Contract):
    @pytest.fixture
    def workers(self):
        return LocalWorkers(WORK, build=lambda work: ScoringWorker(work, Engine()))


class TestSideBySide(Contract):
    @pytest.fixture
    def workers(self):
        work = replace(WORK, settings={"lora_batch": 3})
        return LocalWorkers(work, build=lambda work: ScoringWorker(work, Engine()))


class TestCostWorkers(Contract):
    @pytest.fixture
    def workers(self):
        return CostWorkers(FakeWorkers(), Costs((MEMBERS,)))

    def test_each_scorecard_has_the_costs_too(self, workers, recipe):
        workers.submit(Request(number=0, recipe=recipe, role="search"))
        (result,) = workers.wait()
        costs = [score for score in result.answer.scores if score.objective == "cost:members"]
        assert [score.value for score in costs] == [2.0]
