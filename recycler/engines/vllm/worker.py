"""The part inside vLLM's workers, one per rank: it maps the pool to live weights and merges it.

vLLM imports this by name in each of its worker processes before a model is loaded, adds
`RecyclerWorker` to its worker's base classes and calls its methods by name; only strings cross
processes.
"""

from __future__ import annotations

from typing import Any

from recycler.engines.live import Shard, merge_live, merge_shards
from recycler.engines.vllm.patches import patch_vllm
from recycler.engines.vllm.shards import check_shards, live_shards
from recycler.engines.vllm.wire import pool_from_json, write_answer
from recycler.pool.storage.tensors import TORCH_DTYPES, ResidentPool
from recycler.recipe_json import recipe_from_json

patch_vllm()  # here, since nothing else of ours runs in a worker before the weights are loaded


class RecyclerWorker:
    """Mixed into vLLM's worker, whose `model_runner` holds the model.

    Names are prefixed, since vLLM refuses clashes. Each method returns what `read_answer` reads.
    """

    model_runner: Any
    _recycler_pool: ResidentPool
    _recycler_shards: dict[str, tuple[Shard, ...]]

    def recycler_start(self, pool_json: str, dtype: str) -> str:
        """Open the pool, and map its tensors to live weights; every bit is compared."""
        return write_answer(lambda: self._recycler_map(pool_json, dtype))

    def recycler_apply(self, recipe_json: str) -> str:
        """Merge a recipe into the live weights; the answer is the digest of the whole merge."""
        return write_answer(lambda: self._recycler_merge(recipe_json))

    def _recycler_map(self, pool_json: str, dtype: str) -> str:
        pool = pool_from_json(pool_json)
        self._recycler_pool = ResidentPool(pool)
        self._recycler_shards = live_shards(self.model_runner.model, pool.template)
        check_shards(self._recycler_shards, self._recycler_pool, TORCH_DTYPES[dtype])
        return str(len(self._recycler_shards))

    def _recycler_merge(self, recipe_json: str) -> str:
        recipe, shards = recipe_from_json(recipe_json), self._recycler_shards
        is_cut = any(shard.index for pieces in shards.values() for shard in pieces)
        if is_cut:
            return merge_shards(recipe, self._recycler_pool, shards)
        weights = {name: whole.view for name, (whole,) in shards.items()}
        return merge_live(recipe, self._recycler_pool, weights)
