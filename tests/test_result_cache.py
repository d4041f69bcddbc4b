"""The same weights, engine and question are asked once; anything else that is other is asked anew."""

from dataclasses import replace

from conftest import OBJECTIVES
from test_fidelity import ITEMS, POOL
from test_watch import Engine

from recycler.evaluate import score_recipe
from recycler.scoring.result_cache import ResultCache
from recycler.types import Recipe

SEARCH = [replace(item, prompt_ids=(index + 1, 2)) for index, item in enumerate(ITEMS) if item.role == "search"]
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
    first = asked(Counting(), ResultCache(tmp_path), SEARCH[:100] + SEARCH[160:200])
    again = asked(Counting(), ResultCache(tmp_path))
    third = asked(Counting(), ResultCache(tmp_path))
    assert (first[0], again[0], third[0]) == (140, 180, 0)
    assert third[1].scores == again[1].scores and third[1].outcomes == again[1].outcomes and third[1].num_tokens == 0
    assert list(tmp_path.rglob(".*.tmp")) == []


def test_other_weights_engines_or_questions_are_asked_anew_and_other_names_are_not(tmp_path):
    cache, engine = ResultCache(tmp_path), Counting()
    asked(engine, cache)
    assert asked(engine, cache, recipe=replace(RECIPE, weights=((0.5,) * 4,)))[0] == 320
    assert asked(engine, cache, recipe=replace(RECIPE, seed=5))[0] == 0, "the weights are the same"
    assert asked(engine, cache, [replace(SEARCH[0], stop=("x",)), *SEARCH[1:]])[0] == 1
    renamed = [replace(item, id=f"other/{item.id}", role="holdout", cluster="c") for item in SEARCH]
    number, scorecard = asked(engine, cache, renamed)
    assert number == 0 and scorecard.outcomes[0].item == renamed[0].id
    engine.fingerprint = "another version"
    assert asked(engine, cache)[0] == 320


def test_a_damaged_file_counts_as_not_there(tmp_path):
    asked(Counting(), ResultCache(tmp_path))
    (file,) = tmp_path.rglob("*.outcomes")
    file.write_bytes(file.read_bytes()[:-5])
    assert asked(Counting(), ResultCache(tmp_path))[0] == 320
