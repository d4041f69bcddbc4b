"""Options of a merge: by member, group and depth, in files and in spaces; and what is refused."""

from __future__ import annotations

import pytest

from places import ROOT
from recycler.errors import UsageError
from recycler.merge.files.mergekit_yaml import read_mergekit, recipe_to_mergekit
from recycler.merge.files.recipe_yaml import read_recipe, recipe_to_yaml
from recycler.merge.methods.options import option_complaints, options_of
from recycler.merge.methods.registry import MERGE_METHODS
from recycler.merge.stream import check_recipe
from recycler.pool.storage.tensors import ResidentPool
from recycler.specs.resolve import resolve
from recycler.specs.space import read_space
from recycler.types import Group, Recipe

# ---------------------------------------------------------------- in files

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
    """As mergekit's YAML can say it, for every tensor what mergekit would take; written and read
    again, the same.
    """
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 3}')
    found, _ = read_mergekit(
        "c.yml", FINE.replace("slices:\n", "").replace("/x/base", str(tmp_path))
    )

    def options(name):
        group = found.group_of(name)
        return found.weights[group], options_of(found.options, found.groups[group].name)

    assert options("model.layers.1.mlp.up_proj.weight") == (
        (1.0, 0.5),
        {"density": (0.3, 0.4), "lambda": 1.0, "rescale": True},
    )
    assert options("model.layers.2.mlp.up_proj.weight") == (
        (1.0, 1.0),
        {"density": (0.5, 0.4), "lambda": 1.0, "rescale": False},
    )
    assert options("model.layers.2.self_attn.q_proj.weight") == (
        (1.0, 1.0),
        {"density": (0.9, 0.4), "lambda": 0.5, "rescale": False},
    )
    assert options("model.norm.weight") == (
        (1.0, 0.0),
        {"density": (0.9, 0.4), "lambda": 1.0, "rescale": True},
    )
    sources = dict.fromkeys((*found.members, found.base), "x") | {found.base: tmp_path}
    assert read_recipe("r.yaml", recipe_to_yaml(found, sources))[0] == found
    names = [
        f"model.layers.{layer}.{part}.weight"
        for layer in range(3)
        for part in ("mlp.up_proj", "self_attn.q_proj", "input_layernorm")
    ] + ["model.norm.weight"]
    again, _ = read_mergekit(
        "c.yml",
        recipe_to_mergekit(found, {"a": "/x/a", "b": "/x/b", found.base: tmp_path}, tensors=names),
    )
    for name in names:
        group = again.group_of(name)
        assert (
            again.weights[group],
            options_of(again.options, again.groups[group].name),
        ) == options(name)


@pytest.mark.parametrize(
    "old,new,message",
    [
        (
            "density: 0.4",
            "density: 0.4, lambda: 2",
            "parameter 'lambda' of 'dare_ties': holds for all models, and stands under one",
        ),
        (
            "density: 0.4",
            "densty: 0.4",
            "parameter 'densty' of 'dare_ties': unknown. Did you mean 'density'",
        ),
        ("density: 0.4", "density: [0.4, {value: 1}]", "mixes filters with plain values"),
        ("density: 0.4", "density: []", "is empty"),
        ("density: 0.4", "density: high", "of another kind"),
        ("density: 0.4", "4: 0.4", "does not have a word as its name"),
        ("weight: 1", "weight: true", "missing or not a number"),
        ("weight: 1", "weight: .nan", "is nan"),
        ("value: 0.9", "vale: 0.9", "is not {filter: a word, value: ...}"),
        ("dare_ties", "[dare_ties]", "is not a word"),
        ("/x/base", "{x: y}", "is not a word"),
        ("slices:", "slices: 3", "exactly one of them is needed"),
        ("slices:\n", "tokenizer: 3\n", "key 'tokenizer'"),
        ("parameters: {lambda", "parameters: 3 #", "are not a mapping"),
        ("[true, false]", "[0, 0.5]", "of another kind"),
    ],
)
def test_mergekit_parameters_that_mean_nothing_are_refused_by_name(tmp_path, old, new, message):
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 3}')
    text = FINE.replace(old, new).replace("slices:\n", "").replace("/x/base", str(tmp_path))
    with pytest.raises(UsageError) as error:
        read_mergekit("c.yml", text)
    assert message in str(error.value)


def test_options_of_a_group_go_before_the_recipes(tmp_path):
    text = (
        "method: ties\nbase: {base: b}\nmembers: {a: x, b: y}\ngroups:\n- {name: mlp, match: mlp, "
        "weights: {a: 1, b: 0}, options: {density: [0.1, 0.2]}}\n- {name: rest, weights: {a: 0, "
        "b: 1}}\noptions: {density: 0.5}\n"
    )
    found, _ = read_recipe(tmp_path / "r.yaml", text)
    assert options_of(found.options, "mlp") == {"density": (0.1, 0.2)} and options_of(
        found.options, "rest"
    ) == {"density": 0.5}
    for old, new, message in (
        (
            "[0.1, 0.2]",
            "[0.1]",
            "r.yaml:5: option 'density' of 'ties': is not one number for each of 2 members",
        ),
        ("density: [0.1, 0.2]", "lambda: [1, 1]", "is a list, and holds for all members"),
        ("name: rest", "name: mlp", "or that another group has"),
        ("density: 0.5", "density: true", "option 'density' of 'ties': is True"),
        ("density: 0.5", "density@x: 0.5", "is for the group 'x'"),
    ):
        with pytest.raises(UsageError) as error:
            read_recipe(tmp_path / "r.yaml", text.replace(old, new))
        assert message in str(error.value)


# ---------------------------------------------------------------- in spaces

SPACE_METHODS = {
    "ties_modules": "ties",
    "spectral": "iso_c",
    "lora_cat": "linear",
}  # others are named after their method, or are for all


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "search_spaces").glob("*.yaml")),
    ids=lambda path: path.stem,
)
def test_shipped_spaces_fit_their_method(path):
    method = SPACE_METHODS.get(path.stem, path.stem if path.stem in MERGE_METHODS else "linear")
    found = resolve(
        *read_space(path),
        members=("a", "b"),
        num_layers=14,
        has_base=True,
        method_options=MERGE_METHODS[method].options,
    )
    options = tuple(
        (
            name,
            round(low)
            if type(MERGE_METHODS[method].options[name.partition("@")[0]]) is int
            else low,
        )
        for name, (low, _) in found.options
    )
    assert not list(
        option_complaints(
            options, MERGE_METHODS[method].options, [group.name for group in found.groups], 2
        )
    )


def test_an_option_of_a_group_that_the_space_does_not_have_is_refused(tmp_path):
    (tmp_path / "s.yaml").write_text(
        "version: 1\ngroups: modules\noptions: {density@mpl: [0.1, 1.0]}\n"
    )
    with pytest.raises(UsageError, match="there is no group 'mpl'. Did you mean 'mlp'"):
        resolve(
            *read_space(tmp_path / "s.yaml"),
            members=("a", "b"),
            num_layers=8,
            has_base=True,
            method_options=MERGE_METHODS["ties"].options,
        )


def test_a_space_of_layer_counts_stays_within_the_model():
    path = ROOT / "search_spaces/layer_swap.yaml"
    for num_layers in (13, 2):
        with pytest.raises(
            UsageError, match=f"reach 14 layers together, the model has {num_layers}"
        ):
            resolve(
                *read_space(path),
                members=("a", "b"),
                num_layers=num_layers,
                has_base=True,
                method_options=MERGE_METHODS["layer_swap"].options,
            )


@pytest.mark.parametrize(
    "options,message",
    [
        ({"bottom": 1.9, "top": 1}, "whole number"),
        ({"bottom": -1, "top": 1}, "whole number"),
        ({"bottom": 3, "top": 3}, "more than the"),
    ],
)
def test_counts_of_layers_are_whole_and_within_the_model(pool, options, message):
    counts = tuple(options.items())
    with pytest.raises(UsageError, match=message):
        check_recipe(
            Recipe(
                method="layer_swap",
                members=("a", "b"),
                groups=(Group(name="all"),),
                weights=((0.5, 0.5),),
                dtype="bfloat16",
                options=counts,
            ),
            ResidentPool(pool),
        )
