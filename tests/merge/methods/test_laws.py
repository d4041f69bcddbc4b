"""Laws that hold for every merge method: checked on random tensors, without golden files."""

from __future__ import annotations

import math
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recycler.merge.methods.method import TensorContext, as_keywords
from recycler.merge.methods.registry import MERGE_METHODS

LAYER = "model.layers.1.mlp.up_proj.weight"
WEIGHTLESS_LAWS = {"layer_swap"}  # its weights are used in transition layers only
SPARSE = {
    "ties": {"density": 0.4},
    "dare_linear": {"density": 0.4},
    "dare_ties": {"density": 0.4},
    "della": {"density": 0.4},
    "della_linear": {"density": 0.4},
    "breadcrumbs": {"density": 0.4},
    "breadcrumbs_ties": {"density": 0.4},
    "sce": {"select_topk": 0.4},
}
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
NEUTRAL = {
    "lines": {"alpha": 1.0, "beta": 0.0}
}  # options under which a method is expected to give back a lone member
NOT_A_LONE_MEMBER = {
    "widen",
    "iso_c",
    "layer_swap",
}  # they rescale even one delta, by columns or by singular values
FORMS = [
    (name, options)
    for name in MERGE_METHODS
    for options in ([{}, SPARSE[name]] if name in SPARSE else [NEUTRAL.get(name, {})])
]
names = pytest.mark.parametrize("method", sorted(set(MERGE_METHODS) - WEIGHTLESS_LAWS))


def members_of(count, shape=(12, 20), seed=0, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return base.to(dtype), [
        (base + 0.1 * torch.randn(shape, generator=generator)).to(dtype) for _ in range(count)
    ]


def merge(
    method,
    tensors,
    weights,
    base,
    members=None,
    name=LAYER,
    seed=0,
    dtype=torch.bfloat16,
    out=None,
    **options,
):
    out = torch.full(tensors[0].shape, float("nan"), dtype=dtype) if out is None else out
    context = TensorContext(
        name=name, members=members or tuple("abcdefgh"[: len(tensors)]), seed=seed, num_layers=4
    )
    base = base if MERGE_METHODS[method].needs_base else None
    MERGE_METHODS[method].function(
        tensors, weights, base=base, context=context, out=out, **as_keywords(options)
    )
    return out


def count_for(method):
    return MERGE_METHODS[method].num_members or 3


# ---------------------------------------------------------------- one member


@pytest.mark.parametrize("method", sorted(set(MERGE_METHODS) - NOT_A_LONE_MEMBER))
@pytest.mark.parametrize("which", [0, 1])
def test_one_hot_weights_return_the_checkpoint(method, which):
    base, tensors = members_of(count_for(method))
    tensors[which][0, :3] = torch.tensor([1e-9, -0.0, 3e4])
    weights = [float(index == which) for index in range(len(tensors))]
    assert torch.equal(
        merge(method, tensors, weights, base, **NEUTRAL.get(method, {})), tensors[which]
    )


@names
def test_zero_weights_never_read_the_member(method):
    """An inf, a nan or anything else in a member of weight zero changes nothing."""
    if count_for(method) == 2:
        weights = [0.0, 1.0]
    else:
        weights = [0.0, 0.5, 0.5]
    base, tensors = members_of(len(weights))
    expected = merge(method, tensors, weights, base)
    tensors[0].fill_(float("inf"))
    tensors[0][0] = float("nan")
    assert torch.equal(merge(method, tensors, weights, base), expected)


@names
def test_all_weights_zero_give_the_base(method):
    if not MERGE_METHODS[method].needs_base:
        return
    base, tensors = members_of(3)
    assert torch.equal(merge(method, tensors, [0.0] * 3, base), base)


@pytest.mark.parametrize(
    "method,options",
    [
        form
        for form in FORMS
        if form[0] not in NOT_A_LONE_MEMBER | {"tsv_merge"}
        and form[1] in ({}, {"alpha": 1.0, "beta": 0.0})
    ],
)
def test_equal_copies_return_the_checkpoint(method, options):
    base, (tensor,) = members_of(1, dtype=torch.float32)
    count = count_for(method)
    out = merge(
        method,
        [tensor.clone() for _ in range(count)],
        [1 / count] * count,
        base,
        dtype=torch.float32,
        **options,
    )
    torch.testing.assert_close(out, tensor, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- order, place, layout


@pytest.mark.parametrize("method,options", [form for form in FORMS if count_for(form[0]) != 2])
@settings(max_examples=6, deadline=None)
@given(order=st.permutations(range(4)), seed=st.integers(0, 100))
def test_order_of_members_does_not_matter(method, options, order, seed):
    """Members keep their weights and masks when they are listed in another order (up to float32
    rounding).
    """
    base, tensors = members_of(4, shape=(6, 10), seed=seed, dtype=torch.float32)
    weights, members = [0.4, 0.3, 0.2, 0.1], ("a", "b", "c", "d")
    straight = merge(
        method, tensors, weights, base, members=members, dtype=torch.float32, **options
    )
    shuffled = merge(
        method,
        [tensors[k] for k in order],
        [weights[k] for k in order],
        base,
        members=tuple(members[k] for k in order),
        dtype=torch.float32,
        **options,
    )
    torch.testing.assert_close(shuffled, straight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method,options", FORMS)
def test_inputs_are_left_as_they_were(method, options):
    base, tensors = members_of(count_for(method), dtype=torch.float32)
    before = [tensor.clone() for tensor in (base, *tensors)]
    merge(method, tensors, [1 / len(tensors)] * len(tensors), base, dtype=torch.float32, **options)
    assert all(torch.equal(old, new) for old, new in zip(before, (base, *tensors), strict=True))


@pytest.mark.parametrize("method,options", FORMS)
def test_strided_outputs_and_inputs_give_the_same_numbers(method, options):
    base, tensors = members_of(count_for(method))
    weights = [1 / len(tensors)] * len(tensors)
    expected = merge(method, tensors, weights, base, **options)
    wide = torch.zeros(20, 12, dtype=torch.bfloat16)
    scattered = [tensor.T.contiguous().T for tensor in tensors]
    assert torch.equal(
        merge(method, scattered, weights, base.T.contiguous().T, out=wide.T, **options), expected
    )


@pytest.mark.parametrize("method,options", FORMS)
def test_block_size_does_not_matter(method, options, monkeypatch):
    """Masks and cuts are by element, not by block: small caches and large ones merge alike."""
    base, tensors = members_of(count_for(method), shape=(40, 1000))
    weights = [1 / len(tensors)] * len(tensors)
    expected = merge(method, tensors, weights, base, **options)
    monkeypatch.setattr("recycler.merge.kernels.blocks.BLOCK_ELEMENTS", 8192)
    monkeypatch.setattr("recycler.merge.kernels.blocks.CACHE_ELEMENTS", 8192)
    out = merge(method, tensors, weights, base, **options)
    if method in SPARSE and method != "sce":
        assert torch.equal(out, expected)
    else:  # sums over blocks are rounded elsewhere
        torch.testing.assert_close(out, expected, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("method", RANDOM)
def test_masks_depend_on_seed_member_and_tensor_only(method):
    base, tensors = members_of(3)
    weights, options = [0.3, 0.3, 0.4], SPARSE[method]
    one = merge(method, tensors, weights, base, **options)
    results: list = [None, None]
    threads = [
        threading.Thread(
            target=lambda k=k: results.__setitem__(
                k, merge(method, tensors, weights, base, **options)
            )
        )
        for k in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.manual_seed(99)
    assert all(
        torch.equal(result, one)
        for result in (*results, merge(method, tensors, weights, base, **options))
    )
    for other in (
        {"seed": 1},
        {"members": ("x", "b", "c")},
        {"name": "model.layers.2.mlp.up_proj.weight"},
    ):
        assert not torch.equal(merge(method, tensors, weights, base, **options, **other), one)


@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
@pytest.mark.parametrize("density", [0.2, 0.5, 0.8])
def test_dropping_keeps_the_expectation(method, density):
    """The mean over seeds approaches task arithmetic, at the rate of independent draws."""
    base, tensors = members_of(2, shape=(30, 40), dtype=torch.float32)
    full = merge("task_arithmetic", tensors, [0.6, 0.4], base, dtype=torch.float32)
    num_seeds = 200
    options = {"density": density} | ({"epsilon": 0.1} if method == "della_linear" else {})
    draws = torch.stack(
        [
            merge(method, tensors, [0.6, 0.4], base, seed=seed, dtype=torch.float32, **options)
            for seed in range(num_seeds)
        ]
    )
    z = (draws.mean(0) - full) / (draws.std(0) / math.sqrt(num_seeds)).clamp(min=1e-9)
    assert abs(float(z.mean())) < 5 / math.sqrt(z.numel())
    assert 0.8 < float(z.std()) < 1.2


@settings(max_examples=20, deadline=None)
@given(density=st.floats(0.01, 0.99), seed=st.integers(0, 2**31), size=st.integers(1, 4000))
def test_dare_drops_at_the_asked_rate(density, seed, size):
    out = merge(
        "dare_linear",
        [torch.ones(size)],
        [1.0],
        torch.zeros(size),
        seed=seed,
        dtype=torch.float32,
        density=density,
        rescale=False,
    )
    assert (
        abs(float(out.sum()) - density * size) < 5 * math.sqrt(size * density * (1 - density)) + 2
    )


# ---------------------------------------------------------------- relations between methods


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    weights=st.lists(
        st.floats(-2, 2).filter(lambda weight: abs(weight) > 0.01), min_size=3, max_size=3
    ),
)
def test_without_dropping_the_linear_delta_methods_are_task_arithmetic(seed, weights):
    base, tensors = members_of(3, shape=(5, 8), seed=seed)
    expected = merge("task_arithmetic", tensors, weights, base)
    for method in ("dare_linear", "della_linear", "breadcrumbs"):
        assert torch.equal(merge(method, tensors, weights, base, density=1.0), expected)
    linear = torch.empty_like(expected)
    context = TensorContext(name=LAYER, members=("a", "b", "c"))
    MERGE_METHODS["linear"].function(tensors, weights, base=base, context=context, out=linear)
    torch.testing.assert_close(linear, expected, rtol=2**-7, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), t=st.floats(0.01, 0.99))
def test_spherical_merges_of_two_agree(seed, t):
    """SLERP, NuSLERP and the Karcher mean are the same arc when both members have unit length."""
    _, (first, second) = members_of(2, shape=(4, 6), seed=seed, dtype=torch.float32)
    first, second = (
        first / first.norm(),
        (second + torch.randn_like(second)) / (second + 0.1).norm(),
    )
    second = second / second.norm()
    arcs = [
        merge(method, [first, second], [1 - t, t], None, dtype=torch.float32)
        for method in ("slerp", "nuslerp", "karcher")
    ]
    assert math.isclose(float(arcs[0].norm()), 1.0, rel_tol=1e-4)
    for arc in arcs[1:]:
        torch.testing.assert_close(arc, arcs[0], rtol=1e-3, atol=1e-4)


def test_layer_swap_identities():
    """No outer layer gives the middle expert; outer layers everywhere give the outer one;
    transitions of one-hot weights are members.
    """
    _, (middle, outer) = members_of(2)
    for name in (
        *(f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(4)),
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
    ):
        none = {"bottom": 0, "top": 0, "bottom_transition": 0, "top_transition": 0}
        assert torch.equal(
            merge("layer_swap", [middle, outer], [0.5, 0.5], None, name=name, **none), middle
        )
        for bottom in range(5):
            assert torch.equal(
                merge(
                    "layer_swap",
                    [middle, outer],
                    [0.5, 0.5],
                    None,
                    name=name,
                    **{**none, "bottom": bottom, "top": 4 - bottom},
                ),
                outer,
            )
        assert torch.equal(
            merge(
                "layer_swap",
                [middle, outer],
                [1.0, 0.0],
                None,
                name=name,
                **{**none, "bottom_transition": 4},
            ),
            middle,
        )


@pytest.mark.parametrize("method,options", FORMS)
def test_a_tensor_that_nobody_changed_stays(method, options):
    """Frozen tensors have no deltas: no method divides by their length or variance."""
    base, _ = members_of(1)
    count = count_for(method)
    out = merge(method, [base.clone() for _ in range(count)], [1 / count] * count, base, **options)
    torch.testing.assert_close(out, base, rtol=2**-7, atol=0)


def test_lines_without_slope_is_task_arithmetic():
    base, tensors = members_of(3)
    expected = merge("task_arithmetic", tensors, [0.2, 0.3, 0.1], base, **{"lambda": 0.7})
    assert torch.equal(
        merge("lines", tensors, [0.2, 0.3, 0.1], base, alpha=0.7, beta=0.0), expected
    )


@pytest.mark.parametrize("method", sorted(MERGE_METHODS))
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (7,), (2, 3, 4)])
def test_awkward_shapes(method, shape):
    """Scalars, empty tensors, vectors and three dimensions keep their shape, all finite."""
    base, tensors = members_of(count_for(method), shape=shape)
    weights = [1 / len(tensors)] * len(tensors)
    out = merge(method, tensors, weights, base, **(SPARSE.get(method, {})))
    assert out.shape == torch.Size(shape) and bool(torch.isfinite(out).all())


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_results_are_rounded_once(data):
    """linear in bfloat16 is the float64 result rounded to bfloat16, but for the rare float32
    rounding next to a half-way point.
    """
    weights = data.draw(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=6))
    _, tensors = members_of(len(weights), shape=(64,), seed=data.draw(st.integers(0, 10_000)))
    exact = sum(weight * tensor.double() for weight, tensor in zip(weights, tensors, strict=True))
    out = merge("linear", tensors, weights, None)
    error = (out.double() - exact).abs()
    scale = sum(
        abs(weight) * tensor.double().abs() for weight, tensor in zip(weights, tensors, strict=True)
    )
    assert bool((error <= exact.abs() * 2**-8 + scale * 2**-22 + 1e-38).all())


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 9),
    size=st.integers(0, 300) | st.just((1 << 19) + 77),
    offset=st.integers(0, 40),
    divisor=st.sampled_from([1.0, 0.7]),
    seed=st.integers(0, 10_000),
)
def test_native_kernel_and_torch_give_the_same_bits(count, size, offset, divisor, seed):
    """With a compiler or without one, a merge has one digest: infinities, subnormals and signed
    zeros included, wherever the output begins.

    nan stays nan, but torch itself writes it in two ways, by the element's place in a vector.
    """
    from recycler.merge.kernels import blocks, native

    generator = torch.Generator().manual_seed(seed)
    tensors = [
        torch.randint(-(2**15), 2**15, (size,), generator=generator)
        .to(torch.int16)
        .view(torch.bfloat16)
        for _ in range(count)
    ]
    weights = torch.randn(count, generator=generator).tolist()
    whole, slow = (
        torch.full((offset + size + 64,), 7.0, dtype=torch.bfloat16),
        torch.empty(size, dtype=torch.bfloat16),
    )
    fast = whole[offset : offset + size]
    if not native.weighted_sum_bf16(tensors, weights, fast, divisor):
        pytest.skip("no compiler on this machine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "weighted_sum_bf16", lambda *arguments: False)
        blocks.weighted_sum(list(zip(tensors, weights, strict=True)), slow, divisor)
    assert (
        torch.equal(fast.isnan(), slow.isnan())
        and bool((whole[:offset] == 7.0).all())
        and bool((whole[offset + size :] == 7.0).all())
    )
    assert torch.equal(fast.view(torch.int16)[~fast.isnan()], slow.view(torch.int16)[~fast.isnan()])
