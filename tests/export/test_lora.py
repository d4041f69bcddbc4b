"""`recycler merge` of adapters: every form holds the same deltas, learned weights beat static ones,
mistakes are told.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from recycler.cli import main
from recycler.errors import UnsafeInputError, UsageError
from recycler.export.lora import REPORT, merge_adapters
from recycler.merge.lora.factors import Adapter, LowRank, merged_deltas, read_adapter, write_adapter
from recycler.merge.methods.registry import MERGE_METHODS
from recycler.merge.stream import merged_tensors
from recycler.pool.adapters.fold import fold_adapter
from recycler.pool.catalog import open_pool
from recycler.pool.storage.tensors import ResidentPool
from recycler.testing import make_pico_pool
from recycler.types import Group, Recipe

MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base, two adapters of ranks 4 and 2, and a mix that the second one has been fitted to."""
    root = tmp_path_factory.mktemp("lora")
    pool = make_pico_pool(root / "pool")
    (root / "base").symlink_to(str(pool.base.location))
    tensors = load_file(next((root / "base").glob("*.safetensors")))
    for seed, (name, rank, size) in enumerate((("noise", 4, 0.2), ("good", 2, 0.05))):
        generator = torch.Generator().manual_seed(seed)
        modules = {
            module: LowRank(
                up=torch.randn(tensors[f"{module}.weight"].shape[0], rank, generator=generator),
                down=torch.randn(rank, tensors[f"{module}.weight"].shape[1], generator=generator),
                scale=size,
            )
            for module in MODULES
        }
        write_adapter(Adapter(name=name, modules=modules), root / name)
    lines = [
        {"prompt": "the quick brown ", "completion": "fox jumps over"},
        {"text": "the lazy dog and then the fox"},
        {"prompt": "the lazy ", "completion": "dog"},
    ]
    (root / "mix.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return root


def run(place, tmp_path, text, name="out"):
    (place / "recipe.yaml").write_text("adapters: {noise: noise, good: good}\n" + text)
    return merge_adapters(place / "recipe.yaml", tmp_path / name)


def wanted(place, method="linear", options=None):
    return dict(
        merged_deltas(
            [read_adapter(place / name) for name in ("noise", "good")], (0.5, -1.0), method, options
        )
    )


def test_concatenation_is_exact_and_adds_ranks(place, tmp_path):
    done = run(place, tmp_path, "weights: {noise: 0.5, good: -1.0}\n")
    assert done.largest_error == 0.0
    merged = read_adapter(tmp_path / "out")
    for module, delta in wanted(place).items():
        assert merged.modules[module].rank == 6
        torch.testing.assert_close(merged.modules[module].delta(), delta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "method,options",
    [
        ("lora_cat", {}),
        ("linear", {}),
        ("ties", {"density": 0.4}),
        ("dare_linear", {"density": 0.5}),
    ],
)
def test_svd_tells_the_error_it_makes(place, tmp_path, method, options):
    done = run(
        place,
        tmp_path,
        f"method: {method}\nweights: {{noise: 0.5, good: -1.0}}\nwrite: svd\nrank: 3\noptions: "
        f"{json.dumps(options)}\n",
    )
    merged, report = (
        read_adapter(tmp_path / "out"),
        json.loads((tmp_path / "out" / REPORT).read_text()),
    )
    for module, delta in wanted(
        place, "linear" if method == "lora_cat" else method, options
    ).items():
        error = float((merged.modules[module].delta() - delta).norm() / delta.norm())
        assert (
            report["relative_errors"][module] == pytest.approx(error, abs=1e-4)
            and 0.01 < error <= done.largest_error + 1e-4
        )


@pytest.mark.parametrize("method,options", [("lora_cat", {}), ("ties", {"density": 0.4})])
def test_folded_is_the_base_plus_the_deltas(place, tmp_path, method, options, capsys):
    (place / "recipe.yaml").write_text(
        f"adapters: {{noise: noise, good: good}}\nbase: base\nmethod: {method}\nweights: "
        f"{{noise: 0.5, good: -1.0}}\nwrite: folded\noptions: {json.dumps(options)}\n"
    )
    assert main(["merge", str(place / "recipe.yaml"), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    base, folded = (
        load_file(next((place / "base").glob("*.safetensors"))),
        load_file(tmp_path / "out" / "model.safetensors"),
    )
    deltas = {
        f"{module}.weight": delta
        for module, delta in wanted(
            place, "linear" if method == "lora_cat" else method, options
        ).items()
    }
    assert base.keys() == folded.keys()
    for name, tensor in base.items():
        expected = (tensor.float() + deltas[name]).to(tensor.dtype) if name in deltas else tensor
        torch.testing.assert_close(folded[name], expected, rtol=2**-8, atol=1e-6)
        assert name in deltas or torch.equal(folded[name], tensor)
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    "by,steps,total", [("gradient", 25, 1.0), ("gradient", 25, 2.0), ("spsa", 60, 1.0)]
)
def test_learned_weights_are_better_than_uniform_ones_on_their_mix(
    place, tmp_path, by, steps, total
):
    done = run(
        place,
        tmp_path,
        f"base: base\nlearn: {{data: mix.jsonl, by: {by}, steps: {steps}, batch: 2, "
        f"learning_rate: 0.3, total: {total}}}\n",
    )
    assert done.losses["learned"] < done.losses["uniform"]
    weights = json.loads((tmp_path / "out" / REPORT).read_text())["weights"]
    assert set(weights) == set(MODULES) and all(
        sum(row) == pytest.approx(total, abs=1e-5) for row in weights.values()
    )
    assert set(read_adapter(tmp_path / "out").modules) == set(MODULES)


@pytest.mark.parametrize(
    "text,message",
    [
        ("weights: {noise: 1}\n", "'good': has no weight"),
        ("", "weights and learn: exactly one"),
        ("weights: {noise: 1, goood: 1}\n", "Did you mean 'good'"),
        ("weights: {noise: 1, good: .nan}\n", "is nan"),
        ("method: ties\nweights: {noise: 1, good: 1}\n", "gives deltas of full rank"),
        ("weights: {noise: 1, good: 1}\nwrite: svd\n", "rank: belongs to write: svd"),
        ("weights: {noise: 1, good: 1}\nwrite: folded\n", "base: missing"),
        ("learn: {data: mix.jsonl}\n", "base: missing"),
        ("method: tis\nweights: {noise: 1, good: 1}\n", "Did you mean 'ties'"),
        (
            "method: ties\nweights: {noise: 1, good: 1}\nwrite: svd\nrank: 2\noptions: {densty: "
            "1}\n",
            "Did you mean 'density'",
        ),
        (
            "method: ties\nbase: base\nlearn: {data: mix.jsonl}\nwrite: folded\n",
            "learns the weights of a concatenation",
        ),
        ("base: base\nlearn: {data: recipe.yaml}\n", "recipe.yaml:1: line: is not"),
        ("base: base\nlearn: {data: none.jsonl}\n", "cannot be read"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(place, tmp_path, text, message):
    with pytest.raises(UsageError) as error:
        run(place, tmp_path, text)
    assert message in str(error.value) and list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def exact(place, tmp_path_factory):
    """A base in float32, two adapters of it that change every layer, the norms' neighbours and not
    the same modules, and both folded.
    """
    root = tmp_path_factory.mktemp("exact")
    (root / "base").mkdir()
    tensors = {
        name: tensor.float()
        for path in (place / "base").glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, root / "base/model.safetensors", metadata={"format": "pt"})
    for path in (place / "base").glob("*.json"):
        if not path.name.endswith(".index.json"):
            (root / "base" / path.name).write_bytes(path.read_bytes())
    matrices = [
        name.removesuffix(".weight")
        for name, tensor in tensors.items()
        if tensor.ndim == 2 and ".layers." in name
    ]
    for seed, (name, rank) in enumerate((("a", 4), ("b", 3))):
        generator = torch.Generator().manual_seed(seed)
        modules = {
            module: LowRank(
                up=torch.randn(tensors[f"{module}.weight"].shape[0], rank, generator=generator),
                down=torch.randn(rank, tensors[f"{module}.weight"].shape[1], generator=generator),
                scale=0.02,
            )
            for index, module in enumerate(matrices)
            if index % 5 != seed
        }
        write_adapter(Adapter(name=name, modules=modules), root / name)
        fold_adapter(root / "base", root / name, root / f"full-{name}")
    return root, open_pool([root / "full-a", root / "full-b"], root / "base")


OPTIONS = {
    "ties": {"density": 0.5},
    "dare_linear": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "della": {"density": 0.5},
    "della_linear": {"density": 0.5},
    "breadcrumbs": {"density": 0.5},
    "breadcrumbs_ties": {"density": 0.5},
    "sce": {"select_topk": 0.5},
    "lines": {"alpha": 0.2, "beta": 0.8},
    "layer_swap": {"bottom": 1, "top": 0, "bottom_transition": 1, "top_transition": 0},
}


@pytest.mark.parametrize("method", MERGE_METHODS)
def test_a_merge_of_adapters_is_the_merge_of_the_checkpoints_they_fold_to(exact, tmp_path, method):
    """The one law behind `method:` for adapters: folding and merging may be swapped, to the
    rounding of float32.
    """
    root, pool = exact
    options = OPTIONS.get(method, {})
    (root / "recipe.yaml").write_text(
        f"adapters: {{full-a: a, full-b: b}}\nbase: base\nmethod: {method}\nweights: {{full-a: "
        f"0.7, full-b: 0.6}}\nwrite: folded\nseed: 3\noptions: {json.dumps(options)}\n"
    )
    merge_adapters(root / "recipe.yaml", tmp_path / "out")
    found, base = load_file(tmp_path / "out/model.safetensors"), ResidentPool(pool)
    recipe = Recipe(
        method=method,
        members=("full-a", "full-b"),
        groups=(Group(name="all"),),
        weights=((0.7, 0.6),),
        base="base",
        dtype="float32",
        seed=3,
        options=tuple(options.items()),
    )
    changed = 0
    for name, wanted in merged_tensors(recipe, base):
        origin = base.tensor("base", name)
        step = wanted - origin
        changed += bool(step.any())
        assert float((found[name] - wanted).norm()) <= 2e-5 * float(step.norm()) + 1e-7 * float(
            origin.norm()
        ), name
    assert changed > 4


@pytest.mark.parametrize(
    "method", [name for name, entry in MERGE_METHODS.items() if entry.by_depth or entry.reads_base]
)
def test_methods_that_depend_on_the_base_ask_for_it(place, tmp_path, method):
    with pytest.raises(UsageError, match="depends on the base's"):
        run(
            place,
            tmp_path,
            f"method: {method}\nweights: {{noise: 1, good: 1}}\nwrite: svd\nrank: 2\n",
        )
    with pytest.raises(UsageError, match="depends on the base's"):
        wanted(place, method)


@pytest.mark.parametrize(
    "options,message",
    [
        ("{bottom: 1.5, top: 0}", "whole number"),
        ("{bottom: -1, top: 0}", "whole number"),
        ("{bottom: 2, top: 1}", "more than the 2 layers"),
        ("{}", "more than the 2 layers"),
    ],
)
def test_counts_of_layers_are_whole_and_within_the_model(place, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        run(
            place,
            tmp_path,
            f"base: base\nmethod: layer_swap\nweights: {{noise: 1, good: 1}}\nwrite: folded\n"
            f"options: {options}\n",
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method,write", [("lora_cat", "adapter"), ("ties", "svd")])
def test_adapters_of_different_models_are_refused_without_a_base_too(
    place, tmp_path, method, write
):
    module = MODULES[0]
    write_adapter(
        Adapter(
            name="other",
            modules={module: LowRank(up=torch.ones(6, 1), down=torch.ones(1, 5), scale=1.0)},
        ),
        tmp_path / "other",
    )
    (tmp_path / "recipe.yaml").write_text(
        f"adapters: {{noise: {place / 'noise'}, other: other}}\nmethod: {method}\nweights: "
        f"{{noise: 1, other: 1}}\nwrite: {write}\n" + ("rank: 2\n" if write == "svd" else "")
    )
    with pytest.raises(
        UnsafeInputError,
        match=rf"adapter 'other': '{module}': changes a weight of \[6, 5\], 'noise' one of",
    ):
        merge_adapters(tmp_path / "recipe.yaml", tmp_path / "out")
    assert not (tmp_path / "out").exists()
