"""What runs inside vLLM's worker, one a rank: the pool, mapped to this rank's live parameters, and
the merge into them.

vLLM imports this by name in each of its worker processes before a model is loaded, adds
`RecyclerWorker` to its worker's base classes and calls its methods by name; only strings cross
processes.
"""

from __future__ import annotations

from recycler.engines.live import merge_live, merge_shards
from recycler.engines.vllm.patches import patch_vllm
from recycler.engines.vllm.shards import check_shards, live_shards
from recycler.engines.vllm.wire import pool_from_json, write_answer
from recycler.pool.storage.tensors import TORCH_DTYPES, ResidentPool
from recycler.recipe_json import recipe_from_json

patch_vllm()  # here, since nothing else of ours runs in a worker before the weights are loaded


class RecyclerWorker:
    """Mixed into vLLM's worker, whose `model_runner` holds the model.

    Names are prefixed: vLLM refuses clashes.
    """

    def recycler_start(self, pool_json: str, dtype: str) -> str:
        """Open the pool, map its tensors to live weights and prove the map by comparing every bit."""
        return write_answer(lambda: self._recycler_map(pool_json, dtype))

    def recycler_apply(self, recipe_json: str) -> str:
        """Merge a recipe into the live weights; gives the digest of the merge, of which they then
        hold this rank's part.
        """
        return write_answer(lambda: self._recycler_merge(recipe_json))

    def _recycler_map(self, pool_json: str, dtype: str) -> str:
        pool = pool_from_json(pool_json)
        self._recycler_pool = ResidentPool(pool)
        self._recycler_shards = live_shards(self.model_runner.model, pool.template)
        check_shards(self._recycler_shards, self._recycler_pool, TORCH_DTYPES[dtype])
        return str(len(self._recycler_shards))

    def _recycler_merge(self, recipe_json: str) -> str:
        recipe, shards = recipe_from_json(recipe_json), self._recycler_shards
        if any(shard.index for pieces in shards.values() for shard in pieces):
            return merge_shards(recipe, self._recycler_pool, shards)
        return merge_live(
            recipe, self._recycler_pool, {name: whole.view for name, (whole,) in shards.items()}
        )
