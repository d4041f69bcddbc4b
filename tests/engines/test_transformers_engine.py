"""The transformers engine fills the contract of engines."""

from recycler.engines.transformers_engine import TransformersEngine
from recycler.testing import EngineContract


class TestLlamaTied(EngineContract):
    @classmethod
    def build(cls, pool):
        return TransformersEngine(pool, max_model_len=cls.max_model_len)


class TestQwen2Untied(TestLlamaTied):
    architecture = "qwen2"
    tied = False


class TestQwen3Tied(TestLlamaTied):
    architecture = "qwen3"
