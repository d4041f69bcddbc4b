"""The files around a merge: written weights, recipes as YAML, plans."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch
from handmade import file_bytes, model_arrays, tokenizer, write_checkpoint
from safetensors.torch import load_file, save_file

from recycler.cli import main
from recycler.errors import UnsafeInputError, UsageError
from recycler.merge import MERGE_METHODS
from recycler.merge.hashing import tensor_digest
from recycler.merge.mergekit_yaml import read_mergekit, recipe_to_mergekit
from recycler.merge.options import option_complaints, options_of
from recycler.merge.plan import plan_checkpoints, plan_merge
from recycler.merge.recipe_yaml import open_recipe, read_recipe, recipe_to_yaml
from recycler.merge.stream import check_recipe, merged_tensors
from recycler.merge.to_disk import merge_to_folder, merged_infos
from recycler.merge.writer import write_model
from recycler.pool.catalog import open_pool
from recycler.pool.headers import DTYPE_BYTES, read_header
from recycler.pool.tensors import SAFETENSORS_DTYPES, ResidentPool
from recycler.space import read_space, resolve
from recycler.types import Checkpoint, Group, Pool, Recipe, TensorInfo


def tensors_of(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (50, 8), "model.norm.weight": (8,)} | {f"model.layers.{layer}.mlp.up_proj.weight": (16, 8) for layer in range(3)}
    found = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}
    return found | {"model.positions": torch.arange(5), "model.scale": torch.tensor(2.0).bfloat16()}


@pytest.fixture
def pool(tmp_path):
    checkpoints = []
    for seed, name in enumerate(("base", "a", "b", "c")):
        folder = tmp_path / name
        folder.mkdir()
        save_file(tensors_of(seed), folder / "model.safetensors")
        from recycler.pool.headers import read_header

        checkpoints.append(Checkpoint(name=name, location=str(folder), tensors=read_header(folder / "model.safetensors"), config={"num_hidden_layers": 3}))
    return Pool(members=tuple(checkpoints[1:]), base=checkpoints[0])


def recipe(method="linear", base=None, options=(), groups=(Group(name="all"),), weights=((0.5, 0.3, 0.2),)):
    return Recipe(method=method, members=("a", "b", "c"), base=base, weights=weights, groups=groups, options=options, seed=5)


def specs(tensors):
    return {name: (SAFETENSORS_DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}


# ---------------------------------------------------------------- writing

def test_written_file_has_the_bytes_of_safetensors_own(tmp_path):
    tensors = tensors_of(0) | {"z": torch.zeros(3, dtype=torch.float64), "é": torch.ones(2), "empty": torch.empty(0, 4), "flag": torch.tensor(True)}
    digests = write_model(tensors.items(), specs(tensors), tmp_path / "ours")
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours" / "model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert digests == {name: tensor_digest(tensor) for name, tensor in tensors.items()}


def test_shards_hold_everything_once_in_any_order_of_arrival(tmp_path):
    tensors = tensors_of(0)
    write_model(reversed(list(tensors.items())), specs(tensors), tmp_path, max_shard_bytes=600)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    from transformers.utils.hub import get_checkpoint_shard_files

    found, metadata = get_checkpoint_shard_files(tmp_path, tmp_path / "model.safetensors.index.json")
    assert metadata["total_size"] == sum(tensor.nbytes for tensor in tensors.values()) and len(found) == len(files)
    loaded = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert loaded.keys() == tensors.keys() and all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("spoil,message", [
    (lambda pairs: pairs[:-1], "did not come"), (lambda pairs: [*pairs, pairs[0]], "comes twice"), (lambda pairs: [*pairs, ("stray", torch.zeros(2))], "not announced"),
    (lambda pairs: [(pairs[0][0], pairs[0][1].float()), *pairs[1:]], "announced as BF16"),
])
def test_a_model_that_is_not_as_announced_is_refused(tmp_path, spoil, message):
    tensors = tensors_of(0)
    with pytest.raises(ValueError, match=message):
        write_model(spoil(list(tensors.items())), specs(tensors), tmp_path, max_shard_bytes=600)
    assert not (tmp_path / "model.safetensors.index.json").exists()


@pytest.mark.parametrize("method,base,options", [("linear", None, ()), ("linear", "base", ()), ("ties", "base", (("density", 0.5),)), ("della", "base", (("density", 0.5),)), ("lines", "base", ())])
def test_merging_to_disk_gives_the_stream_bytes(pool, tmp_path, monkeypatch, method, base, options):
    monkeypatch.setattr("recycler.merge.to_disk.STEP_ELEMENTS", 37)
    plan = recipe(method, base, options)
    digests = write_model(merged_tensors(plan, ResidentPool(pool)), merged_infos(plan, pool), tmp_path / "one", max_shard_bytes=700)
    assert merge_to_folder(plan, ResidentPool(pool), tmp_path / "two", max_shard_bytes=700) == digests
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


# ---------------------------------------------------------------- recipes as files

def test_recipe_yaml_reads_back_equal(tmp_path):
    groups = (Group(name="mlp", match=r"\.mlp\."), Group(name="rest"))
    for entry in (recipe(), recipe("ties", "base", (("density", (0.5, 0.25, 1.0)), ("normalize", False)), groups, ((1.0, 0.0, -0.5), (0.1, 0.2, 0.3)))):
        sources = {"a": "a", "b": "/x/b", "c": "../c"} | ({"base": "z"} if entry.base else {})
        found, places = read_recipe(tmp_path / "recipe.yaml", recipe_to_yaml(entry, sources))
        assert found == entry
        assert places["a"] == tmp_path / "a" and str(places["b"]) == "/x/b"


def test_recipe_yaml_tells_every_mistake_with_its_line():
    text = "method: tie\nmembers: {a: x, b: y}\nweights: {a: 1, c: .inf}\noptions: {density: 1}\ndtype: bf16\n"
    with pytest.raises(UsageError) as error:
        read_recipe("r.yaml", text)
    told = str(error.value)
    for part in ("r.yaml:1: method 'tie': unknown. Did you mean 'ties'?", "r.yaml:3: 'c': is no member", "r.yaml:3: 'b': has no weight", "r.yaml:5: dtype 'bf16'"):
        assert part in told
    with pytest.raises(UsageError, match="r.yaml:2: key 'wieghts': unknown. Did you mean 'weights'"):
        read_recipe("r.yaml", "method: linear\nwieghts: {a: 1}\nmembers: {a: x}\n")


GRADIENT = """
slices:
- sources:
  - {model: /x/a, layer_range: [0, 3]}
  - {model: /x/b, layer_range: [0, 3]}
merge_method: slerp
base_model: /x/a
parameters:
  t:
  - {filter: self_attn, value: [0, 1]}
  - {filter: mlp, value: 0.25}
  - value: 0.5
dtype: bfloat16
"""


def test_mergekit_gradients_and_filters_become_groups():
    found, sources = read_mergekit("c.yml", GRADIENT)
    assert found.method == "slerp" and found.members == ("a", "b") and found.base is None and str(sources["b"]) == "/x/b"

    def t(name):
        return found.weights[found.group_of(name)][1]

    assert [t(f"model.layers.{layer}.self_attn.q_proj.weight") for layer in range(3)] == [0.0, 0.5, 1.0]
    assert t("model.layers.2.mlp.up_proj.weight") == 0.25 and t("model.layers.2.input_layernorm.weight") == 0.5 and t("lm_head.weight") == 0.5


def test_mergekit_per_model_parameters():
    text = """
models:
- {model: /x/base}
- {model: /x/b, parameters: {weight: 0.3, density: 0.5}}
- {model: /y/b, parameters: {weight: [{filter: mlp, value: 0.5}, {value: 0.1}], density: 0.4}}
merge_method: dare_ties
base_model: /x/base
parameters: {int8_mask: true, lambda: 0.9}
dtype: float32
out_dtype: bfloat16
"""
    found, _ = read_mergekit("c.yml", text)
    assert found.members == ("x-b", "y-b") and found.base == "base" and found.dtype == "bfloat16"
    assert dict(found.options) == {"density": (0.5, 0.4), "lambda": 0.9}
    assert found.weights[found.group_of("model.layers.0.mlp.up_proj.weight")] == (0.3, 0.5)
    assert found.weights[found.group_of("model.norm.weight")] == (0.3, 0.1)


def test_mergekit_linear_normalizes_unless_told():
    text = "models:\n- {model: a, parameters: {weight: 1}}\n- {model: b, parameters: {weight: 3}}\nmerge_method: linear\n"
    assert read_mergekit("c.yml", text)[0].option("normalize") is True
    assert read_mergekit("c.yml", text + "parameters: {normalize: false}\n")[0].option("normalize") is False


@pytest.mark.parametrize("old,new,message", [
    ("slerp", "passthrough", "c.yml:6: method 'passthrough': stacks layers"), ("[0, 3]}\nmerge", "[1, 4]}\nmerge", "would repeat, be skipped or change place"),
    ("dtype: bfloat16", "dtype: bf16", "Did you mean 'bfloat16'"), ("parameters:\n  t", "parameters:\n  s", "parameter 's' of 'slerp': unknown"), ("base_model: /x/a", "base_model: /x/z", "needs a base_model and one other"),
    ("/x/b,", "/x/b+lora,", "is an adapter or a revision"), ("slices:", "modules:", "key 'modules'"),
])
def test_mergekit_refusals(old, new, message):
    assert old in GRADIENT
    with pytest.raises(UsageError) as error:
        read_mergekit("c.yml", GRADIENT.replace(old, new))
    assert message in str(error.value)


@pytest.mark.parametrize("entry", [
    recipe(), recipe("ties", "base", (("density", (0.5, 0.2, 1.0)),)), recipe("della", "base", (("epsilon", 0.1), ("density", 0.5))),
    recipe("task_arithmetic", "base", (), (Group(name="one", match=r"layers\.(0|2)\."), Group(name="rest")), ((1.0, 0.0, 0.5), (0.1, 0.2, 0.3))),
])
def test_written_mergekit_config_means_the_same_weights(entry):
    names = [*(f"model.layers.{layer}.{part}.weight" for layer in range(12) for part in ("mlp.up_proj", "self_attn.q_proj")), "model.norm.weight", "lm_head.weight"]
    sources = {name: f"/p/{name}" for name in ("a", "b", "c", "base")}
    found, _ = read_mergekit("c.yml", recipe_to_mergekit(entry, sources, tensors=names))
    assert [found.weights[found.group_of(name)] for name in names] == [entry.weights[entry.group_of(name)] for name in names]
    assert (found.method, found.members, found.base, found.dtype) == (entry.method, entry.members, entry.base, entry.dtype)
    assert {name: found.option(name) for name, _ in entry.options} == dict(entry.options)


FINE = """
models:
- {model: /x/a, parameters: {weight: 1, density: [{filter: mlp, value: [0.1, 0.5]}, {value: 0.9}]}}
- {model: /x/b, parameters: {weight: [0, 1], density: 0.4}}
merge_method: dare_ties
base_model: /x/base
parameters: {lambda: [{filter: self_attn, value: 0.5}, {value: 1.0}], rescale: [true, false]}
slices:
"""


def test_options_may_vary_by_member_name_and_depth(tmp_path):
    """As mergekit's YAML can say it, for every tensor what mergekit would take; written and read again, the same."""
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 3}')
    found, _ = read_mergekit("c.yml", FINE.replace("slices:\n", "").replace("/x/base", str(tmp_path)))

    def options(name):
        group = found.group_of(name)
        return found.weights[group], options_of(found.options, found.groups[group].name)

    assert options("model.layers.1.mlp.up_proj.weight") == ((1.0, 0.5), {"density": (0.3, 0.4), "lambda": 1.0, "rescale": True})
    assert options("model.layers.2.mlp.up_proj.weight") == ((1.0, 1.0), {"density": (0.5, 0.4), "lambda": 1.0, "rescale": False})
    assert options("model.layers.2.self_attn.q_proj.weight") == ((1.0, 1.0), {"density": (0.9, 0.4), "lambda": 0.5, "rescale": False})
    assert options("model.norm.weight") == ((1.0, 0.0), {"density": (0.9, 0.4), "lambda": 1.0, "rescale": True})
    sources = dict.fromkeys((*found.members, found.base), "x") | {found.base: tmp_path}
    assert read_recipe("r.yaml", recipe_to_yaml(found, sources))[0] == found
    names = [f"model.layers.{layer}.{part}.weight" for layer in range(3) for part in ("mlp.up_proj", "self_attn.q_proj", "input_layernorm")] + ["model.norm.weight"]
    again, _ = read_mergekit("c.yml", recipe_to_mergekit(found, {"a": "/x/a", "b": "/x/b", found.base: tmp_path}, tensors=names))
    for name in names:
        group = again.group_of(name)
        assert (again.weights[group], options_of(again.options, again.groups[group].name)) == options(name)


@pytest.mark.parametrize("old,new,message", [
    ("density: 0.4", "density: 0.4, lambda: 2", "parameter 'lambda' of 'dare_ties': holds for all models, and stands under one"), ("density: 0.4", "densty: 0.4", "parameter 'densty' of 'dare_ties': unknown. Did you mean 'density'"),
    ("density: 0.4", "density: [0.4, {value: 1}]", "mixes filters with plain values"), ("density: 0.4", "density: []", "is empty"), ("density: 0.4", "density: high", "of another kind"), ("density: 0.4", "4: 0.4", "does not have a word as its name"),
    ("weight: 1", "weight: true", "missing or not a number"), ("weight: 1", "weight: .nan", "is nan"), ("value: 0.9", "vale: 0.9", "is not {filter: a word, value: ...}"), ("dare_ties", "[dare_ties]", "is not a word"), ("/x/base", "{x: y}", "is not a word"),
    ("slices:", "slices: 3", "exactly one of them is needed"), ("slices:\n", "tokenizer: 3\n", "key 'tokenizer'"), ("parameters: {lambda", "parameters: 3 #", "are not a mapping"), ("[true, false]", "[0, 0.5]", "of another kind"),
])
def test_mergekit_parameters_that_mean_nothing_are_refused_by_name(tmp_path, old, new, message):
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 3}')
    text = FINE.replace(old, new).replace("slices:\n", "").replace("/x/base", str(tmp_path))
    with pytest.raises(UsageError) as error:
        read_mergekit("c.yml", text)
    assert message in str(error.value)


def test_options_of_a_group_go_before_the_recipes(tmp_path):
    text = "method: ties\nbase: {base: b}\nmembers: {a: x, b: y}\ngroups:\n- {name: mlp, match: mlp, weights: {a: 1, b: 0}, options: {density: [0.1, 0.2]}}\n- {name: rest, weights: {a: 0, b: 1}}\noptions: {density: 0.5}\n"
    found, _ = read_recipe(tmp_path / "r.yaml", text)
    assert options_of(found.options, "mlp") == {"density": (0.1, 0.2)} and options_of(found.options, "rest") == {"density": 0.5}
    for old, new, message in (("[0.1, 0.2]", "[0.1]", "r.yaml:5: option 'density' of 'ties': is not one number for each of 2 members"), ("density: [0.1, 0.2]", "lambda: [1, 1]", "is a list, and holds for all members"),
                              ("name: rest", "name: mlp", "or that another group has"), ("density: 0.5", "density: true", "option 'density' of 'ties': is True"), ("density: 0.5", "density@x: 0.5", "is for the group 'x'")):
        with pytest.raises(UsageError) as error:
            read_recipe(tmp_path / "r.yaml", text.replace(old, new))
        assert message in str(error.value)


def test_recipes_without_words_in_mergekit_are_refused():
    for entry in (recipe("widen", "base"), recipe("karcher"), recipe("layer_swap")):
        with pytest.raises(UsageError):
            recipe_to_mergekit(entry, {name: name for name in ("a", "b", "c", "base")})


# ---------------------------------------------------------------- plans

def test_plan_counts_what_is_read_and_written(pool):
    checkpoints = {checkpoint.name: checkpoint for checkpoint in (*pool.members, pool.base)}
    whole = sum(info.num_bytes for info in pool.base.tensors.values())
    plan = plan_checkpoints(recipe(), checkpoints)
    assert plan.bytes_written == whole and plan.bytes_read == 3 * whole and plan.seconds(1e9) == pytest.approx(4 * whole / 1e9)
    with_base = plan_checkpoints(recipe("ties", "base", weights=((0.5, 0.0, 0.5),)), checkpoints)
    positions = pool.base.tensors["model.positions"].num_bytes
    assert with_base.bytes_read == 3 * (whole - positions) + 3 * positions


def test_a_hundred_thousand_tensors_are_planned_in_seconds():
    tensors = {f"model.layers.{index // 400}.mlp.experts.{index % 400}.up_proj.weight": TensorInfo(
        name=str(index), dtype="BF16", shape=(1024, 1024), file="x", start=0, num_bytes=2 * 1024 * 1024) for index in range(100_000)}
    members = tuple(f"m{k}" for k in range(16))
    groups = (Group(name="mlp", match=r"self_attn"), Group(name="rest"))
    entry = Recipe(method="linear", members=members, groups=groups, weights=((1 / 16,) * 16,) * 2)
    start = time.process_time()
    plan = plan_merge(entry, tensors)
    assert time.process_time() - start < 5
    assert plan.num_parameters == 100_000 * 1024**2 and plan.bytes_read == 16 * plan.bytes_written


def test_a_recipe_is_planned_from_its_headers(tmp_path, capsys):
    for name in ("a", "b"):
        write_checkpoint(tmp_path / name)
        (tmp_path / name / "model.safetensors").chmod(0o444)
    (tmp_path / "r.yaml").write_text("method: linear\nmembers: {a: a, b: b}\nweights: {a: 0.5, b: 0.5}\n")
    whole = sum(info.num_bytes for info in open_pool([tmp_path / "a"]).template.tensors.values())
    assert main(["plan", str(tmp_path / "r.yaml"), "--bandwidth", "0.5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes_read"] == 2 * whole and found["bytes_written"] == whole and found["seconds"] == pytest.approx(3 * whole / 0.5e9)
    assert main(["plan", str(tmp_path / "r.yaml")]) == 0 and "linear of 2 members" in capsys.readouterr().out
    assert main(["plan", str(tmp_path / "r.yaml"), "--bandwidth", "0"]) == 2
    (tmp_path / "r.yaml").write_text("method: ties\nmembers: {a: a, b: b}\nweights: {a: 0.5, b: 0.5}\n")
    assert main(["plan", str(tmp_path / "r.yaml")]) == 2 and "works on deltas" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "U16", "U32", "U64", "I8", "BOOL"])
def test_tensors_that_cannot_be_averaged_are_copied_when_all_agree_and_refused_by_name_when_not(tmp_path, dtype):
    pools = []
    for kind, second in (("same", 1), ("other", 0)):
        for number, value in enumerate((1, second)):
            raw = bytes([value]) * (4 * DTYPE_BYTES[dtype])
            header = {"q": {"dtype": dtype, "shape": [4], "data_offsets": [0, len(raw)]}, "w": {"dtype": "F32", "shape": [2], "data_offsets": [len(raw), len(raw) + 8]}}
            (tmp_path / kind / f"m{number}").mkdir(parents=True)
            (tmp_path / kind / f"m{number}" / "config.json").write_text("{}")
            (tmp_path / kind / f"m{number}" / "model.safetensors").write_bytes(file_bytes(header, raw + bytes(8)))
        pools.append(open_pool([tmp_path / kind]))
    entry = Recipe(method="linear", members=("m0", "m1"), weights=((0.5, 0.5),))
    merge_to_folder(entry, ResidentPool(pools[0]), tmp_path / "out")
    info = read_header(tmp_path / "out" / "model.safetensors")["q"]
    assert info.dtype == dtype and (tmp_path / "out" / "model.safetensors").read_bytes()[info.start : info.start + info.num_bytes] == b"\1" * info.num_bytes
    with pytest.raises(UnsafeInputError, match=f"tensor 'q': is {dtype}, which cannot be averaged"):
        merge_to_folder(entry, ResidentPool(pools[1]), tmp_path / "refused")


def test_a_member_that_is_cut_short_while_it_is_read_is_an_error_and_no_crash(tmp_path):
    write_checkpoint(tmp_path / "a")
    write_checkpoint(tmp_path / "b")
    pool = open_pool([tmp_path / "a", tmp_path / "b"])
    os.truncate(tmp_path / "b" / "model.safetensors", (tmp_path / "b" / "model.safetensors").stat().st_size - 4)
    with pytest.raises(UnsafeInputError, match="was changed since its header was read"):
        merge_to_folder(Recipe(method="linear", members=("a", "b"), weights=((0.5, 0.5),)), ResidentPool(pool), tmp_path / "out")


def test_members_of_weight_zero_are_not_read(tmp_path):
    write_checkpoint(tmp_path / "a")
    write_checkpoint(tmp_path / "b")
    pool = open_pool([tmp_path / "a", tmp_path / "b"])
    (tmp_path / "b" / "model.safetensors").unlink()
    digests = merge_to_folder(Recipe(method="linear", members=("a", "b"), weights=((1.0, 0.0),)), ResidentPool(pool), tmp_path / "out")
    assert digests == {name: tensor_digest(tensor) for name, tensor in load_file(tmp_path / "a" / "model.safetensors").items()}


@pytest.mark.parametrize("change,message", [
    (lambda arrays: arrays.pop("model.norm.weight"), "lacks tensor 'model.norm.weight'"), (lambda arrays: arrays.update(extra=arrays["model.norm.weight"]), "has tensor 'extra'"),
    (lambda arrays: arrays.update({"model.embed_tokens.weight": arrays["model.embed_tokens.weight"][:9]}), r"holds 'model.embed_tokens.weight' as BF16 \[9, 8\]"),
])
def test_members_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, change, message):
    arrays = model_arrays(1)
    change(arrays)
    write_checkpoint(tmp_path / "a")
    write_checkpoint(tmp_path / "b", arrays)
    with pytest.raises(UnsafeInputError, match=message):
        merge_to_folder(Recipe(method="linear", members=("a", "b"), weights=((0.5, 0.5),)), ResidentPool(open_pool([tmp_path / "a", tmp_path / "b"])), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["", "tokenizer_source: union\n", "tokenizer_source: base\n"])
def test_vocabularies_that_differ_are_refused_unless_the_file_says_what_to_do(tmp_path, source):
    """Rows are merged by their place: another order of tokens would mix words."""
    write_checkpoint(tmp_path / "a")
    write_checkpoint(tmp_path / "b", tokenizer_json=tokenizer() | {"normalizer": {"type": "NFC"}})  # other bytes, the same ids
    swapped = tokenizer()
    swapped["model"]["vocab"] |= {"a": 4, "b": 3}
    write_checkpoint(tmp_path / "c", tokenizer_json=swapped)
    text = f"merge_method: linear\n{source}models:\n- {{model: {tmp_path}/a, parameters: {{weight: 1}}}}\n- {{model: {tmp_path}/OTHER, parameters: {{weight: 1}}}}\n"
    (tmp_path / "same.yml").write_text(text.replace("OTHER", "b"))
    (tmp_path / "other.yml").write_text(text.replace("OTHER", "c"))
    assert open_recipe(tmp_path / "same.yml")[1].names == ("a", "b")
    if source:
        assert open_recipe(tmp_path / "other.yml")[1].names == ("a", "c")
        return
    with pytest.raises(UnsafeInputError, match="gives 2 tokens other ids than 'a', such as 'a': 4 and 3"):
        open_recipe(tmp_path / "other.yml")


SPACE_METHODS = {"ties_modules": "ties", "spectral": "iso_c", "lora_cat": "linear"}  # others are named after their method, or are for all


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_spaces_fit_their_method(path):
    method = SPACE_METHODS.get(path.stem, path.stem if path.stem in MERGE_METHODS else "linear")
    found = resolve(*read_space(path), members=("a", "b"), num_layers=14, has_base=True, method_options=MERGE_METHODS[method].options)
    options = tuple((name, round(low) if type(MERGE_METHODS[method].options[name.partition("@")[0]]) is int else low) for name, (low, _) in found.options)
    assert not list(option_complaints(options, MERGE_METHODS[method].options, [group.name for group in found.groups], 2))


def test_an_option_of_a_group_that_the_space_does_not_have_is_refused(tmp_path):
    (tmp_path / "s.yaml").write_text("version: 1\ngroups: modules\noptions: {density@mpl: [0.1, 1.0]}\n")
    with pytest.raises(UsageError, match="there is no group 'mpl'. Did you mean 'mlp'"):
        resolve(*read_space(tmp_path / "s.yaml"), members=("a", "b"), num_layers=8, has_base=True, method_options=MERGE_METHODS["ties"].options)


def test_a_space_of_layer_counts_stays_within_the_model():
    path = Path(__file__).parents[1] / "search_spaces/layer_swap.yaml"
    for num_layers in (13, 2):
        with pytest.raises(UsageError, match=f"reach 14 layers together, the model has {num_layers}"):
            resolve(*read_space(path), members=("a", "b"), num_layers=num_layers, has_base=True, method_options=MERGE_METHODS["layer_swap"].options)


@pytest.mark.parametrize("options,message", [({"bottom": 1.9, "top": 1}, "whole number"), ({"bottom": -1, "top": 1}, "whole number"), ({"bottom": 3, "top": 3}, "more than the")])
def test_counts_of_layers_are_whole_and_within_the_model(pool, options, message):
    counts = tuple(options.items())
    with pytest.raises(UsageError, match=message):
        check_recipe(Recipe(method="layer_swap", members=("a", "b"), groups=(Group(name="all"),), weights=((0.5, 0.5),), dtype="bfloat16", options=counts), ResidentPool(pool))
