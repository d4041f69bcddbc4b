"""Every combination of PEFT's add_weighted_adapter against ours, on two architectures; print a
markdown table.

    python benchmarks/parity/peft_run.py

Three adapters of rank 4 on attention and MLP. PEFT's `*_svd` kinds act on deltas, as ours do, and
are compared at full rank; its other kinds combine A and B apart and differ by intention: the table
says by how much (relative Frobenius norm).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from peft import PeftModel

sys.path.insert(0, str(Path(__file__).parent))
from models import FAMILIES

from recycler.merge.lora.factors import (
    Adapter,
    LowRank,
    cat,
    merged_deltas,
    truncate,
    write_adapter,
)

NAMES, EQUAL, OTHER = ("m1", "m2", "m3"), (0.5, 0.5, 0.5), (0.7, 0.2, 0.5)
PARTS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
FULL = 64  # the smaller side of every matrix is at most this
CASES = {  # PEFT's combination: its weights, its density, our method and options
    "cat": (OTHER, None, "cat", {}),
    "svd": (OTHER, None, "svd", {}),
    "linear": (OTHER, None, "linear", {}),
    "magnitude_prune_svd": (OTHER, 0.3, "breadcrumbs", {"density": 0.3, "gamma": 0.0}),
    "magnitude_prune": (OTHER, 0.3, "breadcrumbs", {"density": 0.3, "gamma": 0.0}),
    "ties_svd": (EQUAL, 0.3, "ties", {"density": 0.3, "lambda_": 0.5}),
    "ties_svd, other weights": (OTHER, 0.3, "ties", {"density": 0.3, "lambda_": 0.5}),
    "ties": (EQUAL, 0.3, "ties", {"density": 0.3, "lambda_": 0.5}),
    "dare_linear_svd": (OTHER, 0.5, "dare_linear", {"density": 0.5}),
    "dare_linear": (OTHER, 0.5, "dare_linear", {"density": 0.5}),
    "dare_ties_svd": (EQUAL, 0.5, "dare_ties", {"density": 0.5, "normalize": True, "lambda_": 0.5}),
    "dare_ties": (EQUAL, 0.5, "dare_ties", {"density": 0.5, "normalize": True, "lambda_": 0.5}),
}


def adapters_of(model: torch.nn.Module) -> list[Adapter]:
    shapes = {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if name.endswith(PARTS)
    }
    found = []
    for seed, name in enumerate(NAMES):
        generator = torch.Generator().manual_seed(seed)
        found.append(
            Adapter(
                name=name,
                modules={
                    module: LowRank(
                        up=torch.randn(out, 4, generator=generator),
                        down=torch.randn(4, width, generator=generator),
                        scale=0.5,
                    )
                    for module, (out, width) in shapes.items()
                },
            )
        )
    return found


def compare(model: PeftModel, adapters: list[Adapter], label: str) -> str:
    kind, (weights, density, method, options) = label.split(",")[0], CASES[label]
    torch.manual_seed(0)
    svd = {"svd_rank": 3 if kind == "svd" else FULL} if "svd" in kind else {}
    model.add_weighted_adapter(
        list(NAMES),
        list(weights),
        "merged",
        combination_type=kind,
        **({"density": density} if density else {}),
        **svd,
    )
    if method in ("cat", "svd"):
        merged = (
            cat(adapters, weights) if method == "cat" else truncate(cat(adapters, weights), 3)[0]
        )
        ours = {module: part.delta() for module, part in merged.modules.items()}
    else:
        ours = dict(merged_deltas(adapters, weights, method, options))
    exact = dict(merged_deltas(adapters, weights, "linear"))
    theirs = {
        module: model.base_model.model.get_submodule(module).get_delta_weight("merged")
        for module in ours
    }
    model.delete_adapter("merged")
    if not kind.startswith("dare"):
        differing = max(
            float((theirs[module] - ours[module]).norm() / ours[module].norm()) for module in ours
        )
        return f"relative difference {differing:.1e}"
    figures = []
    for merged in (ours, theirs):
        zero = sum(int((delta.abs() < 1e-4).sum()) for delta in merged.values()) / sum(
            delta.numel() for delta in merged.values()
        )
        slope = sum(float((merged[module] * exact[module]).sum()) for module in exact) / sum(
            float(exact[module].square().sum()) for module in exact
        )
        figures.append(f"zero {zero:.3f}, slope {slope:.3f}")
    return f"by law: {figures[0]} (PEFT: {figures[1]})"


def main() -> None:
    families = [family for family in FAMILIES if "float32" not in family]
    print(
        "| PEFT's combination | ours | "
        + " | ".join(families)
        + " |\n|---|---|"
        + "---|" * len(families)
    )
    models = {}
    with tempfile.TemporaryDirectory() as place:
        for family in families:
            kind, config, _ = FAMILIES[family]
            torch.manual_seed(0)
            model = kind(config)
            adapters = adapters_of(model)
            for adapter in adapters:
                write_adapter(adapter, Path(place) / family / adapter.name)
            wrapped = PeftModel.from_pretrained(
                model, Path(place) / family / NAMES[0], adapter_name=NAMES[0]
            )
            for name in NAMES[1:]:
                wrapped.load_adapter(Path(place) / family / name, adapter_name=name)
            models[family] = (wrapped, adapters)
        for label, (_, _, method, options) in CASES.items():
            said = ", ".join(f"{name.rstrip('_')} {value}" for name, value in options.items())
            print(
                f"| {label} | {method}{f' ({said})' if said else ''} | "
                + " | ".join(compare(*models[family], label) for family in families)
                + " |",
                flush=True,
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
