"""What is not a recipe's fault is not told as such: a sandbox or a Ray that does not start."""

import importlib.util

import pytest

from fake_engine import Engine
from fakes import OBJECTIVES
from item_search import ITEMS, POOL
from places import ROOT
from recycler.cluster.workers import MAX_ATTEMPTS, LocalWorkers, Request, ScoringWorker, Work
from recycler.errors import InfrastructureError, Problem, UnsafeInputError, UsageError
from recycler.scoring.sandbox import code
from recycler.types import Failure, Item, Recipe, Scorecard

RECIPE = Recipe(method="linear", members=POOL.names, weights=((1.0,) * 4,))
WORK = Work(
    pool=POOL,
    engine="fake",
    items=tuple(item for item in ITEMS if item.role == "search"),
    objectives=OBJECTIVES,
)
PROGRAM = Item(
    id="p",
    suite="s",
    task="t",
    role="search",
    kind="generate",
    scorer="humaneval",
    prompt="p",
    prompt_ids=(1,),
    gold="g",
)
NO_BOX = Problem(thing="code sandbox", cause="bubblewrap does not start", remedy="")


class Failing(Engine):
    """Raises `errors` by turns, then works."""

    def __init__(self, *errors):
        super().__init__()
        self.errors = list(errors)

    def apply(self, recipe):
        if self.errors:
            raise self.errors.pop(0)
        return super().apply(recipe)


def test_a_sandbox_that_stops_working_is_tried_again_and_never_blames_the_recipe():
    engine, built = Failing(InfrastructureError(NO_BOX), UnsafeInputError(NO_BOX)), []
    workers = LocalWorkers(WORK, build=lambda work: built.append(1) or ScoringWorker(work, engine))
    workers.submit(Request(number=0, recipe=RECIPE, role="search"))
    (result,) = workers.wait()
    assert isinstance(result.answer, Scorecard) and len(built) == 1, "the engine is sound and stays"
    engine.errors = [InfrastructureError(NO_BOX)] * MAX_ATTEMPTS
    workers.submit(Request(number=1, recipe=RECIPE, role="search"))
    (result,) = workers.wait()
    assert (
        isinstance(result.answer, Failure)
        and result.answer.blame == "system"
        and "bubblewrap" in result.answer.reason
    )
    engine.errors = [UsageError("the recipe wants what is not there")]
    workers.submit(Request(number=2, recipe=RECIPE, role="search"))
    assert workers.wait()[0].answer.blame == "recipe"


def test_without_a_sandbox_no_engine_is_loaded_for_items_that_need_one(monkeypatch):
    def refuse():
        raise UnsafeInputError(NO_BOX)

    monkeypatch.setattr(code, "shared_sandbox", refuse)
    ScoringWorker(WORK, Engine())
    with pytest.raises(UnsafeInputError):
        ScoringWorker(Work(pool=POOL, engine="fake", items=(PROGRAM,), objectives=OBJECTIVES))


@pytest.mark.parametrize(
    "error",
    [
        Exception("The current node timed out during startup."),
        TimeoutError("late"),
        ValueError("no such address"),
        ConnectionError(),
    ],
)
def test_a_ray_that_does_not_start_asks_to_be_tried_again(error, monkeypatch):
    ray_workers = pytest.importorskip("recycler.cluster.ray_workers")

    def fail(**options):
        raise error

    monkeypatch.setattr(ray_workers.ray, "init", fail)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InfrastructureError, match="cannot be reached or started") as caught:
        ray_workers.RayWorkers(WORK, num_workers=1)
    assert caught.value.exit_code == 5 and (str(error) or "ConnectionError") in str(caught.value)


def test_the_overhead_benchmark_goes_through_every_step_of_a_trial():
    """Its figures are told, so it must run; the parts are those of the log."""
    path = ROOT / "benchmarks/overhead/run.py"
    spec = importlib.util.spec_from_file_location("overhead_run", path)
    overhead = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(overhead)
    found = overhead.parts(list(ITEMS), list(OBJECTIVES))
    assert {
        "draw a subset (driver)",
        "requests",
        "scorers of our own",
        "means and errors",
        "ledger: close it",
    } <= {name for name, _, _ in found}
