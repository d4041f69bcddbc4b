"""LoRA merges: exact on deltas, the same as PEFT where PEFT means the same, readable by PEFT."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from recycler.errors import UsageError
from recycler.merge.lora.factors import (
    Adapter,
    LowRank,
    cat,
    factor,
    fold,
    merged_deltas,
    modules_of,
    read_adapter,
    truncate,
    write_adapter,
)
from recycler.merge.lora.learned_cat import attached, learn_by_gradient, learn_by_spsa

RANKS = {"math": (4, 8.0), "code": (2, 6.0), "prose": (3, 3.0)}


def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )


def adapter(name, seed, modules=("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj")):
    generator = torch.Generator().manual_seed(seed)
    rank, alpha = RANKS[name]
    shapes = {"q_proj": (16, 16), "up_proj": (24, 16)}
    return Adapter(
        name=name,
        modules={
            module: LowRank(
                up=torch.randn(shapes[module.rsplit(".", 1)[1]][0], rank, generator=generator),
                down=torch.randn(rank, 16, generator=generator),
                scale=alpha / rank,
            )
            for module in modules
        },
    )


ADAPTERS = [adapter(name, seed) for seed, name in enumerate(RANKS)]
WEIGHTS = (0.7, -0.2, 0.5)


def total(module, weights=WEIGHTS):
    return sum(
        weight * entry.modules[module].delta()
        for entry, weight in zip(ADAPTERS, weights, strict=True)
    )


def test_cat_is_the_sum_of_scaled_products_and_adds_ranks():
    merged = cat(ADAPTERS, WEIGHTS)
    for module, factors in merged.modules.items():
        assert factors.rank == 9
        torch.testing.assert_close(factors.delta(), total(module), rtol=1e-5, atol=1e-5)


def test_cat_skips_zero_weights_and_absent_modules():
    one = adapter("math", 0, ("model.layers.0.self_attn.q_proj",))
    merged = cat([one, ADAPTERS[1]], (1.0, 1.0))
    assert {module: factors.rank for module, factors in merged.modules.items()} == {
        "model.layers.0.self_attn.q_proj": 6,
        "model.layers.1.mlp.up_proj": 2,
    }
    assert cat(ADAPTERS, (0.0, 1.0, 0.0)).modules["model.layers.1.mlp.up_proj"].rank == 2


def test_cat_takes_one_row_of_weights_a_module():
    rows = {module: (float(index), 1.0, 0.0) for index, module in enumerate(modules_of(ADAPTERS))}
    merged = cat(ADAPTERS, rows)
    for module, row in rows.items():
        torch.testing.assert_close(
            merged.modules[module].delta(), total(module, row), rtol=1e-5, atol=1e-5
        )


def test_merges_are_of_deltas():
    linear = dict(merged_deltas(ADAPTERS, WEIGHTS))
    for module, delta in linear.items():
        torch.testing.assert_close(delta, total(module), rtol=1e-5, atol=1e-5)
    kept = dict(merged_deltas(ADAPTERS[:1], (1.0,), "ties", {"density": 0.25}))
    for delta in kept.values():
        assert int((delta != 0).sum()) == delta.numel() // 4
    assert set(dict(merged_deltas(ADAPTERS, WEIGHTS, "dare_ties", {"density": 0.5}))) == set(linear)
    with pytest.raises(UsageError, match="Did you mean 'ties'"):
        next(merged_deltas(ADAPTERS, WEIGHTS, "tis"))


def test_truncation_reports_the_error_it_makes_and_none_at_full_rank():
    merged = cat(ADAPTERS, WEIGHTS)
    for rank in (1, 4, 9):
        for small, errors in (
            truncate(merged, rank),
            factor({module: factors.delta() for module, factors in merged.modules.items()}, rank),
        ):
            for module, factors in merged.modules.items():
                real = float(
                    (small.modules[module].delta() - factors.delta()).norm()
                    / factors.delta().norm()
                )
                assert errors[module] == pytest.approx(real, abs=1e-4)
                assert small.modules[module].rank == rank
                if rank == 9:
                    assert errors[module] < 1e-5


def test_written_adapters_read_back_and_peft_computes_the_same(tmp_path):
    pytest.importorskip("peft", reason="needs peft, see the test extra")
    from peft import PeftModel

    write_adapter(cat(ADAPTERS, WEIGHTS), tmp_path / "cat")
    again = read_adapter(tmp_path / "cat")
    base = model()
    ids = torch.arange(12).view(1, -1)
    with torch.no_grad():
        folded = dict(fold(iter(base.state_dict().items()), again))
        loaded = PeftModel.from_pretrained(model(), tmp_path / "cat")(ids).logits
        base.load_state_dict(folded)
        torch.testing.assert_close(base(ids).logits, loaded, rtol=1e-4, atol=1e-4)


def test_peft_cat_and_svd_are_ours(tmp_path):
    pytest.importorskip("peft", reason="needs peft, see the test extra")
    from peft import PeftModel

    for entry in ADAPTERS:
        write_adapter(entry, tmp_path / entry.name)
    theirs = PeftModel.from_pretrained(model(), tmp_path / "math", adapter_name="math")
    for name in ("code", "prose"):
        theirs.load_adapter(tmp_path / name, adapter_name=name)
    weights = [0.7, 0.2, 0.5]
    theirs.add_weighted_adapter(list(RANKS), weights, "cat", combination_type="cat")
    theirs.add_weighted_adapter(list(RANKS), weights, "svd", combination_type="svd", svd_rank=3)
    merged = cat(ADAPTERS, weights)
    small, _ = truncate(merged, 3)
    for module, factors in merged.modules.items():
        layer = theirs.base_model.model.get_submodule(module)
        torch.testing.assert_close(
            layer.get_delta_weight("cat"), factors.delta(), rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(
            layer.get_delta_weight("svd"), small.modules[module].delta(), rtol=1e-3, atol=1e-3
        )


def test_folding_on_another_base_is_refused():
    with pytest.raises(UsageError, match="which the base does not have"):
        list(fold(iter([("model.norm.weight", torch.ones(3))]), ADAPTERS[0]))


def test_adapters_that_are_not_plain_lora_are_refused(tmp_path):
    write_adapter(ADAPTERS[0], tmp_path)
    config = (tmp_path / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(
        config.replace('"bias": "none"', '"bias": "all", "use_dora": true')
    )
    with pytest.raises(UsageError) as error:
        read_adapter(tmp_path)
    assert "use_dora" in str(error.value) and "bias" in str(error.value)


# ---------------------------------------------------------------- learned CAT


def language_loss():
    """A model whose best weights differ by module: the target is the model with known ones."""
    frozen, ids = (
        model().requires_grad_(False),
        torch.randint(0, 40, (4, 16), generator=torch.Generator().manual_seed(1)),
    )
    best = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
    with torch.no_grad(), attached(frozen, ADAPTERS, best):
        target = frozen(ids).logits

    def loss(weights):
        with attached(frozen, ADAPTERS, weights):
            return (frozen(ids).logits - target).square().mean()

    return loss, best


def test_attached_adapters_compute_what_a_folded_model_computes():
    ids, base = torch.arange(10).view(1, -1), model()
    rows = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.4, 0.0]])
    with torch.no_grad():
        with attached(base, ADAPTERS, rows):
            hooked = base(ids).logits
        plain = base(ids).logits
        merged = cat(ADAPTERS, dict(zip(modules_of(ADAPTERS), rows.tolist(), strict=True)))
        base.load_state_dict(dict(fold(iter(base.state_dict().items()), merged)))
        torch.testing.assert_close(base(ids).logits, hooked, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, hooked, atol=1e-3)


@pytest.mark.parametrize("learn", [learn_by_gradient, learn_by_spsa])
def test_learned_weights_beat_static_ones_on_their_own_loss(learn):
    loss, best = language_loss()
    weights = learn(loss, 2, 3)
    with torch.no_grad():
        assert float(loss(weights)) < 0.5 * float(loss(torch.full((2, 3), 1 / 3)))
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    if learn is learn_by_gradient:
        torch.testing.assert_close(weights, best, rtol=0, atol=0.15)
