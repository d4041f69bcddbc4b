"""Facts of a ledger: the stored texts byte for byte, and their values back again."""

import pytest

from recycler.errors import NotFoundError
from recycler.ledger.facts import Facts, JobFacts, Outlook, Stamps, StoredProducts
from recycler.specs.space import SearchSpace
from recycler.types import Group, Objective, Score, Smoothed

JOB = JobFacts(
    name="demo",
    dtype="bfloat16",
    trials=12,
    objectives=(
        Objective(suite="s", task="a", metric="exact_match", direction="maximize", floor="best"),
        Objective(suite="", metric="members", direction="minimize", bound_only=True),
    ),
    members=(("m0", "/pool/m0"), ("m1", "s3://pool/m1")),
    base=None,
)
SPACE = SearchSpace(
    groups=(Group(name="all"),),
    members=("m0", "m1"),
    low=(0.0, 0.0),
    high=(1.0, 1.0),
    total=(1.0, 1.0),
    options=(("density", (0.1, 0.9)),),
)
CASES = {  # property -> (value, stored key, stored text), as ledgers of all versions hold them
    "job": (
        JOB,
        "job",
        '{"name": "demo", "dtype": "bfloat16", "trials": 12, "objectives": [{"suite": "s", "task": '
        '"a", "metric": "exact_match", "direction": "maximize", "floor": "best"}, {"suite": "", '
        '"task": null, "metric": "members", "direction": "minimize", "floor": null, "bound_only": '
        'true}], "members": [["m0", "/pool/m0"], ["m1", "s3://pool/m1"]], "base": null}',
    ),
    "digests": ({"job": "ab", "pool": "cd"}, "digests", '{"job": "ab", "pool": "cd"}'),
    "stamps": (
        Stamps(checkpoints={"m0": "x"}, items={"s": "y"}, engine={"name": "vllm"}),
        "stamps",
        '{"checkpoints": {"m0": "x"}, "items": {"s": "y"}, "engine": {"name": "vllm"}}',
    ),
    "earlier": (("one", "two"), "earlier", '["one", "two"]'),
    "space": (
        SPACE,
        "space",
        '{"groups": [{"name": "all", "match": ""}], "members": ["m0", "m1"], "low": [0.0, 0.0], '
        '"high": [1.0, 1.0], "total": [1.0, 1.0], "max_nonzero": null, "options": [["density", '
        "[0.1, 0.9]]]}",
    ),
    "method": ("ties", "method", "ties"),
    "gram": ([[1.0, 0.5], [0.5, 1.0]], "gram", "[[1.0, 0.5], [0.5, 1.0]]"),
    "delta_products": (
        StoredProducts(tensors=("w",), members=1, upper=b"\x00" * 8),
        "delta products",
        '{"tensors": ["w"], "members": 1, "upper": "eJxjYIAAAAAIAAE="}',
    ),
    "preview": ({"front": []}, "preview", '{"front": []}'),
    "outlook": (
        Outlook(after_trials=20, next_trials=20, expected_gain=0.0125),
        "outlook",
        '{"after_trials": 20, "next_trials": 20, "expected_gain": 0.0125}',
    ),
    "notices": (
        {"dead": ["s/a"], "tradeoffs": []},
        "notices",
        '{"dead": ["s/a"], "tradeoffs": []}',
    ),
    "smoothed": (
        Smoothed(
            scores={3: (Score(objective="s/a", value=0.5, stderr=0.1, n=9),)},
            uninformative=("s/b",),
        ),
        "smoothed",
        '{"scores": {"3": [["s/a", 0.5, 0.1, 9]]}, "dead": ["s/b"]}',
    ),
    "elapsed_seconds": (12.3, "elapsed_seconds", "12.3"),
    "finished": (12, "finished", "12"),
}


class Texts:
    """A fact store in memory."""

    def __init__(self):
        self.stored = {}

    def fact(self, key):
        return self.stored.get(key)

    def set_fact(self, key, value):
        self.stored[key] = value


@pytest.mark.parametrize("name", CASES)
def test_a_fact_is_stored_under_its_key_as_the_text_of_all_versions_and_read_back(name):
    value, key, text = CASES[name]
    store = Texts()
    setattr(Facts(store), name, value)
    assert store.stored == {key: text}
    assert getattr(Facts(store), name) == value


def test_what_was_never_set_is_none_or_empty():
    facts = Facts(Texts())
    none = ("job", "digests", "stamps", "space", "gram", "delta_products", "preview", "outlook")
    assert all(getattr(facts, name) is None for name in (*none, "finished"))
    assert (facts.earlier, facts.notices, facts.method) == ((), {}, "linear")
    assert not facts.smoothed and facts.elapsed_seconds == 0.0 and facts.refinement(3) is None
    with pytest.raises(NotFoundError, match="was never started"):
        facts.require_job()


def test_a_gram_matrix_that_cannot_be_measured_is_told_from_one_that_was_not_yet():
    facts = Facts(store := Texts())
    assert not facts.has_gram
    facts.gram = None
    assert facts.has_gram and facts.gram is None and store.stored == {"gram": "null"}


def test_refinements_are_kept_by_the_number_of_their_trial():
    facts = Facts(store := Texts())
    facts.set_refinement(7, {"of": 3})
    assert store.stored == {"refined 7": '{"of": 3}'} and facts.refinement(7) == {"of": 3}
