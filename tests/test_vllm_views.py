"""The map from checkpoint names to vLLM's fused and padded parameters; no vLLM is needed."""

import pytest
import torch
from torch import nn

from recycler.engines.vllm_worker import check_views, live_views, pool_from_json, pool_to_json, read_answer
from recycler.errors import UnsafeInputError
from recycler.pool.tensors import ResidentPool, iterate_tensors
from recycler.testing import make_pico_pool


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    return {tied: make_pico_pool(tmp_path_factory.mktemp("pico"), architecture="qwen2", tied=tied, num_members=1) for tied in (True, False)}


def fused_model(template, *, tied, order=("q_proj", "k_proj", "v_proj"), rows=128):
    """What vLLM makes of a checkpoint: fused rows, a padded vocabulary, one parameter for tied weights."""
    stored = dict(iterate_tensors(template))
    parameters = {}
    for name, tensor in stored.items():
        for fused, parts in {"qkv_proj": order, "gate_up_proj": ("gate_proj", "up_proj")}.items():
            if any(f".{part}." in name for part in parts):
                part = next(part for part in parts if f".{part}." in name)
                parameters[name.replace(part, fused)] = torch.cat([stored[name.replace(part, other)] for other in parts])
                break
        else:
            parameters[name] = torch.cat([tensor, tensor.new_zeros(rows - 100, 64)]) if tensor.shape == (100, 64) else tensor.clone()
    model = nn.Module()
    model.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
    for name, tensor in parameters.items():
        _place(model, name, nn.Parameter(tensor, requires_grad=False))
    if tied:
        _place(model, "lm_head.weight", model.model.embed_tokens.weight)
    for module in (model.model.embed_tokens, model.lm_head):
        module.org_vocab_size = 100
    return model


def _place(model, name, parameter):
    *path, last = name.split(".")
    for part in path:
        if part not in dict(model.named_children()):
            model.add_module(part, nn.Module())
        model = model.get_submodule(part)
    model.register_parameter(last, parameter)


@pytest.mark.parametrize("tied", [True, False])
def test_every_view_is_its_tensor_and_live(pools, tied):
    pool = pools[tied]
    model = fused_model(pool.template, tied=tied)
    views = live_views(model, pool.template)
    assert list(views) == list(pool.template.tensors)
    check_views(views, ResidentPool(pool), torch.bfloat16)
    for view in views.values():
        view.fill_(3.0)
    for name, parameter in model.named_parameters():
        padding = parameter[100:] if parameter.shape[0] == 128 and parameter.shape[1:] == (64,) and "embed" in name or name == "lm_head.weight" else parameter[:0]
        assert (parameter[: len(parameter) - len(padding)] == 3.0).all() and not padding.any()


def test_another_order_of_the_fused_rows_is_noticed(pools):
    pool = pools[False]
    views = live_views(fused_model(pool.template, tied=False, order=("k_proj", "q_proj", "v_proj")), pool.template)
    with pytest.raises(UnsafeInputError, match="q_proj"):
        check_views(views, ResidentPool(pool), torch.bfloat16)


def test_a_packed_away_weight_is_noticed(pools):
    model = fused_model(pools[False].template, tied=False)
    model.model.layers.get_submodule("0").mlp.down_proj.weight = nn.Parameter(torch.empty(0), requires_grad=False)
    with pytest.raises(UnsafeInputError, match="down_proj.weight' has|down_proj.weight': has"):
        live_views(model, pools[False].template)


def test_live_memory_that_no_tensor_fills_is_noticed(pools):
    model = fused_model(pools[False].template, tied=False)
    _place(model, "model.gate.weight", nn.Parameter(torch.ones(3), requires_grad=False))
    with pytest.raises(UnsafeInputError, match="model.gate.weight"):
        live_views(model, pools[False].template)


def test_a_checkpoint_that_stores_tied_weights_twice_is_refused(pools):
    untied = pools[False]
    with pytest.raises(UnsafeInputError, match="tied to"):
        live_views(fused_model(untied.template, tied=True), untied.template)


def test_pools_and_problems_cross_as_text(pools):
    pool = pools[True]
    assert pool_from_json(pool_to_json(pool)) == pool
    with pytest.raises(UnsafeInputError, match="thing: cause. remedy"):
        read_answer('{"kind": "UnsafeInputError", "problems": [["thing", "cause", "remedy", ""]]}')
    assert read_answer('{"result": "x"}') == "x"
