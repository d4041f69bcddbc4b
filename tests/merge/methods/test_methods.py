"""Each merge method against a figure worked out by hand or by a few plain lines of the paper's
formula.
"""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from recycler.errors import UsageError
from recycler.merge.kernels.counter_random import mask_key, random_u16
from recycler.merge.kernels.selection import largest, magnitude_bits, smallest
from recycler.merge.methods.della import rank_in_rows
from recycler.merge.methods.method import TensorContext, as_keywords
from recycler.merge.methods.registry import MERGE_METHODS
from recycler.merge.methods.trajectory import decay, ema, sma, wma

LAYER = "model.layers.1.mlp.up_proj.weight"


def merge(
    method,
    tensors,
    weights,
    base=None,
    name=LAYER,
    num_layers=4,
    seed=0,
    members=None,
    dtype=torch.float32,
    **options,
):
    tensors = [torch.as_tensor(tensor, dtype=dtype) for tensor in tensors]
    base = torch.as_tensor(base, dtype=dtype) if base is not None else None
    out = torch.full_like(tensors[0], float("nan"))
    context = TensorContext(
        name=name,
        members=members or tuple("abcdefgh"[: len(tensors)]),
        seed=seed,
        num_layers=num_layers,
    )
    MERGE_METHODS[method].function(
        tensors, weights, base=base, context=context, out=out, **as_keywords(options)
    )
    return out


def close(out, expected, **tolerance):
    torch.testing.assert_close(out, torch.as_tensor(expected, dtype=out.dtype), **tolerance)


def test_table_options_are_the_functions_own_keywords_and_defaults():
    for name, method in MERGE_METHODS.items():
        keywords = {
            key: value.default
            for key, value in inspect.signature(method.function).parameters.items()
            if value.default is not inspect.Parameter.empty
        }
        assert keywords == as_keywords(method.options), name
        assert inspect.getdoc(method.function), name


# ---------------------------------------------------------------- linear family


def test_linear_and_normalize():
    close(merge("linear", [[1, 2], [3, 5]], [0.5, 0.25]), [1.25, 2.25])
    close(merge("linear", [[1, 2], [3, 5]], [1, 3], normalize=True), [2.5, 4.25])


def test_linear_with_base_acts_on_deltas():
    close(merge("linear", [[2.0, 2], [5, 5]], [0.5, 0.25], base=[1.0, 1]), [2.5, 2.5])


def test_task_arithmetic_scales_by_lambda_and_divides_by_the_weights():
    close(merge("task_arithmetic", [[3.0], [2]], [1, 1], base=[1.0], **{"lambda": 0.5}), [2.5])
    close(merge("task_arithmetic", [[3.0], [2]], [2, 2], base=[1.0], normalize=True), [2.5])


def test_trajectory_averages():
    assert sma(4) == (0.25,) * 4
    close(torch.tensor(wma(3)), [1 / 6, 2 / 6, 3 / 6])
    close(torch.tensor(ema(3, 0.2)), [0.64, 0.16, 0.2])
    assert decay([1.0, 1.0, 0.5]) == (0.0, 0.5, 0.5)
    for row in (sma(7), wma(7), ema(7, 0.1), decay([1, 0.9, 0.4, 0.1])):
        assert math.isclose(sum(row), 1.0)
    with pytest.raises(ValueError, match="never rises"):
        decay([1.0, 0.5, 0.6])


# ---------------------------------------------------------------- selection and masks


@pytest.mark.parametrize(
    "values",
    [
        torch.randn(5000),
        torch.randint(-3, 4, (5000,)).float(),
        torch.zeros(17),
        torch.randn(3000).bfloat16().float(),
    ],
)
def test_selection_is_a_stable_sort(values):
    def blocks():
        return iter(values.clone().split(701))

    descending = values.abs().argsort(descending=True, stable=True)
    ascending = values.abs().argsort(stable=True)
    for count in {
        1,
        2,
        values.numel() // 3,
        values.numel() // 2,
        values.numel() - 1,
        values.numel(),
    }:
        for cut, order in (
            (largest(blocks, count), descending),
            (smallest(blocks, count, values.numel()), ascending),
        ):
            mask = torch.cat([cut.inside(magnitude_bits(block)) for block in blocks()])
            assert set(mask.nonzero().view(-1).tolist()) == set(order[:count].tolist())
            assert set(mask.tolist()) <= {0, -1}


def test_random_bits_do_not_depend_on_where_blocks_begin():
    key = mask_key(3, "math", LAYER)
    whole = random_u16(key, 0, 1000)
    for start, count in ((0, 1), (1, 1), (7, 500), (500, 499), (999, 1)):
        assert torch.equal(random_u16(key, start, count), whole[start : start + count])
    assert whole.min() >= 0 and whole.max() < 65536


def test_random_bits_are_uniform_and_uncorrelated():
    count = 1 << 20
    first, second = (
        random_u16(mask_key(0, member, LAYER), 0, count).double() for member in ("a", "b")
    )
    for bits in (first, second):
        assert abs(bits.mean() / 65536 - 0.5) < 4 * math.sqrt(1 / 12 / count)
        histogram = torch.histc(bits, bins=256, min=0, max=65536)
        assert float(((histogram - count / 256) ** 2 / (count / 256)).sum()) < 255 + 5 * math.sqrt(
            2 * 255
        )
    pairs = [
        (first, second),
        (first[:-1], first[1:]),
        (first[:-2], first[2:]),
        (first[:-64], first[64:]),
    ]
    for one, two in pairs:
        assert abs(float(torch.corrcoef(torch.stack([one, two]))[0, 1])) < 5 / math.sqrt(count)


def test_rank_in_rows_is_a_stable_argsort_of_magnitudes():
    rows = torch.tensor([[3.0, -1, 0, 1, -5], [0, 0, 0, 0, 0]])
    close(rank_in_rows(rows), [[3.0, 1, 0, 2, 4], [0, 1, 2, 3, 4]])


# ---------------------------------------------------------------- sign consensus


def test_ties_worked_by_hand():
    tensors = [[4.0, 1, -2, 0.5], [-1.0, 3, -2, 0.1], [2.0, -5, 0.2, 0.3]]
    out = merge("ties", tensors, [1, 1, 1], base=[0.0] * 4, density=0.5)
    close(out, [3.0, -5.0, -2.0, 0.0])  # kept: [4,.,-2,.], [.,3,-2,.], [2,-5,.,.]; signs +,-,-


def test_ties_weighs_agreeing_members_only():
    out = merge("ties", [[2.0], [6.0], [-1.0]], [0.75, 0.25, 1.0], base=[0.0])
    close(out, [(0.75 * 2 + 0.25 * 6) / 1.0])
    close(
        merge(
            "ties",
            [[2.0], [6.0], [-1.0]],
            [0.75, 0.25, 1.0],
            base=[0.0],
            normalize=False,
            **{"lambda": 2.0},
        ),
        [6.0],
    )


def test_ties_rescale_restores_the_l1_norm():
    close(
        merge("ties", [[1.0, 2, 3, 4]], [1], base=[0.0] * 4, density=0.5, rescale=True),
        [0, 0, 3 * 10 / 7, 4 * 10 / 7],
    )


def test_a_tie_of_signs_elects_plus_as_mergekit_does():
    close(merge("ties", [[1.0], [-1.0]], [1, 1], base=[0.0]), [1.0])


def test_sce_worked_by_hand():
    tensors = [[2.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0]]
    out = merge(
        "sce", tensors, [1, 1], base=[0.0] * 4, select_topk=0.5
    )  # variances 1, 0, 0, .25: one of two is kept
    close(out, [2.0, 0, 0, 0])  # energies 1 and 0: the second member has no say
    out = merge(
        "sce", [[1.0, 3.0], [3.0, -1.0]], [1, 1], base=[0.0, 0.0]
    )  # both energies 5: equal shares
    close(out, [2.0, 3.0])


# ---------------------------------------------------------------- dropping


def test_dare_keeps_or_drops_and_rescales():
    delta = torch.linspace(1, 2, 4096)
    out = merge("dare_linear", [delta], [1.0], base=torch.zeros(4096), density=0.25)
    kept = out != 0
    close(out[kept], 4 * delta[kept])
    assert 0.2 < float(kept.float().mean()) < 0.3
    out = merge("dare_linear", [delta], [1.0], base=torch.zeros(4096), density=0.25, rescale=False)
    close(out, torch.where(kept, delta, 0.0))


def test_dare_density_per_member_and_extremes():
    out = merge(
        "dare_linear",
        [torch.ones(64), 2 * torch.ones(64)],
        [1, 1],
        base=torch.zeros(64),
        density=(1.0, 0.0),
    )
    close(out, torch.ones(64))
    with pytest.raises(UsageError, match="3 values for 2 members"):
        merge("dare_linear", [[1.0], [2.0]], [1, 1], base=[0.0], density=(1.0, 0.5, 0.2))
    with pytest.raises(UsageError, match="outside"):
        merge("ties", [[1.0]], [1], base=[0.0], density=1.5)


def test_dare_ties_is_ties_on_the_dropped_deltas():
    tensors = torch.randn(3, 500)
    singles = [
        merge(
            "dare_linear", [tensor], [1.0], base=torch.zeros(500), density=0.5, members=("abc"[k],)
        )
        for k, tensor in enumerate(tensors)
    ]
    both = merge(
        "dare_ties",
        list(tensors),
        [0.5, 0.3, 0.2],
        base=torch.zeros(500),
        density=0.5,
        normalize=True,
    )
    close(both, merge("ties", singles, [0.5, 0.3, 0.2], base=torch.zeros(500)))


def test_della_keeps_large_elements_more_often():
    base, delta = torch.zeros(400, 101), torch.linspace(1, 2, 101).expand(400, 101).contiguous()
    out = merge("della_linear", [delta], [1.0], base=base, density=0.5, epsilon=0.3, rescale=False)
    share = (out != 0).float().mean(0)
    expected = 0.2 + 0.6 * torch.arange(101) / 100
    assert float((share - expected).abs().max()) < 5 * math.sqrt(0.25 / 400)
    rescaled = merge("della_linear", [delta], [1.0], base=base, density=0.5, epsilon=0.3)
    kept = rescaled != 0
    close((rescaled / delta)[kept], (1 / expected).expand(400, 101)[kept], rtol=2e-4, atol=0)


def test_della_refuses_probabilities_outside_zero_and_one():
    with pytest.raises(UsageError, match="Choose epsilon below 0.1"):
        merge("della", [[1.0]], [1], base=[0.0], density=0.9, epsilon=0.15)


def test_breadcrumbs_drops_both_ends():
    values = torch.arange(1.0, 11)
    close(
        merge("breadcrumbs", [values], [1], base=torch.zeros(10), density=0.6, gamma=0.1),
        [0, 0, 0, 4, 5, 6, 7, 8, 9, 0],
    )
    close(
        merge("breadcrumbs", [values], [1], base=torch.zeros(10), density=0.6, gamma=0.9),
        [1, 2, 3, 4, 5, 6, 0, 0, 0, 0],
    )


# ---------------------------------------------------------------- spheres


@pytest.mark.parametrize("method", ["slerp", "nuslerp", "multislerp", "karcher"])
def test_the_middle_of_two_orthogonal_unit_vectors(method):
    close(merge(method, [[1.0, 0], [0, 1.0]], [0.5, 0.5]), [math.sqrt(0.5)] * 2)


def test_slerp_at_a_third_of_the_arc():
    close(
        merge("slerp", [[1.0, 0], [0, 1.0]], [2, 1]), [math.cos(math.pi / 6), math.sin(math.pi / 6)]
    )
    close(
        merge("nuslerp", [[2.0, 1], [1, 2.0]], [2, 1], base=[1.0, 1]),
        [1 + math.cos(math.pi / 6), 1 + math.sin(math.pi / 6)],
    )


def test_slerp_of_collinear_members_is_linear():
    close(merge("slerp", [[1.0, 1], [3.0, 3]], [0.5, 0.5]), [2.0, 2.0])


def test_nuslerp_by_rows_and_by_columns():
    first, second = torch.eye(2), torch.tensor([[0.0, 1], [1, 0]])
    half = math.sqrt(0.5)
    close(merge("nuslerp", [first, second], [1, 1], nuslerp_flatten=False), [[half, half]] * 2)
    one, two = torch.randn(5, 7), torch.randn(5, 7)
    rows = torch.stack([merge("nuslerp", [one[row], two[row]], [1, 2]) for row in range(5)])
    close(merge("nuslerp", [one, two], [1, 2], nuslerp_flatten=False), rows)
    close(
        merge(
            "nuslerp",
            [one.T.contiguous(), two.T.contiguous()],
            [1, 2],
            nuslerp_flatten=False,
            nuslerp_row_wise=True,
        ),
        rows.T,
    )


def test_multislerp_says_why_cancelling_members_have_no_middle():
    close(merge("multislerp", [[1.0, 0], [-1.0, 0]], [1, 1]), [0.0, 0.0])
    with pytest.raises(UsageError, match="directions of the members cancel"):
        merge(
            "multislerp", [[1.0, 0], [-0.5, math.sqrt(0.75)], [-0.5, -math.sqrt(0.75)]], [1, 1, 1]
        )


def test_karcher_mean_of_three_axes_is_their_diagonal():
    close(merge("karcher", list(torch.eye(3)), [1, 1, 1]), [1 / math.sqrt(3)] * 3)


def test_karcher_mean_is_where_the_pulls_cancel():
    vectors, weights = (
        torch.nn.functional.normalize(torch.randn(4, 10), dim=1),
        torch.tensor([0.1, 0.2, 0.3, 0.4]),
    )
    mean = merge("karcher", list(vectors), weights.tolist(), max_iter=100, tol=1e-9)
    angle = (vectors @ mean).clamp(-1, 1).acos()
    pull = (
        weights[:, None]
        * (angle / angle.sin())[:, None]
        * (vectors - (vectors @ mean)[:, None] * mean)
    ).sum(0)
    assert float(pull.norm()) < 1e-5 and math.isclose(float(mean.norm()), 1.0, rel_tol=1e-5)


def test_model_stock_worked_by_hand():
    close(
        merge("model_stock", [[1.0, 0], [0, 1.0]], [1, 1], base=[0.0, 0]), [0.0, 0.0]
    )  # orthogonal deltas: only noise
    cosine = math.sqrt(0.5)
    t = 2 * cosine / (1 + cosine)
    close(merge("model_stock", [[2.0, 1], [2.0, 2]], [1, 1], base=[1.0, 1]), [1 + t, 1 + t / 2])
    rows = torch.tensor([[2.0, 1], [1.0, 2]])
    out = merge(
        "model_stock",
        [rows, torch.full((2, 2), 2.0)],
        [1, 1],
        base=torch.ones(2, 2),
        filter_wise=True,
    )
    close(out, [[1 + t, 1 + t / 2], [1 + t / 2, 1 + t]])


# ---------------------------------------------------------------- layers


def test_layer_swap_with_the_papers_defaults():
    source = {
        layer: float(
            merge(
                "layer_swap",
                [[0.0], [1.0]],
                [0.5, 0.5],
                name=f"model.layers.{layer}.mlp.up_proj.weight",
                num_layers=32,
            )
        )
        for layer in range(32)
    }
    assert [source[layer] for layer in (0, 4, 5, 6, 28, 29, 30, 31)] == [1, 1, 0.5, 0, 0, 0.5, 1, 1]


def test_layer_swap_policies_outside_the_layers():
    def value(name, **options):
        return float(
            merge(
                "layer_swap",
                [[0.0], [1.0]],
                [0.5, 0.5],
                name=name,
                num_layers=8,
                bottom=1,
                top=0,
                **options,
            )
        )

    assert (
        value("model.embed_tokens.weight"),
        value("model.norm.weight"),
        value("lm_head.weight"),
    ) == (1, 0.5, 0.5)
    assert (
        value("model.norm.weight", final_norm="outer") == 1
        and value("model.embed_tokens.weight", embeddings="middle") == 0
    )
    with pytest.raises(UsageError, match="Did you mean 'outer'"):
        value("lm_head.weight", head="outter")


def test_lines_grows_with_depth():
    steps = [
        float(
            merge("lines", [[1.0]], [1.0], base=[0.0], name=name, num_layers=3, alpha=0.2, beta=0.6)
        )
        for name in (
            "model.embed_tokens.weight",
            "model.layers.0.mlp.up_proj.weight",
            "model.layers.1.mlp.up_proj.weight",
            "model.layers.2.mlp.up_proj.weight",
            "model.norm.weight",
        )
    ]
    assert steps == pytest.approx([0.2, 0.2, 0.5, 0.8, 0.8])


# ---------------------------------------------------------------- spectra and WIDEN


def test_tsv_merge_of_orthogonal_rank_one_deltas_adds_them():
    one, two = torch.zeros(4, 4), torch.zeros(4, 4)
    one[0, 0], two[1, 1] = 3.0, 2.0
    close(
        merge("tsv_merge", [one, two], [1, 1], base=torch.zeros(4, 4)), one + two, atol=1e-5, rtol=0
    )


def test_tsv_merge_of_vectors_is_a_mean():
    close(merge("tsv_merge", [[1.0, 0], [0, 3.0]], [1, 1], base=[0.0, 0]), [0.5, 1.5])


def test_iso_c_makes_singular_values_equal():
    for diagonal, wanted in (
        ([4.0, 2.0, 3.0], [3.0, 3.0, 3.0]),
        ([4.0, 2.0, 0.0], [3.0, 3.0, 0.0]),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
    ):  # a direction that no member took gets no strength: its vectors are arbitrary
        delta = torch.diag(torch.tensor(diagonal))
        close(
            torch.linalg.svdvals(
                merge("iso_c", [delta, delta], [0.5, 0.5], base=torch.zeros(3, 3))
            ),
            wanted,
        )


def test_widen_worked_by_the_papers_lines():
    base, tensors = torch.randn(6, 5), torch.randn(2, 6, 5)

    def significance(changes):
        ranks = torch.stack(
            [change.argsort(stable=True).argsort() / change.numel() for change in changes]
        )
        scores = ranks.softmax(0)
        scores[ranks > ranks.mean(1, keepdim=True)] = 1.0
        return scores

    lengths = significance([(tensor.norm(dim=0) - base.norm(dim=0)).abs() for tensor in tensors])
    turns = significance([1 - torch.cosine_similarity(tensor, base, dim=0) for tensor in tensors])
    expected = base + sum((lengths[k] + turns[k]) / 2 * (tensors[k] - base) for k in range(2))
    close(merge("widen", list(tensors), [1, 1], base=base), expected)


@pytest.mark.parametrize("method", ["slerp", "nuslerp", "layer_swap"])
def test_methods_for_two_refuse_three(method):
    with pytest.raises(UsageError, match="merges 2 members, the recipe has 3"):
        merge(method, [[1.0]] * 3, [1, 1, 1])


def test_multislerp_of_a_member_that_left_a_tensor_frozen_is_the_others_direction():
    """The frozen one has no direction: it only shortens the mean, and a large factor on it must not
    cancel against the base's.
    """
    torch.manual_seed(0)
    base, delta = torch.randn(20, 30), 0.01 * torch.randn(20, 30)
    close(
        merge("multislerp", [base + delta, base], [0.7, 0.6], base=base),
        base + 0.7 / 1.3 * delta,
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("method", ["layer_swap", "lines"])
@pytest.mark.parametrize(
    "num_layers,message", [(0, "must know how many layers"), (2, "is of layer 3, the model has 2")]
)
def test_an_unknown_or_wrong_depth_is_refused(method, num_layers, message):
    """Not taken for any: with 0 layers every one would count as the last."""
    with pytest.raises(UsageError, match=message):
        merge(
            method,
            [[0.0], [1.0]],
            [0.5, 0.5],
            base=[0.0] if method == "lines" else None,
            name="model.layers.3.mlp.up_proj.weight",
            num_layers=num_layers,
        )
