"""Folding gives what PEFT gives, and refuses what it cannot fold exactly."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from recycler.cli import main
from recycler.errors import RecyclerError, UnsafeInputError, UsageError
from recycler.export.lora import merge_adapters
from recycler.pool.adapters.fold import fold_adapter
from recycler.pool.catalog import open_checkpoint
from recycler.pool.storage.tensors import iterate_tensors
from recycler.testing import make_pico_pool

pytest.importorskip("peft", reason="needs peft, see the test extra")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def pico(tmp_path_factory):
    return make_pico_pool(tmp_path_factory.mktemp("pico"), num_members=1)


@pytest.fixture
def base(pico, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(str(pico.base.location), folder)
    return folder


def make_adapter(base, folder, **settings):
    """A random adapter of the base, saved, and the model that PEFT merges from it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 6, "target_modules": LINEAR, "task_type": "CAUSAL_LM", **settings}
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return model.merge_and_unload().state_dict()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"target_modules": ["q_proj", "down_proj"]},
        {
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 8},
            "alpha_pattern": {"v_proj": 20},
        },
    ],
)
def test_same_as_peft_to_one_step_of_bfloat16(base, tmp_path, settings):
    expected = make_adapter(base, tmp_path / "adapter", **settings)
    fold_adapter(base, tmp_path / "adapter", tmp_path / "out")
    changed = 0
    before = dict(iterate_tensors(open_checkpoint(base)))
    for name, tensor in iterate_tensors(open_checkpoint(tmp_path / "out")):
        assert tensor.dtype == torch.bfloat16
        steps = (
            tensor.view(torch.int16).int()
            - expected[name].to(torch.bfloat16).view(torch.int16).int()
        )
        assert steps.abs().max() <= 1, name
        changed += not torch.equal(tensor, before[name])
    assert changed == 2 * len(settings.get("target_modules", LINEAR))


def test_what_rounding_leaves_of_an_adapter_is_told(base, tmp_path, capsys):
    """A small step over bfloat16 weights mostly rounds away; over float32 ones it arrives."""
    for size, factor in (("small", 1e-3), ("large", 1.0)):
        make_adapter(base, tmp_path / size)
        tensors = load_file(tmp_path / size / "adapter_model.safetensors")
        save_file(
            {
                name: tensor * factor if "lora_B" in name else tensor
                for name, tensor in tensors.items()
            },
            tmp_path / size / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
    shutil.copytree(base, tmp_path / "wide")
    save_file(
        {name: tensor.float() for name, tensor in load_file(base / "model.safetensors").items()},
        tmp_path / "wide/model.safetensors",
        metadata={"format": "pt"},
    )
    small, large, exact = (
        fold_adapter(origin, tmp_path / size, tmp_path / out)
        for origin, size, out in (
            (base, "small", "a"),
            (base, "large", "b"),
            (tmp_path / "wide", "small", "c"),
        )
    )
    assert (
        small.noise > 0.5
        and large.noise < 0.1
        and abs(large.kept - 1.0) < 0.01
        and exact.noise < 0.01
        and abs(exact.kept - 1.0) < 1e-3
    )
    flat = {
        out: torch.cat(
            [
                tensor.double().flatten()
                for _, tensor in sorted(load_file(tmp_path / out / "model.safetensors").items())
            ]
        )
        for out in ("base", "a", "c")
    }
    step, whole = flat["a"] - flat["base"], flat["c"] - flat["base"]
    assert small.kept == pytest.approx(float(step @ whole / (whole @ whole)), abs=0.01), (
        "told as measured on the files"
    )
    assert (
        main(["fold", str(base), str(tmp_path / "small"), "--to", str(tmp_path / "cli")]) == 0
        and "float32 base" in capsys.readouterr().err
    )
    assert (
        main(
            [
                "fold",
                str(tmp_path / "wide"),
                str(tmp_path / "small"),
                "--to",
                str(tmp_path / "cli32"),
            ]
        )
        == 0
        and "float32 base" not in capsys.readouterr().err
    )


def test_the_folder_is_complete(base, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (base / "chat_template.jinja").write_text("{{ messages }}")
    make_adapter(base, tmp_path / "adapter")
    fold_adapter(base, tmp_path / "adapter", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        path.name for path in base.iterdir()
    }
    AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"r": 5}, "rank 5"),
        ({"r": 0}, "json: r: is '0'"),
        ({"r": None}, "json: r: is"),
        ({"r": 4.9}, "json: r: is '4.9'"),
        ({"r": 4.0}, "json: r: is"),
        ({"r": "4"}, "json: r: is"),
        ({"r": True}, "json: r: is"),
        ({"use_rslora": "false"}, "json: use_rslora: is 'false' where true or false is wanted"),
        ({"use_rslora": 0}, "json: use_rslora"),
        ({"lora_alpha": "8"}, "json: lora_alpha"),
        ({"use_dora": 0}, "json: use_dora"),
        ({"rank_pattern": {"(": 1}}, "json: rank_pattern: .* no regular expression"),
        ({"rank_pattern": [1]}, "json: rank_pattern"),
        ({"alpha_pattern": {"q_proj": "8"}}, "json: alpha_pattern"),
        ({"rank_pattern": {"q_proj": 2.5}}, "json: rank_pattern"),
        ({"r": float("inf")}, "Infinity is not JSON"),
        ({"rank_pattern": {"q_proj": float("inf")}}, "Infinity is not JSON"),
        ({"alpha_pattern": {"q_proj": float("nan")}}, "NaN is not JSON"),
        ({"lora_alpha": 10**400}, "json: lora_alpha"),
        ({"rank_pattern": {"q_proj": True}}, "json: rank_pattern"),
    ],
)  # numbers without end: found by fuzzing
def test_more_than_plain_lora_is_refused(base, tmp_path, change, word):
    make_adapter(base, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RecyclerError, match=word):
        fold_adapter(base, tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rename", "word"),
    [
        (lambda name: name.replace("layers.1.", "layers.7."), "not in the base"),
        (lambda name: name.replace("lora_A", "lora_magnitude"), "not a factor"),
        (
            lambda name: name.replace("q_proj", "gate_proj") if "lora_B" in name else name,
            "only one",
        ),
        (lambda name: name.replace("down_proj", "up_proj_"), "not in the base"),
    ],
)
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
    save_file(
        {name.replace("down_proj", "up_proj"): tensor for name, tensor in load_file(path).items()},
        path,
    )
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
    save_file(
        {name: torch.zeros_like(factor) for name, factor in factors.items()},
        tmp_path / "zero/adapter_model.safetensors",
    )
    assert (
        main(
            [
                "fold",
                str(base),
                *(str(tmp_path / name) for name in ("math", "again", "zero")),
                "--to",
                str(tmp_path / "pool"),
            ]
        )
        == 0
    )
    said = capsys.readouterr()
    assert (
        "'again': has the same weights as 'math'" in said.err
        and "'zero': has the weights of the base" in said.err
        and len(said.out.split()) == 3
    )


# ------------------------------------------ what a stranger may write into an adapter

HOSTILE = [
    r"(([a-z_.0-9])+)+!",
    r"(?:[a-z._0-9]|[a-z_.0-9]|[a-z])*~",
    "(a?){30}" + "a{30}",
    "((a{1000}){1000}){1000}",
    "a{60000}",
    "(?R)?a",
    r"(.*)*\1!",
    "x" * 2000,
    "(?:" * 400 + "a" + ")*" * 400,
]


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("pattern", HOSTILE)
def test_patterns_that_would_not_end_are_refused_or_match_at_once(base, tmp_path, key, pattern):
    """Without a limit the first of these runs for longer than the earth exists; that the test ends
    is the law.
    """
    change_config(base, tmp_path / "adapter", {key: {pattern: 4}}, target_modules=["q_proj"])
    try:
        fold_adapter(base, tmp_path / "adapter", tmp_path / "out")
    except UnsafeInputError as error:
        assert (
            f"adapter_config.json: {key}: pattern" in str(error) and not (tmp_path / "out").exists()
        )


def test_a_pattern_that_takes_too_long_is_named(monkeypatch):
    from recycler.pool.adapters import patterns

    monkeypatch.setattr(patterns, "SECONDS", 0.05)
    with pytest.raises(ValueError, match=r"pattern '\(\(a\|aa\|b\)\*\)\*c' takes too long"):
        for length in range(20, 2000, 20):
            patterns.compile_patterns({r"((a|aa|b)*)*c": 1})("ab" * length + "cd")
            patterns.compile_patterns({r"((a|aa|b)*)*c": 1})("a" * length + "cd")


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj",
        "self_attn.q_proj",
        r"layers\.[01]\.self_attn\.(q|k)_proj",
        r".*\.\d+\..*q_proj",
        r"^model\.layers\.1\.self_attn\.q_proj",
        "proj",
        "q_proj|v_proj",
        r"(?!model).*up_proj",
        r"layers\.(?:\d|x)+\.mlp\.up_proj",
    ],
)
def test_patterns_match_what_they_match_in_peft(pattern):
    from peft.utils.other import get_pattern_key

    from recycler.pool.adapters.patterns import compile_patterns

    names = [
        f"model.layers.{layer}.{part}"
        for layer in range(12)
        for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.xq_proj")
    ] + ["q_proj", "lm_head", "a.b"]
    value_of = compile_patterns({pattern: "hit", ".*k_proj": "second"})
    for name in names:
        assert value_of(name) == {pattern: "hit", ".*k_proj": "second"}.get(
            get_pattern_key([pattern, ".*k_proj"], name)
        ), name


def change_config(base, folder, change, **settings):
    make_adapter(base, folder, **settings)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "is not a regular file"),
        (lambda path: path.mkdir(), "is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
        (lambda path: path.symlink_to("nowhere"), "is not a regular file"),
        (
            lambda path: path.write_text('{"r": 4, "lora_alpha": 8, "lora_alpha": 800}'),
            "a name stands twice",
        ),
        (lambda path: path.write_text("[" * 100_000), "cannot be read as JSON"),
        (lambda path: path.write_text(" " * 40_000_000), "is the limit"),
        (lambda path: path.write_text("[1]"), "is not a JSON object"),
        (lambda path: path.write_text('{"lora_alpha": 8}'), "json: r: is missing"),
    ],
)
def test_configurations_are_read_like_every_other_json(base, tmp_path, make, message):
    make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    (tmp_path / "adapter/adapter_config.json").unlink()
    make(tmp_path / "adapter/adapter_config.json")
    with pytest.raises(UnsafeInputError, match=message):
        fold_adapter(base, tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def poke(tensor, value):
    tensor.view(-1)[3] = value
    return tensor


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: poke(tensor, float("nan")), "holds 1 NaN or infinite values in lora_A"),
        (lambda tensor: poke(tensor, float("inf")), "holds 1 NaN or infinite"),
        (lambda tensor: tensor.to(torch.int32), "is I32, where a factor"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "is F8_E4M3, where a factor"),
    ],
)
@pytest.mark.parametrize("write", ["fold", "adapter", "svd"])
def test_factors_that_are_no_numbers_are_refused_by_adapter_and_tensor(
    base, tmp_path, change, message, write
):
    make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    path = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    name = min(name for name in tensors if "lora_A" in name)
    save_file({**tensors, name: change(tensors[name])}, path)
    with pytest.raises(
        UnsafeInputError,
        match=rf"adapter/adapter_model.safetensors: '.*layers.0.self_attn.q_proj.*{message}",
    ):
        if write == "fold":
            fold_adapter(base, tmp_path / "adapter", tmp_path / "out")
        else:
            (tmp_path / "recipe.yaml").write_text(
                "adapters: {a: adapter}\nweights: {a: 1}\n"
                + ("write: svd\nrank: 2\n" if write == "svd" else "")
            )
            merge_adapters(tmp_path / "recipe.yaml", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_on_the_head_says_what_peft_saved_with_it(base, tmp_path):
    config = base / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": False}))
    tensors = load_file(base / "model.safetensors")
    save_file(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()},
        base / "model.safetensors",
        metadata={"format": "pt"},
    )
    make_adapter(base, tmp_path / "adapter", target_modules=["lm_head"])
    assert any(
        name.endswith("base_layer.weight")
        for name in load_file(tmp_path / "adapter/adapter_model.safetensors")
    )
    with pytest.raises(
        UnsafeInputError,
        match="is the base's own weight, which PEFT saves along with.*save_embedding_layers=False",
    ):
        fold_adapter(base, tmp_path / "adapter", tmp_path / "out")
