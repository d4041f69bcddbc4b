"""Run the same merges with recycler and with mergekit 0.1.5 and compare every tensor; print a
markdown table.

    python3 -m venv /tmp/mergekit-venv && /tmp/mergekit-venv/bin/pip install torch==2.13.0
    mergekit==0.1.5 python benchmarks/parity/run.py --mergekit /tmp/mergekit-venv/bin/mergekit-yaml

mergekit computes in float32 (`dtype: float32, out_dtype: bfloat16`), as we always do: so both round
once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
from models import FAMILIES, build

from recycler.merge.files.mergekit_yaml import read_mergekit, recipe_to_mergekit
from recycler.merge.stream import merged_tensors
from recycler.pool.catalog import open_pool
from recycler.pool.storage.tensors import ResidentPool
from recycler.types import Group, Recipe

THREE, TWO = (0.5, 0.3, 0.4), (0.6, 0.4)
MLP = (Group(name="mlp", match="mlp"), Group(name="rest"))
CASES: dict[
    str, tuple[str, dict, tuple, bool]
] = {  # label: method, options, weights (one row or two groups), with base
    "linear": ("linear", {}, THREE, False),
    "linear, normalize": ("linear", {"normalize": True}, THREE, False),
    "linear, filters": ("linear", {}, (THREE, (0.2, 0.2, 0.6)), False),
    "linear, with base": ("linear", {}, THREE, True),
    "task_arithmetic": ("task_arithmetic", {"lambda": 0.8}, THREE, True),
    "task_arithmetic, normalize": ("task_arithmetic", {"normalize": True}, THREE, True),
    "slerp": ("slerp", {}, TWO, False),
    "nuslerp": ("nuslerp", {}, TWO, False),
    "nuslerp, deltas": ("nuslerp", {}, TWO, True),
    "nuslerp, rows": ("nuslerp", {"nuslerp_flatten": False}, TWO, True),
    "nuslerp, columns": (
        "nuslerp",
        {"nuslerp_flatten": False, "nuslerp_row_wise": True},
        TWO,
        True,
    ),
    "multislerp": ("multislerp", {}, THREE, False),
    "multislerp, deltas": ("multislerp", {}, THREE, True),
    "karcher": ("karcher", {}, (1.0, 1.0, 1.0), False),
    "model_stock": ("model_stock", {}, (1.0, 1.0, 1.0), True),
    "model_stock, filter_wise": ("model_stock", {"filter_wise": True}, (1.0, 1.0, 1.0), True),
    "ties, density 0.3": ("ties", {"density": 0.3}, THREE, True),
    "ties, per member": ("ties", {"density": (0.2, 0.5, 1.0), "lambda": 1.2}, THREE, True),
    "ties, no normalize": ("ties", {"density": 0.5, "normalize": False}, THREE, True),
    "ties, rescale": ("ties", {"density": 0.5, "rescale": True}, THREE, True),
    "breadcrumbs": ("breadcrumbs", {"density": 0.8, "gamma": 0.05}, THREE, True),
    "breadcrumbs_ties": ("breadcrumbs_ties", {"density": 0.8, "gamma": 0.05}, THREE, True),
    "sce": ("sce", {"select_topk": 0.4}, (1.0, 1.0, 1.0), True),
    "sce, all": ("sce", {}, (1.0, 1.0, 1.0), True),
    "dare_linear, density 1": ("dare_linear", {"density": 1.0}, THREE, True),
    "dare_ties, density 1": ("dare_ties", {"density": 1.0}, THREE, True),
    "dare_linear, density 0.5": ("dare_linear", {"density": 0.5}, THREE, True),
    "dare_linear, no rescale": ("dare_linear", {"density": 0.5, "rescale": False}, THREE, True),
    "dare_ties, density 0.5": ("dare_ties", {"density": 0.5}, THREE, True),
    "della": ("della", {"density": 0.5, "epsilon": 0.2}, THREE, True),
    "della_linear": ("della_linear", {"density": 0.5, "epsilon": 0.2}, THREE, True),
    "della_linear, no rescale": (
        "della_linear",
        {"density": 0.5, "epsilon": 0.2, "rescale": False},
        THREE,
        True,
    ),
    "dare_linear, one member": ("dare_linear", {"density": 0.3, "rescale": False}, (1.0,), True),
    "della_linear, one member": (
        "della_linear",
        {"density": 0.5, "epsilon": 0.2, "rescale": False},
        (1.0,),
        True,
    ),
}
BY_HAND: dict[
    str, str
] = {  # mergekit's YAML, read by both: settings over depth and by name, and slices
    "task_arithmetic, gradients": """
models:
- {model: M1, parameters: {weight: [0, 0.5, 1]}}
- model: M2
  parameters:
    weight: [{filter: mlp, value: [1, 0]}, {filter: self_attn, value: 0.4}, {value: 0.7}]
merge_method: task_arithmetic
base_model: BASE
parameters:
  lambda: [{filter: norm, value: 0.5}, {value: [0.8, 1.2]}]
  normalize: [{filter: q_proj, value: true}, {value: false}]
""",
    "ties, density over depth": """
models:
- {model: M1, parameters: {weight: 0.6, density: [0.2, 0.8]}}
- {model: M2, parameters: {weight: 0.4, density: [{filter: mlp, value: 0.3}, {value: [1, 0.5]}]}}
- {model: M3, parameters: {weight: [0.2, 0.3], density: 0.5}}
merge_method: ties
base_model: BASE
""",
    "slerp, t over depth": """
slices:
- sources: [{model: M1, layer_range: [0, 4]}, {model: M2, layer_range: [0, 4]}]
merge_method: slerp
base_model: M1
parameters:
  t: [{filter: self_attn, value: [0, 0.5, 0.3, 1]}, {filter: mlp, value: [1, 0]}, {value: 0.5}]
""",
    "linear, two slices": """
slices:
- sources:
  - {model: M1, layer_range: [0, 1], parameters: {weight: 0.9}}
  - {model: M2, layer_range: [0, 1], parameters: {weight: 0.3}}
- sources:
  - {model: M1, layer_range: [1, 4], parameters: {weight: [0.1, 0.7]}}
  - {model: M2, layer_range: [1, 4], parameters: {weight: 0.5}}
merge_method: linear
parameters: {normalize: false}
""",
}
RANDOM = ("dare_linear, density 0.5", "dare_ties, density 0.5", "no rescale", "della", "one member")


def recipe_of(label: str, folder: Path) -> Recipe:
    if label in BY_HAND:
        return read_mergekit("case.yml", by_hand(label, folder))[0]
    method, options, weights, with_base = CASES[label]
    rows = weights if isinstance(weights[0], tuple) else (weights,)
    return Recipe(
        method=method,
        members=tuple(f"m{number + 1}" for number in range(len(rows[0]))),
        base="base" if with_base else None,
        weights=rows,
        groups=MLP if len(rows) > 1 else (Group(name="all"),),
        options=tuple(options.items()),
    )


def by_hand(label: str, folder: Path) -> str:
    text = BY_HAND[label].replace("BASE", str(folder / "base"))
    for number in (1, 2, 3):
        text = text.replace(f"M{number}", str(folder / f"m{number}"))
    return text + "dtype: float32\nout_dtype: bfloat16\n"


def mergekit(label: str, recipe: Recipe, folder: Path, command: str) -> dict[str, torch.Tensor]:
    names, out = (
        (*recipe.members, *([recipe.base] if recipe.base else [])),
        folder / label.replace(" ", "_").replace(",", ""),
    )
    tensors = open_pool([folder / "base"]).template.tensors
    config = out.with_suffix(".yml")
    config.write_text(
        by_hand(label, folder)
        if label in BY_HAND
        else recipe_to_mergekit(recipe, {name: folder / name for name in names}, tensors=tensors)
    )
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [command, str(config), str(out), "--no-copy-tokenizer", "--quiet"],
        env=environment,
        capture_output=True,
        text=True,
    )
    if not (out / "model.safetensors").exists():
        raise SystemExit(f"{config}: mergekit failed\n{done.stderr[-2000:]}")
    return load_file(out / "model.safetensors")


def ulps(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """Distance in units in the last place of bfloat16, across zero too."""

    def ordered(tensor: torch.Tensor) -> torch.Tensor:
        bits = tensor.contiguous().view(torch.int16).to(torch.int32)
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (ordered(one) - ordered(two)).abs()


def compare(label: str, recipe: Recipe, folder: Path, ours: dict, theirs: dict) -> str:
    missing = sorted(set(ours) ^ set(theirs))
    total = sum(tensor.numel() for tensor in ours.values())
    if not any(word in label for word in RANDOM):
        apart = [ulps(ours[name], theirs[name]) for name in theirs]
        differing, most = (
            sum(int((distance > 0).sum()) for distance in apart),
            max(int(distance.max()) for distance in apart),
        )
        worst = max(
            float((ours[name].float() - theirs[name].float()).abs().max()) for name in theirs
        )
        verdict = (
            "bit for bit"
            if differing == 0
            else f"{differing} elements, at most {most} ulp ({worst:.1e})"
        )
    else:
        verdict = law(recipe, folder, ours, theirs)
    return f"{verdict} of {total:,}" + (f"; only in one: {missing}" if missing else "")


def law(recipe: Recipe, folder: Path, ours: dict, theirs: dict) -> str:
    """Random masks are compared by what they do, ours and mergekit's.

    moved: share of elements unlike the base (rate). slope: regression of the merged delta on that
    of the full linear merge (mean). outside: moved elements that no member had moved (support).
    larger half: the rate among the larger half of each tensor's deltas. With one member and no
    rescaling every element is the base's or the member's: `other` counts the rest.
    """
    full = dict(
        merged_tensors(
            Recipe(
                method="linear",
                members=recipe.members,
                base=recipe.base,
                weights=recipe.weights,
                dtype="float32",
            ),
            pool(folder, recipe),
        )
    )
    base = load_file(folder / "base" / "model.safetensors")
    members = [load_file(folder / name / "model.safetensors") for name in recipe.members]
    figures = []
    for merged in (ours, theirs):
        total, count = (
            dict.fromkeys(("moved", "outside", "other", "large", "along", "square"), 0.0),
            0,
        )
        for name, origin in base.items():
            delta, wanted = (
                merged[name].float() - origin.to(torch.bfloat16).float(),
                full[name] - origin.float(),
            )
            moved = delta != 0
            total["moved"] += int(moved.sum())
            total["outside"] += int(
                (moved & torch.stack([member[name] == origin for member in members]).all(0)).sum()
            )
            total["other"] += int(
                (moved & (merged[name] != members[0][name].to(torch.bfloat16))).sum()
            )
            total["large"] += int(moved[wanted.abs() > wanted.abs().median()].sum())
            total["along"] += float((delta * wanted).double().sum())
            total["square"] += float((wanted * wanted).double().sum())
            count += origin.numel()
        figures.append(
            f"moved {total['moved'] / count:.4f}, of the larger half "
            f"{2 * total['large'] / count:.4f}, slope {total['along'] / total['square']:.4f}, "
            f"outside {total['outside']:.0f}"
            + (f", other {total['other']:.0f}" if len(members) == 1 else "")
        )
    return f"by law: {figures[0]} (mergekit: {figures[1]})"


def pool(folder: Path, recipe: Recipe) -> ResidentPool:
    return ResidentPool(
        open_pool(
            [folder / name for name in recipe.members], folder / "base" if recipe.base else None
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mergekit", default="/tmp/mergekit-venv/bin/mergekit-yaml")
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| case | " + " | ".join(FAMILIES) + " |\n|---|" + "---|" * len(FAMILIES), flush=True)
    with tempfile.TemporaryDirectory() as place:
        for family in FAMILIES:
            build(Path(place) / family.replace(" ", "_").replace(",", ""), family)
        for label in (*CASES, *BY_HAND):
            if arguments.only not in label:
                continue
            cells = []
            for family in FAMILIES:
                folder = Path(place) / family.replace(" ", "_").replace(",", "")
                recipe = recipe_of(label, folder)
                theirs = mergekit(label, recipe, folder, arguments.mergekit)
                cells.append(
                    compare(
                        label,
                        recipe,
                        folder,
                        dict(merged_tensors(recipe, pool(folder, recipe))),
                        theirs,
                    )
                )
            print(f"| {label} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
