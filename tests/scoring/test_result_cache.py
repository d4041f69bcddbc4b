"""The same weights, engine and question are asked once; what differs in anything is asked anew."""

import json
from concurrent.futures import Future
from dataclasses import replace

from fake_engine import Engine
from fakes import OBJECTIVES
from item_search import ITEMS, POOL
from recycler.cluster.workers import Request, ScoringWorker, Work
from recycler.pool.catalog import open_pool
from recycler.scoring import result_cache
from recycler.scoring.evaluate import score_recipe
from recycler.scoring.result_cache import ResultCache, surroundings
from recycler.scoring.sandbox import code
from recycler.scoring.sandbox.verdict import Verdict
from recycler.testing import make_pico_pool
from recycler.types import Item, Objective, Recipe

SEARCH = [
    replace(item, prompt_ids=(index + 1, 2))
    for index, item in enumerate(ITEMS)
    if item.role == "search"
]
RECIPE = Recipe(method="linear", members=POOL.names, weights=((1.0,) * 4,))


class Counting(Engine):
    """Counts what it is asked; its weights digest is the recipe's first weight."""

    def __init__(self, **options):
        super().__init__(**options)
        self.asked = 0

    def apply(self, recipe):
        return str(recipe.weights[0][0])

    def generate(self, requests, watch=None):
        self.asked += len(requests)
        return super().generate(requests, watch)

    def loglikelihood(self, requests):
        self.asked += len(requests)
        return super().loglikelihood(requests)


def asked(engine, cache, items=SEARCH, recipe=RECIPE):
    before = engine.asked
    scorecard = score_recipe(engine, recipe, items, OBJECTIVES, "search", cache=cache)
    return engine.asked - before, scorecard


def test_answers_are_asked_once_across_runs_and_given_again_as_they_were(tmp_path):
    first = asked(Counting(), ResultCache(tmp_path, "here"), SEARCH[:100] + SEARCH[160:200])
    again = asked(Counting(), ResultCache(tmp_path, "here"))
    third = asked(Counting(), ResultCache(tmp_path, "here"))
    assert (first[0], again[0], third[0]) == (140, 180, 0)
    assert (
        third[1].scores == again[1].scores
        and third[1].outcomes == again[1].outcomes
        and third[1].num_tokens == 0
    )
    assert list(tmp_path.rglob(".*.tmp")) == []


def test_other_weights_engines_or_questions_are_asked_anew_and_other_names_are_not(tmp_path):
    cache, engine = ResultCache(tmp_path, "here"), Counting()
    asked(engine, cache)
    assert asked(engine, cache, recipe=replace(RECIPE, weights=((0.5,) * 4,)))[0] == 320
    assert asked(engine, cache, recipe=replace(RECIPE, seed=5))[0] == 0, "the weights are the same"
    assert asked(engine, cache, [replace(SEARCH[0], stop=("x",)), *SEARCH[1:]])[0] == 1
    renamed = [replace(item, id=f"other/{item.id}", role="holdout", cluster="c") for item in SEARCH]
    number, scorecard = asked(engine, cache, renamed)
    assert number == 0 and scorecard.outcomes[0].item == renamed[0].id
    assert asked(engine, ResultCache(tmp_path, "elsewhere"))[0] == 320
    engine.fingerprint = "another version"
    assert asked(engine, cache)[0] == 320


def test_surroundings_are_all_that_answers_depend_on_beside_weights_engine_and_question(
    tmp_path, monkeypatch
):
    make_pico_pool(tmp_path, num_members=2)
    folders = [str(tmp_path / "members/*")], str(tmp_path / "base")

    def now():
        return surroundings(open_pool(*folders))

    def write(name, **changes):
        path = tmp_path / "base" / name
        path.write_text(
            json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **changes})
        )

    seen = [now()]
    write("config.json", _name_or_path="somewhere/else", transformers_version="9")
    assert now() == seen[0], "where it comes from"
    for change in (
        lambda: write("config.json", rope_theta=2000.0),
        lambda: write("generation_config.json", eos_token_id=[2, 7]),
        lambda: write("tokenizer_config.json", eos_token="<end>"),
        lambda: monkeypatch.setattr(result_cache, "version", lambda name: "0.0.1"),
        lambda: monkeypatch.setattr(result_cache, "judge", lambda: "Python 3.99"),
    ):
        change()
        seen.append(now())
    assert len(set(seen)) == 6


def test_a_program_that_did_not_pass_is_judged_again_and_its_answer_not_asked_again(
    tmp_path, monkeypatch
):
    """A time-out on a loaded machine is no lasting verdict; a pass is."""
    items = [
        Item(
            id=name,
            suite="s",
            task="t",
            role="search",
            kind="generate",
            scorer="humaneval",
            prompt="p",
            prompt_ids=(1,),
            gold="g",
            cluster=name,
            max_new_tokens=9,
            detail=(("before", name), ("after", "")),
        )
        for name in ("slow", "right", "wrong")
    ]
    objectives, ran = [Objective(suite="s", task="t", metric="pass@1", direction="maximize")], []

    class Box:
        def __init__(self, **outcomes):
            self.outcomes = outcomes

        def submit(self, program):
            future, name = Future(), program.text.strip("0123456789")
            ran.append(name)
            future.set_result(Verdict(outcome=self.outcomes[name]))
            return future

    engine, cache, values = Counting(), ResultCache(tmp_path, "here"), []
    for box in (
        Box(slow="timeout", right="passed", wrong="failed"),
        Box(slow="passed", right="failed", wrong="failed"),
        Box(slow="failed", right="failed", wrong="failed"),
    ):
        monkeypatch.setattr(code, "shared_sandbox", lambda box=box: box)
        values.append(
            [
                dict(outcome.values)["pass@1"]
                for outcome in score_recipe(
                    engine, RECIPE, items, objectives, "search", cache=cache
                ).outcomes
            ]
        )
    assert values == [[0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]
    assert engine.asked == 3 and sorted(ran) == ["right", "slow", "slow", "wrong", "wrong", "wrong"]


def test_a_damaged_file_counts_as_not_there(tmp_path):
    asked(Counting(), ResultCache(tmp_path, "here"))
    (file,) = tmp_path.rglob("*.outcomes")
    file.write_bytes(file.read_bytes()[:-5])
    assert asked(Counting(), ResultCache(tmp_path, "here"))[0] == 320


def test_a_worker_asks_a_pool_with_another_config_anew(tmp_path):
    make_pico_pool(tmp_path, num_members=2)
    engine, numbers = Counting(), []
    for theta in (10000.0, 10000.0, 2000.0):
        path = tmp_path / "base/config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "rope_theta": theta}))
        pool = open_pool([str(tmp_path / "members/*")], str(tmp_path / "base"))
        before = engine.asked
        ScoringWorker(
            Work(
                pool=pool,
                engine="fake",
                items=tuple(SEARCH),
                objectives=OBJECTIVES,
                reuse=str(tmp_path / "kept"),
            ),
            engine,
        ).score(Request(number=0, recipe=RECIPE, role="search"))
        numbers.append(engine.asked - before)
    assert numbers == [320, 0, 320]
