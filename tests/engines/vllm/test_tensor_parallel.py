"""Engines of two ranks: vLLM on a CPU with two worker processes, and its own layers as other ranks
would hold them.

Exact are the weights, and with them answers of one engine that come back when its weights do. Two
ranks add up their sums in another order than one, so answers are compared with an unsharded
engine's by a tolerance.
"""

import hashlib
import threading
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import psutil
import pytest
import torch
from torch import nn

from recycler.cluster.ray_workers import RayWorkers, _resources
from recycler.cluster.workers import Request, Work
from recycler.engines import build_engine, parallel_problems
from recycler.engines.vllm.shards import check_shards, live_shards
from recycler.errors import UsageError
from recycler.export.export import export_recipe
from recycler.pool.catalog import open_checkpoint
from recycler.pool.storage.hashing import tensor_bytes
from recycler.pool.storage.tensors import ResidentPool, iterate_tensors
from recycler.specs.job import EngineSpec
from recycler.testing import EngineContract, ask, make_pico_pool
from recycler.types import GenerateRequest, Item, Objective, Pool, Recipe

needs_vllm = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        find_spec("vllm") is None, reason="vllm is not installed: pip install 'recycler[vllm]'"
    ),
]


# ---------------------------------------------------------------- the job's setting


def test_a_job_that_says_nothing_keeps_its_digest():
    assert "tensor_parallel" not in EngineSpec(name="vllm").model_dump()
    assert EngineSpec(name="vllm", tensor_parallel=2).model_dump()["tensor_parallel"] == 2


@pytest.mark.parametrize("name", [None, "transformers"])
def test_only_vllm_takes_it(name, tmp_path):
    with pytest.raises(ValueError, match="needs engine.name: vllm"):
        EngineSpec(name=name, tensor_parallel=2)
    with pytest.raises(UsageError, match="one device"):
        build_engine("transformers", Pool(members=()), tensor_parallel=2)


def test_ranks_that_cannot_share_the_heads_are_refused(tmp_path):
    pool = make_pico_pool(tmp_path, num_members=1)  # 2 heads, 1 kv head, 128 rows of an MLP
    assert list(parallel_problems(pool, 1)) == list(parallel_problems(pool, 2)) == []
    (problem,) = parallel_problems(pool, 4, "job.yaml:3")
    assert "2 attention heads" in problem.cause and problem.where == "job.yaml:3"


@pytest.mark.parametrize(
    ("node", "wanted"),
    [
        ({"CPU": 64.0, "GPU": 8.0}, {"num_gpus": 4, "num_cpus": 4}),
        ({"CPU": 64.0}, {"num_cpus": 32.0}),
    ],
)
def test_a_worker_asks_for_a_gpu_a_rank_on_one_node(node, wanted):
    work = Work(
        pool=Pool(members=()),
        engine="vllm",
        items=(),
        objectives=(),
        settings={"tensor_parallel": 4},
    )
    with patch("ray.nodes", return_value=[{"Alive": True, "Resources": node}]):
        options = _resources(2, work)
    assert {key: value for key, value in options.items() if key.startswith("num_")} == wanted
    assert options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "8"


# ------------------------------- vLLM's own layers, as each of many ranks holds them


class _Shared(nn.Module):
    """The layers of a Llama or Qwen2 block as rank `rank` of `ranks` holds them, and the
    declaration that vLLM's models carry.
    """

    packed_modules_mapping = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(self, *, vocab, heads, kv_heads):
        from vllm.model_executor.layers.linear import (
            MergedColumnParallelLinear,
            QKVParallelLinear,
            RowParallelLinear,
        )
        from vllm.model_executor.layers.vocab_parallel_embedding import (
            ParallelLMHead,
            VocabParallelEmbedding,
        )

        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(vocab, 64)
        self.lm_head = ParallelLMHead(vocab, 64, bias=True)
        self.qkv_proj = QKVParallelLinear(64, 8, heads, kv_heads, bias=True)
        self.o_proj = RowParallelLinear(heads * 8, 64, bias=True)
        self.gate_up_proj = MergedColumnParallelLinear(64, [96, 96], bias=False)
        self.down_proj = RowParallelLinear(96, 64, bias=False)
        self.norm = nn.LayerNorm(64)


def _stored(*, vocab, heads, kv_heads, fused):
    """A checkpoint's tensors for `_Shared`, with its fused ones apart or, as some architectures
    store them, together.
    """
    shapes = {
        "embed_tokens.weight": (vocab, 64),
        "lm_head.weight": (vocab, 64),
        "lm_head.bias": (vocab,),
        "o_proj.weight": (64, heads * 8),
        "o_proj.bias": (64,),
        "down_proj.weight": (64, 96),
        "norm.weight": (64,),
        "norm.bias": (64,),
    }
    rows = {"q_proj": heads * 8, "k_proj": kv_heads * 8, "v_proj": kv_heads * 8}
    shapes |= (
        {f"{part}_proj.weight": (96, 64) for part in ("gate", "up")}
        | {f"{part}.weight": (size, 64) for part, size in rows.items()}
        | {f"{part}.bias": (size,) for part, size in rows.items()}
    )
    torch.manual_seed(0)
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    if fused:
        for whole, parts in _Shared.packed_modules_mapping.items():
            for kind in ("weight", "bias"):
                if f"{parts[0]}.{kind}" in tensors:
                    tensors[f"{whole}.{kind}"] = torch.cat(
                        [tensors.pop(f"{part}.{kind}") for part in parts]
                    )
    return tensors


def _loaded(model, tensors):
    """Each tensor through the loader that vLLM gave the parameter."""
    parameters = dict(model.named_parameters())
    places = {
        part: (whole, number if len(parts) == 2 else part[0])
        for whole, parts in model.packed_modules_mapping.items()
        for number, part in enumerate(parts)
    }
    for name, tensor in tensors.items():
        part, _, kind = name.partition(".")
        whole, number = places.get(part, (part, None))
        parameter = parameters[f"{whole}.{kind}"]
        if hasattr(parameter, "weight_loader"):
            parameter.weight_loader(parameter, tensor, *(() if number is None else (number,)))
        else:
            parameter.data.copy_(tensor)


class TestLayersOfManyRanks:
    pytestmark = needs_vllm

    @pytest.mark.parametrize("fused", [False, True])
    @pytest.mark.parametrize(
        ("ranks", "vocab", "heads", "kv_heads"),
        [(1, 100, 4, 2), (2, 100, 4, 2), (4, 100, 8, 2), (8, 100, 8, 1), (4, 257, 4, 4)],
    )
    def test_every_rank_is_mapped_and_all_of_them_hold_the_checkpoint(
        self, ranks, vocab, heads, kv_heads, fused, tmp_path
    ):
        """With fewer kv heads than ranks, with ranks that hold padding only, with biases, fused in
        the checkpoint or not.
        """
        from safetensors.torch import save_file
        from vllm.config import VllmConfig, set_current_vllm_config

        tensors = _stored(vocab=vocab, heads=heads, kv_heads=kv_heads, fused=fused)
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text('{"num_hidden_layers": 1}')
        pool = Pool(members=(open_checkpoint(tmp_path, name="m0"),))
        found = {name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}
        for rank in range(ranks):
            with ExitStack() as stack:
                stack.enter_context(set_current_vllm_config(VllmConfig()))
                for module in ("linear", "vocab_parallel_embedding", "parameter"):
                    folder = "" if module == "parameter" else "layers."
                    place = f"vllm.model_executor.{folder}{module}.get_tensor_model_parallel"
                    stack.enter_context(patch(f"{place}_rank", return_value=rank))
                    stack.enter_context(patch(f"{place}_world_size", return_value=ranks))
                model = _Shared(vocab=vocab, heads=heads, kv_heads=kv_heads)
                _loaded(model, tensors)
            shards = live_shards(model, pool.template)
            check_shards(shards, ResidentPool(pool), torch.float32)
            for name, pieces in shards.items():
                for piece in pieces:
                    piece.of(found[name]).copy_(piece.view)
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


# ---------------------------------------------------------------- two real ranks


def live_bits(worker):
    """Runs in a rank: a digest of all its live parameters, padding included."""
    sha = hashlib.sha256()
    for name, parameter in sorted(worker.model_runner.model.named_parameters()):
        sha.update(name.encode())
        sha.update(tensor_bytes(parameter))
    return sha.hexdigest()


def load_as_vllm_does(worker, folder):
    """Runs in a rank: vLLM's own loader, which cuts a checkpoint for this rank, over the live
    parameters.
    """
    worker.model_runner.model.load_weights(iterate_tensors(open_checkpoint(Path(folder))))


class TwoRanks(EngineContract):
    """The contract of engines; what a fresh engine would answer is what this one answers with
    weights that vLLM has loaded.
    """

    pytestmark = needs_vllm

    @classmethod
    def build(cls, pool):
        from recycler.engines.vllm.engine import VLLMEngine

        if "engine" not in cls.__dict__:
            cls.engine = VLLMEngine(pool, max_model_len=cls.max_model_len, tensor_parallel=2)
        return cls.engine

    @classmethod
    def _fresh(cls, checkpoint):
        engine = cls.build(cls.pool)
        engine.apply(
            Recipe(method="linear", members=cls.pool.names, weights=((0.0, 0.0, 0.0),), base="base")
        )  # no cache of what was loaded before
        engine._llm.collective_rpc(load_as_vllm_does, args=(str(checkpoint.location),))
        return ask(engine)

    def _bits(self):
        return self.engine._llm.collective_rpc(live_bits)

    def test_two_ranks_that_differ(self):
        assert len(set(self._bits())) == 2 and self.engine.fingerprint.endswith("tensor parallel 2")

    @pytest.mark.parametrize(
        "method, weights, options",
        [
            ("linear", (1.0, 0.0, 0.0), ()),
            ("linear", (0.3, 0.5, -0.1), ()),
            ("ties", (0.7, 0.5, -0.2), (("density", 0.5),)),
            ("dare_ties", (0.4, 0.4, 0.4), (("density", 0.5),)),
        ],
    )
    def test_live_memory_is_what_vllm_itself_makes_of_the_export(
        self, method, weights, options, tmp_path
    ):
        recipe = Recipe(
            method=method,
            members=self.pool.names,
            weights=(weights,),
            base="base",
            options=options,
            seed=3,
        )
        export = export_recipe(recipe, self.pool, tmp_path / "export")
        assert self.engine.apply(recipe) == export.weights_digest
        merged = self._bits()
        self.engine.apply(self._linear(0.0, 1.0, 0.0))
        assert self._bits() != merged
        self.engine._llm.collective_rpc(load_as_vllm_does, args=(str(tmp_path / "export"),))
        assert self._bits() == merged

    def test_answers_are_those_of_one_rank_but_for_rounding(self):
        """In bfloat16 each layer rounds to 8 bits: log-probabilities of tokens differ by some
        hundredths.
        """
        from recycler.engines.vllm.engine import VLLMEngine

        alone = VLLMEngine(self.pool, max_model_len=self.max_model_len)
        try:
            assert (
                alone.apply(self.random_recipe)
                == self.engine.apply(self.random_recipe)
                == self.export_digest
            )
            ours, theirs = ask(self.engine), ask(alone)
        finally:
            alone.close()
        assert ours.completions[0].text[:3] == theirs.completions[0].text[:3]
        for one, other in zip(ours.likelihoods, theirs.likelihoods, strict=True):
            assert one.token_logprobs == pytest.approx(other.token_logprobs, abs=0.1)

    @staticmethod
    def _ranks():
        found = [
            process
            for process in psutil.Process().children(recursive=True)
            if "Worker_TP" in " ".join(process.cmdline())
        ]
        assert len(found) == 2
        return found


class TestLlamaTied(TwoRanks):
    def test_a_rank_that_dies_ends_the_engine_and_all_its_processes(self):
        ranks = self._ranks()
        threading.Timer(0.2, ranks[1].kill).start()
        with pytest.raises(RuntimeError, match="has died"):
            while True:
                ask(self.engine)
        with pytest.raises(RuntimeError, match="has died"):
            self.engine.apply(self.random_recipe)
        self.engine.close()
        assert psutil.wait_procs(ranks, timeout=20)[1] == []


@pytest.mark.slow  # the same contract over one rank, and over two ranks for Llama, is not slow
class TestQwen2Untied(TwoRanks):
    architecture = "qwen2"
    tied = False

    def test_closing_ends_all_its_processes(self):
        ranks = self._ranks()
        self.engine.close()
        assert psutil.wait_procs(ranks, timeout=20)[1] == []
        with pytest.raises(RuntimeError, match="closed"):
            self.engine.generate([GenerateRequest(prompt_ids=(5,), max_new_tokens=1)])


# ---------------------------------------------------------------- as a worker of a cluster


@pytest.mark.slow
@pytest.mark.ray
class TestRay:
    pytestmark = needs_vllm

    def test_a_worker_whose_rank_dies_is_built_anew_and_no_rank_outlives_its_worker(self, tmp_path):
        pool = make_pico_pool(tmp_path / "pool")
        item = Item(
            id="fake/a/0",
            suite="fake",
            task="a",
            role="search",
            kind="generate",
            scorer="exact_match",
            prompt="p",
            prompt_ids=(1, 5, 6),
            gold="x",
            max_new_tokens=8,
        )
        work = Work(
            pool=pool,
            engine="vllm",
            items=(item,),
            objectives=(
                Objective(suite="fake", task="a", metric="exact_match", direction="maximize"),
            ),
            settings={"dtype": "bfloat16", "max_model_len": 64, "tensor_parallel": 2},
        )
        recipe = Recipe(
            method="linear", members=pool.names, weights=((0.4, 0.3, 0.1),), base="base"
        )
        workers, seen = RayWorkers(work, num_workers=1), []
        try:
            workers.submit(Request(number=0, recipe=recipe, role="search"))
            (before,) = workers.wait()
            seen += self._ranks(workers)
            seen[1].kill()
            workers.submit(Request(number=1, recipe=recipe, role="search"))
            (after,) = workers.wait()
            assert (
                before.answer.weights_digest == after.answer.weights_digest
                and before.answer.outcomes == after.answer.outcomes
            )
            seen += self._ranks(workers)
            psutil.Process(*workers.process_ids()).kill()
            assert len(set(seen)) == 4 and psutil.wait_procs(seen, timeout=30)[1] == []
        finally:
            workers.close()

    @staticmethod
    def _ranks(workers):
        (actor,) = workers.process_ids()
        return [
            process
            for process in psutil.Process(actor).children(recursive=True)
            if "Worker_TP" in " ".join(process.cmdline())
        ]
