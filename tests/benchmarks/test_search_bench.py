"""The search bench: every sampler it compares proposes allowed weights, and a library that is not
there is named.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from benchmarks.search.families import FAMILIES
from benchmarks.search.samplers import SAMPLERS
from recycler.errors import UsageError

NEEDS = {"botorch": "botorch", "mergenetic": "pymoo", "mergekit_evolve": "cma"}
KNOWS_SLOPES = "simplex_gp+slopes"  # only trained networks have slopes of their losses


@pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(
            name,
            marks=pytest.mark.slow
            if name.startswith("simplex_gp") and name != "simplex_gp"
            else (),
        )
        for name in SAMPLERS
        if name != KNOWS_SLOPES
    ],
)
@pytest.mark.parametrize("family", ["bumps", "ridges"])
def test_every_sampler_proposes_allowed_weights(sampler: str, family: str) -> None:
    """Past its opening (and the first population), members told beforehand or not: sum 1, within
    the family's bounds.
    """
    if sampler in NEEDS and importlib.util.find_spec(NEEDS[sampler]) is None:
        pytest.skip(f"{NEEDS[sampler]} is not installed; the bench needs it for {sampler} alone")
    pool, rng = FAMILIES[family](4, 0), np.random.default_rng(0)
    for known in (False, True):
        proposer = SAMPLERS[sampler](pool, 3)
        if known:
            proposer.start = []
            for point in np.concatenate([np.full((1, 4), 0.25), np.eye(4)]):
                proposer.tell(point, *pool.score(point, rng))
        asked = []
        for _ in range(12 if "gp" in sampler or sampler == "botorch" else 30):
            weights = proposer.ask()
            assert weights.shape == (4,)
            assert weights.sum() == pytest.approx(1.0, abs=1e-6)
            assert (
                weights.min() >= pool.lowest - 1e-6 and weights.max() <= 1 - 3 * pool.lowest + 1e-6
            )
            asked.append(weights)
            proposer.tell(weights, *pool.score(weights, rng))
        assert len(np.unique(np.round(asked, 6), axis=0)) > 6, (
            "it proposes the same again and again"
        )


@pytest.mark.parametrize("sampler", sorted(NEEDS))
def test_a_library_that_is_not_there_is_named(
    sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str, *args: object, **kwargs: object) -> object:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(UsageError, match="pip install"):
        SAMPLERS[sampler](FAMILIES["bumps"](4, 0), 0)
