"""The map from checkpoint names to vLLM's fused, padded and shared-out parameters; no vLLM is
needed.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from recycler.engines.live import Shard, merge_shards, same_bits
from recycler.engines.vllm.shards import check_shards, live_shards
from recycler.engines.vllm.wire import pool_from_json, pool_to_json, read_answer, write_answer
from recycler.errors import UnsafeInputError, UsageError
from recycler.merge.stream import merged_tensors
from recycler.pool.storage.hashing import model_digest
from recycler.pool.storage.tensors import ResidentPool, iterate_tensors
from recycler.testing import make_pico_pool
from recycler.types import Recipe


class VocabParallelEmbedding(nn.Module):
    """Layers with the names and attributes of vLLM's, by which they are known."""


class ColumnParallelLinear(nn.Module):
    pass


class QKVParallelLinear(ColumnParallelLinear):
    pass


class MergedColumnParallelLinear(ColumnParallelLinear):
    pass


class RowParallelLinear(nn.Module):
    pass


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    return {
        tied: make_pico_pool(
            tmp_path_factory.mktemp("pico"), architecture="qwen2", tied=tied, num_members=1
        )
        for tied in (True, False)
    }


def fused_model(template, *, tied, order=("q_proj", "k_proj", "v_proj"), rank=0, ranks=1):
    """What vLLM makes of a checkpoint on one rank: fused rows, a padded vocabulary, one parameter
    for tied weights, shared-out heads.
    """
    stored = dict(iterate_tensors(template))
    model, made = nn.Module(), {}
    model.packed_modules_mapping = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    for name, tensor in stored.items():
        part = name.split(".")[-2]
        fused = next(
            (fused for fused, parts in model.packed_modules_mapping.items() if part in parts), None
        )
        if fused:
            parts = order if fused == "qkv_proj" else ("gate_proj", "up_proj")
            whole = [stored[name.replace(part, other)] for other in parts]
            live = torch.cat(
                [
                    rows if other in "k_proj v_proj" else rows.chunk(ranks)[rank]
                    for other, rows in zip(parts, whole, strict=True)
                ]
            )  # one kv head: all ranks have it
            layer = QKVParallelLinear() if fused == "qkv_proj" else MergedColumnParallelLinear()
            name = name.replace(part, fused)
            layer.total_num_heads, layer.total_num_kv_heads, layer.head_size, layer.v_head_size = (
                2,
                1,
                32,
                32,
            )
            layer.num_heads, layer.num_kv_heads, layer.num_kv_head_replicas, layer.output_sizes = (
                2 // ranks,
                1,
                ranks,
                [128, 128],
            )
        elif part in ("embed_tokens", "lm_head"):
            padded = torch.cat([tensor, tensor.new_zeros(28, 64)])
            live, layer = padded.chunk(ranks)[rank].clone(), VocabParallelEmbedding()
        elif part in ("o_proj", "down_proj"):
            live, layer = tensor.chunk(ranks, dim=1)[rank].clone(), RowParallelLinear()
            layer.input_size_per_partition = live.shape[1]
        else:
            live, layer = tensor.clone(), nn.Module()
        layer = made.setdefault(name.rpartition(".")[0], layer)
        layer.tp_rank, layer.tp_size = rank, ranks
        if isinstance(layer, VocabParallelEmbedding):
            start, stop = (min(100, 128 // ranks * edge) for edge in (rank, rank + 1))
            layer.org_vocab_size = 100
            layer.shard_indices = SimpleNamespace(
                org_vocab_start_index=start, num_org_elements=stop - start, num_added_elements=0
            )
        if name.rpartition(".")[2] not in dict(layer.named_parameters()):
            layer.register_parameter(
                name.rpartition(".")[2], nn.Parameter(live, requires_grad=False)
            )
    for path, layer in made.items():
        parent, _, last = path.rpartition(".")
        _inside(model, parent).add_module(last, layer)
    if tied:
        model.add_module("lm_head", model.model.embed_tokens)
    return model


def _inside(model, path):
    for part in filter(None, path.split(".")):
        if part not in dict(model.named_children()):
            model.add_module(part, nn.Module())
        model = model.get_submodule(part)
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (0, 2), (1, 2)])
def test_every_part_is_its_tensors_and_live(pools, tied, rank, ranks):
    pool = pools[tied]
    model = fused_model(pool.template, tied=tied, rank=rank, ranks=ranks)
    shards = live_shards(model, pool.template)
    assert list(shards) == list(pool.template.tensors)
    check_shards(shards, ResidentPool(pool), torch.bfloat16)
    for pieces in shards.values():
        for piece in pieces:
            piece.view.fill_(3.0)
    stored = min(100, 128 // ranks * (rank + 1)) - 128 // ranks * rank
    for name, parameter in model.named_parameters():
        rows = stored if "embed_tokens" in name or "lm_head" in name else len(parameter)
        assert (parameter[:rows] == 3.0).all() and not parameter[rows:].any()


@pytest.mark.parametrize("tied", [True, False])
def test_ranks_hold_slices_of_the_merge_and_tell_the_digest_of_all_of_it(pools, tied):
    pool, recipe = (
        pools[tied],
        Recipe(method="linear", members=("m0",), weights=((0.7,),), base="base"),
    )
    resident = ResidentPool(pool)
    merge = dict(merged_tensors(recipe, resident))
    found = {name: torch.zeros_like(tensor) for name, tensor in merge.items()}
    for rank in range(2):
        shards = live_shards(
            fused_model(pool.template, tied=tied, rank=rank, ranks=2), pool.template
        )
        assert merge_shards(recipe, resident, shards) == model_digest(merge.items())
        for name, pieces in shards.items():
            for piece in pieces:
                piece.of(found[name]).copy_(piece.view)
    assert all(same_bits(found[name], tensor) for name, tensor in merge.items())


def test_a_rank_that_was_cut_otherwise_is_noticed(pools):
    model = fused_model(pools[False].template, tied=False, rank=0, ranks=2)
    for layer in model.modules():
        layer.tp_rank = 1
    with pytest.raises(UnsafeInputError, match="down_proj"):
        check_shards(
            live_shards(model, pools[False].template), ResidentPool(pools[False]), torch.bfloat16
        )


def test_memory_that_does_not_take_what_is_written_is_noticed(pools):
    shards = {
        name: (Shard(torch.zeros(info.shape, dtype=torch.float16)),)
        for name, info in pools[False].template.tensors.items()
    }
    with pytest.raises(RuntimeError, match="does not hold"):
        merge_shards(
            Recipe(method="linear", members=("m0",), weights=((1.0,),)),
            ResidentPool(pools[False]),
            shards,
        )


def test_bits_are_compared_not_values():
    assert same_bits(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(torch.zeros(2), torch.zeros(2, dtype=torch.int32)) and not same_bits(
        torch.zeros(2), torch.zeros(1, 2)
    )


def test_another_order_of_the_fused_rows_is_noticed(pools):
    pool = pools[False]
    shards = live_shards(
        fused_model(pool.template, tied=False, order=("k_proj", "q_proj", "v_proj")), pool.template
    )
    with pytest.raises(UnsafeInputError, match="q_proj"):
        check_shards(shards, ResidentPool(pool), torch.bfloat16)


def test_a_packed_away_weight_is_noticed(pools):
    model = fused_model(pools[False].template, tied=False)
    model.model.layers.get_submodule("0").mlp.down_proj.weight = nn.Parameter(
        torch.empty(0), requires_grad=False
    )
    with pytest.raises(UnsafeInputError, match="down_proj.weight' has|down_proj.weight': has"):
        live_shards(model, pools[False].template)


def test_live_memory_that_no_tensor_fills_is_noticed(pools):
    model = fused_model(pools[False].template, tied=False)
    _inside(model, "model.gate").register_parameter(
        "weight", nn.Parameter(torch.ones(3), requires_grad=False)
    )
    with pytest.raises(UnsafeInputError, match="model.gate.weight"):
        live_shards(model, pools[False].template)


def test_a_checkpoint_that_stores_tied_weights_twice_is_refused(pools):
    untied = pools[False]
    with pytest.raises(UnsafeInputError, match="tied to"):
        live_shards(fused_model(untied.template, tied=True), untied.template)


def test_pools_and_problems_cross_as_text(pools):
    pool = pools[True]
    assert pool_from_json(pool_to_json(pool)) == pool
    with pytest.raises(UnsafeInputError, match="thing: cause. remedy"):
        read_answer('{"kind": "UnsafeInputError", "problems": [["thing", "cause", "remedy", ""]]}')
    assert read_answer('{"result": "x"}') == "x"


def test_errors_of_a_worker_cross_as_text():
    def refuse():
        raise UsageError("no")

    with pytest.raises(UsageError, match="no"):
        read_answer(write_answer(refuse))
    with pytest.raises(RuntimeError, match="KeyError: 'lost'"):
        read_answer(write_answer(lambda: {}["lost"]))
