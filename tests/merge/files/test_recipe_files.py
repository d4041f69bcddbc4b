"""Recipes as files, ours and mergekit's: read strictly, written so that they read back equal."""

from __future__ import annotations

import pytest

from handmade import tokenizer, write_checkpoint
from recycler.errors import UnsafeInputError, UsageError
from recycler.merge.files.mergekit_yaml import read_mergekit, recipe_to_mergekit
from recycler.merge.files.recipe_yaml import open_recipe, read_recipe, recipe_to_yaml
from recycler.types import Group
from small_merge import recipe


def test_recipe_yaml_reads_back_equal(tmp_path):
    groups = (Group(name="mlp", match=r"\.mlp\."), Group(name="rest"))
    for entry in (
        recipe(),
        recipe(
            "ties",
            "base",
            (("density", (0.5, 0.25, 1.0)), ("normalize", False)),
            groups,
            ((1.0, 0.0, -0.5), (0.1, 0.2, 0.3)),
        ),
    ):
        sources = {"a": "a", "b": "/x/b", "c": "../c"} | ({"base": "z"} if entry.base else {})
        found, places = read_recipe(tmp_path / "recipe.yaml", recipe_to_yaml(entry, sources))
        assert found == entry
        assert places["a"] == tmp_path / "a" and str(places["b"]) == "/x/b"


def test_recipe_yaml_tells_every_mistake_with_its_line():
    text = (
        "method: tie\nmembers: {a: x, b: y}\nweights: {a: 1, c: .inf}\noptions: {density: 1}\n"
        "dtype: bf16\n"
    )
    with pytest.raises(UsageError) as error:
        read_recipe("r.yaml", text)
    told = str(error.value)
    for part in (
        "r.yaml:1: method 'tie': unknown. Did you mean 'ties'?",
        "r.yaml:3: 'c': is no member",
        "r.yaml:3: 'b': has no weight",
        "r.yaml:5: dtype 'bf16'",
    ):
        assert part in told
    with pytest.raises(
        UsageError, match="r.yaml:2: key 'wieghts': unknown. Did you mean 'weights'"
    ):
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
    assert (
        found.method == "slerp"
        and found.members == ("a", "b")
        and found.base is None
        and str(sources["b"]) == "/x/b"
    )

    def t(name):
        return found.weights[found.group_of(name)][1]

    assert [t(f"model.layers.{layer}.self_attn.q_proj.weight") for layer in range(3)] == [
        0.0,
        0.5,
        1.0,
    ]
    assert (
        t("model.layers.2.mlp.up_proj.weight") == 0.25
        and t("model.layers.2.input_layernorm.weight") == 0.5
        and t("lm_head.weight") == 0.5
    )


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
    text = (
        "models:\n- {model: a, parameters: {weight: 1}}\n- {model: b, parameters: {weight: 3}}\n"
        "merge_method: linear\n"
    )
    assert read_mergekit("c.yml", text)[0].option("normalize") is True
    assert (
        read_mergekit("c.yml", text + "parameters: {normalize: false}\n")[0].option("normalize")
        is False
    )


@pytest.mark.parametrize(
    "old,new,message",
    [
        ("slerp", "passthrough", "c.yml:6: method 'passthrough': stacks layers"),
        ("[0, 3]}\nmerge", "[1, 4]}\nmerge", "would repeat, be skipped or change place"),
        ("dtype: bfloat16", "dtype: bf16", "Did you mean 'bfloat16'"),
        ("parameters:\n  t", "parameters:\n  s", "parameter 's' of 'slerp': unknown"),
        ("base_model: /x/a", "base_model: /x/z", "needs a base_model and one other"),
        ("/x/b,", "/x/b+lora,", "is an adapter or a revision"),
        ("slices:", "modules:", "key 'modules'"),
    ],
)
def test_mergekit_refusals(old, new, message):
    assert old in GRADIENT
    with pytest.raises(UsageError) as error:
        read_mergekit("c.yml", GRADIENT.replace(old, new))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "entry",
    [
        recipe(),
        recipe("ties", "base", (("density", (0.5, 0.2, 1.0)),)),
        recipe("della", "base", (("epsilon", 0.1), ("density", 0.5))),
        recipe(
            "task_arithmetic",
            "base",
            (),
            (Group(name="one", match=r"layers\.(0|2)\."), Group(name="rest")),
            ((1.0, 0.0, 0.5), (0.1, 0.2, 0.3)),
        ),
    ],
)
def test_written_mergekit_config_means_the_same_weights(entry):
    names = [
        *(
            f"model.layers.{layer}.{part}.weight"
            for layer in range(12)
            for part in ("mlp.up_proj", "self_attn.q_proj")
        ),
        "model.norm.weight",
        "lm_head.weight",
    ]
    sources = {name: f"/p/{name}" for name in ("a", "b", "c", "base")}
    found, _ = read_mergekit("c.yml", recipe_to_mergekit(entry, sources, tensors=names))
    assert [found.weights[found.group_of(name)] for name in names] == [
        entry.weights[entry.group_of(name)] for name in names
    ]
    assert (found.method, found.members, found.base, found.dtype) == (
        entry.method,
        entry.members,
        entry.base,
        entry.dtype,
    )
    assert {name: found.option(name) for name, _ in entry.options} == dict(entry.options)


def test_recipes_without_words_in_mergekit_are_refused():
    for entry in (recipe("widen", "base"), recipe("karcher"), recipe("layer_swap")):
        with pytest.raises(UsageError):
            recipe_to_mergekit(entry, {name: name for name in ("a", "b", "c", "base")})


@pytest.mark.parametrize("source", ["", "tokenizer_source: union\n", "tokenizer_source: base\n"])
def test_vocabularies_that_differ_are_refused_unless_the_file_says_what_to_do(tmp_path, source):
    """Rows are merged by their place: another order of tokens would mix words."""
    write_checkpoint(tmp_path / "a")
    write_checkpoint(
        tmp_path / "b", tokenizer_json=tokenizer() | {"normalizer": {"type": "NFC"}}
    )  # other bytes, the same ids
    swapped = tokenizer()
    swapped["model"]["vocab"] |= {"a": 4, "b": 3}
    write_checkpoint(tmp_path / "c", tokenizer_json=swapped)
    text = (
        f"merge_method: linear\n{source}models:\n- {{model: {tmp_path}/a, parameters: {{weight: "
        f"1}}}}\n- {{model: {tmp_path}/OTHER, parameters: {{weight: 1}}}}\n"
    )
    (tmp_path / "same.yml").write_text(text.replace("OTHER", "b"))
    (tmp_path / "other.yml").write_text(text.replace("OTHER", "c"))
    assert open_recipe(tmp_path / "same.yml")[1].names == ("a", "b")
    if source:
        assert open_recipe(tmp_path / "other.yml")[1].names == ("a", "c")
        return
    with pytest.raises(
        UnsafeInputError, match="gives 2 tokens other ids than 'a', such as 'a': 4 and 3"
    ):
        open_recipe(tmp_path / "other.yml")
