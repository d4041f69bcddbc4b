"""Folding gives what PEFT gives, and refuses what it cannot fold exactly."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from recycler.cli import main
from recycler.errors import RecyclerError, UnsafeInputError, UsageError
from recycler.pool.catalog import open_checkpoint
from recycler.pool.fold import fold_adapter
from recycler.pool.tensors import iterate_tensors
from recycler.testing import make_pico_pool

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def pico(tmp_path_factory):
    return make_pico_pool(tmp_path_factory.mktemp("pico"), num_members=1)


@pytest.fixture
def base(pico, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(pico.base.location, folder)
    return folder


def make_adapter(base, folder, **settings):
    """A random adapter of the base, saved, and the model that PEFT merges from it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": LINEAR, "task_type": "CAUSAL_LM", **settings})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return model.merge_and_unload().state_dict()


@pytest.mark.parametrize("settings", [
    {}, {"use_rslora": True}, {"target_modules": ["q_proj", "down_proj"]},
    {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 8}, "alpha_pattern": {"v_proj": 20}}])
def test_same_as_peft_to_one_step_of_bfloat16(base, tmp_path, settings):
    expected = make_adapter(base, tmp_path / "adapter", **settings)
    fold_adapter(base, tmp_path / "adapter", tmp_path / "out")
    changed = 0
    before = dict(iterate_tensors(open_checkpoint(base)))
    for name, tensor in iterate_tensors(open_checkpoint(tmp_path / "out")):
        assert tensor.dtype == torch.bfloat16
        steps = tensor.view(torch.int16).int() - expected[name].to(torch.bfloat16).view(torch.int16).int()
        assert steps.abs().max() <= 1, name
        changed += not torch.equal(tensor, before[name])
    assert changed == 2 * len(settings.get("target_modules", LINEAR))


def test_the_folder_is_complete(base, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (base / "chat_template.jinja").write_text("{{ messages }}")
    make_adapter(base, tmp_path / "adapter")
    fold_adapter(base, tmp_path / "adapter", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in base.iterdir()}
    AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)


@pytest.mark.parametrize(("change", "word"), [
    ({"use_dora": True}, "use_dora"), ({"bias": "all"}, "bias"), ({"modules_to_save": ["lm_head"]}, "modules_to_save"), ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ({"peft_type": "LOHA"}, "peft_type"), ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"), ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"r": 5}, "rank 5"), ({"r": 0}, "rank 0"), ({"r": None}, "configuration"), ({"rank_pattern": {"(": 1}}, "configuration"), ({"rank_pattern": [1]}, "configuration"),
    ({"r": float("inf")}, "configuration"), ({"rank_pattern": {"q_proj": float("inf")}}, "configuration"), ({"alpha_pattern": {"q_proj": float("nan")}}, "configuration"), ({"lora_alpha": 10**400}, "configuration"),
    ({"rank_pattern": {"q_proj": True}}, "configuration")])  # numbers without end: found by fuzzing
def test_more_than_plain_lora_is_refused(base, tmp_path, change, word):
    make_adapter(base, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RecyclerError, match=word):
        fold_adapter(base, tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("rename", "word"), [
    (lambda name: name.replace("layers.1.", "layers.7."), "not in the base"), (lambda name: name.replace("lora_A", "lora_magnitude"), "not a factor"),
    (lambda name: name.replace("q_proj", "gate_proj") if "lora_B" in name else name, "only one"), (lambda name: name.replace("down_proj", "up_proj_"), "not in the base")])
def test_factors_that_fit_nothing_are_refused(base, tmp_path, rename, word):
    make_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(path).items()}, path)
    with pytest.raises(UnsafeInputError, match=word):
        fold_adapter(base, tmp_path / "adapter", tmp_path / "out")
    assert sorted(child.name for child in tmp_path.iterdir()) == ["adapter", "base"]


def test_wrong_shapes_and_places_are_refused(base, tmp_path):
    make_adapter(base, tmp_path / "adapter", target_modules=["down_proj"])
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name.replace("down_proj", "up_proj"): tensor for name, tensor in load_file(path).items()}, path)
    with pytest.raises(UnsafeInputError, match=r"\(64, 128\)"):
        fold_adapter(base, tmp_path / "adapter", tmp_path / "out")
    with pytest.raises(UsageError, match="adapter_config.json"):
        fold_adapter(base, base, tmp_path / "out")
    path.unlink()
    with pytest.raises(UsageError, match="pickles"):
        fold_adapter(base, tmp_path / "adapter", tmp_path / "out")


def test_adapters_that_give_the_same_weights_are_named(base, tmp_path, capsys):
    """Whatever their files hold: a copy, and factors of zero, which leave the base as it is."""
    make_adapter(base, tmp_path / "math")
    for name in ("again", "zero"):
        shutil.copytree(tmp_path / "math", tmp_path / name)
    factors = load_file(tmp_path / "zero/adapter_model.safetensors")
    save_file({name: torch.zeros_like(factor) for name, factor in factors.items()}, tmp_path / "zero/adapter_model.safetensors")
    assert main(["fold", str(base), *(str(tmp_path / name) for name in ("math", "again", "zero")), "--to", str(tmp_path / "pool")]) == 0
    said = capsys.readouterr()
    assert "'again': has the same weights as 'math'" in said.err and "'zero': has the weights of the base" in said.err and len(said.out.split()) == 3
