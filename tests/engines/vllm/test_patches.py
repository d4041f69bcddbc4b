"""What is replaced in vLLM on a CPU: does its work, is still needed, and refuses an unknown vLLM.

When a test that begins with `test_vllm_still` fails, vLLM may offer the thing itself: see
docs/design/vllm-patches.md.
"""

from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from recycler.engines.vllm import patches
from recycler.errors import UnsafeInputError

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        find_spec("vllm") is None or torch.cuda.is_available(),
        reason="needs vllm on a CPU: pip install 'recycler[vllm]'",
    ),
]


@pytest.fixture
def vllm(monkeypatch):
    """vLLM's modules with vLLM's own functions in them; what was there returns after the test."""
    from vllm.lora.punica_wrapper import punica_cpu
    from vllm.model_executor.layers import utils
    from vllm.v1.sample import sampler

    modules = {module.__name__: module for module in (punica_cpu, utils, sampler)}
    for (module, name), (own, _) in patches._REPLACED.items():
        monkeypatch.setattr(modules[module], name, own)
    for module, name in (
        (utils, "dispatch_cpu_unquantized_gemm"),
        (sampler, "batched_count_greater_than"),
        *((punica_cpu, name) for name in patches.KERNELS),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(patches, "_REPLACED", {})
    return SimpleNamespace(utils=utils, sampler=sampler, punica_cpu=punica_cpu)


# ---------------------------------------------------------------- 1. weights stay live


def product_after_a_change(vllm):
    """A layer's product and the right one, after its weight doubled behind vLLM's preparation."""
    weight = torch.randn(128, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    layer = torch.nn.Linear(64, 128, bias=False, dtype=torch.bfloat16)
    x = torch.ones(2, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.copy_(weight)
        vllm.utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
        layer.weight.mul_(2)
        return layer.cpu_linear(x, layer.weight, None), x @ layer.weight.T


def test_a_layer_computes_with_weights_that_have_changed(vllm):
    patches.patch_vllm()
    found, expected = product_after_a_change(vllm)
    assert torch.equal(found, expected)


def test_a_layer_keeps_the_weight_that_vllm_would_free(vllm):
    patches.patch_vllm()
    layer = torch.nn.Linear(64, 128, bias=False, dtype=torch.bfloat16)
    vllm.utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    assert layer.weight.shape == (128, 64)


def test_vllm_still_computes_with_a_packed_copy(vllm):
    found, expected = product_after_a_change(vllm)
    if found.equal(expected):
        pytest.skip("this CPU has no packed product")
    assert torch.allclose(2 * found.float(), expected.float(), rtol=0.05, atol=0.5)


def test_another_way_of_packing_is_refused(vllm, monkeypatch):
    monkeypatch.setattr(vllm.utils, "dispatch_cpu_unquantized_gemm", lambda layer, keep: None)
    with pytest.raises(UnsafeInputError, match="packs CPU weights in an unknown way"):
        patches.patch_vllm()


def test_a_vllm_that_packs_elsewhere_is_refused(vllm, monkeypatch):
    monkeypatch.delattr(vllm.utils, "dispatch_cpu_unquantized_gemm")
    with pytest.raises(UnsafeInputError, match="keeps CPU weights in an unknown place"):
        patches.patch_vllm()


# ---------------------------------------------------------------- 2. no compiler for a count


def test_ranks_are_counted_as_vllm_counts_them(vllm):
    own = vllm.sampler.batched_count_greater_than.__wrapped__
    patches.patch_vllm()
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    values = x.gather(1, torch.arange(5).unsqueeze(1))
    assert torch.equal(vllm.sampler.batched_count_greater_than(x, values), own(x, values))


def test_vllm_still_compiles_the_count(vllm):
    assert hasattr(vllm.sampler.batched_count_greater_than, "_torchdynamo_orig_callable")


def test_an_unknown_version_keeps_its_own_count(vllm, monkeypatch):
    import vllm as library

    own = vllm.sampler.batched_count_greater_than
    monkeypatch.setattr(library, "__version__", "0.99.0")
    patches.patch_vllm()
    assert vllm.sampler.batched_count_greater_than is own


# ---------------------------------------------------------------- 3. one product per adapter


def ask_kernels(kernels, indices):
    """What the four kernels make of random factors, with an adapter per token or per sequence."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 16, generator=generator)
    down = torch.randn(3, 1, 4, 16, generator=generator)
    up = torch.randn(3, 1, 8, 4, generator=generator)
    indices, starts, lengths = torch.tensor(indices), torch.arange(6), torch.ones(6, dtype=int)
    sequences = (starts, lengths, indices, 6, 1, 6)
    small, by_sequence = torch.zeros(6, 4), torch.zeros(6, 4)
    kernels.bgmv_shrink(x, down, small, indices, 0.5)
    kernels.sgmv_shrink(x, down, by_sequence, *sequences, 0.5)
    wide, added, replaced = torch.zeros(6, 20), torch.ones(6, 20), torch.ones(6, 20)
    kernels.bgmv_expand_slice(small, up, wide, indices, 4, 8, True)
    kernels.sgmv_expand_slice(small, up, added, *sequences, 4, 8, True)
    kernels.sgmv_expand_slice(small, up, replaced, *sequences, 4, 8, False)
    return small, by_sequence, wide, added, replaced


def test_adapters_multiply_as_vllms_own_kernels_do(vllm):
    expected = ask_kernels(vllm.punica_cpu, [0, 2, 1, 0, 2, 2])
    patches.patch_vllm()
    found = ask_kernels(vllm.punica_cpu, [0, 2, 1, 0, 2, 2])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_token_without_an_adapter_is_left_as_it_is(vllm):
    patches.patch_vllm()
    small, by_sequence, wide, added, replaced = ask_kernels(vllm.punica_cpu, [0, -1, 1, 0, -1, 2])
    for tensor in (small, by_sequence, wide):
        assert not tensor[[1, 4]].any() and tensor[[0, 2, 3, 5]].any(dim=1).all()
    for tensor in (added, replaced):
        assert torch.equal(tensor[[1, 4]], torch.ones(2, 20))


def test_vllm_still_takes_the_last_adapter_for_none(vllm):
    """Their pull request 48421 would end it."""
    found = ask_kernels(vllm.punica_cpu, [0, -1, 1, 0, -1, 2])
    last = ask_kernels(vllm.punica_cpu, [0, 2, 1, 0, 2, 2])
    assert torch.equal(found[0], last[0])


def test_other_kernels_are_refused_by_name(vllm, monkeypatch):
    monkeypatch.setattr(vllm.punica_cpu, "sgmv_shrink", lambda inputs, weights: None)
    with pytest.raises(UnsafeInputError, match="another CPU kernel sgmv_shrink"):
        patches.patch_vllm()


# ---------------------------------------------------------------- all of them


def test_replacing_twice_changes_nothing_more(vllm):
    patches.patch_vllm()
    once = dict(patches._REPLACED)
    patches.patch_vllm()
    assert once == patches._REPLACED
    assert (
        vllm.utils.dispatch_cpu_unquantized_gemm
        is once["vllm.model_executor.layers.utils", "dispatch_cpu_unquantized_gemm"][1]
    )


def test_nothing_is_replaced_on_a_gpu(vllm, monkeypatch):
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    patches.patch_vllm()
    assert not patches._REPLACED
