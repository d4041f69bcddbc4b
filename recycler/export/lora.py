"""`recycler merge` of LoRA adapters: one small file says which, how, and in which form the result
is written.

    adapters: {math: ../math-lora, code: ../code-lora}
    base: ../base                        # for folded results and for learning
    method: lora_cat                     # or a method on the deltas: linear, ties, dare_linear, ...
    weights: {math: 0.6, code: 0.4}      # static; or
    learn: {data: mix.jsonl}             # one weight a module and adapter, learned on {prompt, completion} or {text} lines
    write: adapter                       # adapter (exact, ranks add up), svd (give rank:), folded (a full checkpoint)

Paths are meant from the file's own folder. Beside the result stands lora-merge.json: weights,
losses, errors.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from recycler.errors import Problem, did_you_mean, raise_problems
from recycler.io.atomic import atomic_folder, copy_companions
from recycler.io.strict_yaml import YamlDocument, load_yaml, parse_model
from recycler.merge.lora.factors import (
    Adapter,
    BaseWeights,
    cat,
    check_fit,
    factor,
    merged_delta,
    modules_of,
    read_adapter,
    truncate,
    write_adapter,
)
from recycler.merge.lora.learned_cat import learn_by_gradient, learn_by_spsa, loss_of_uniform
from recycler.merge.methods.layers import depth_complaint
from recycler.merge.methods.problems import MethodWords, method_problems
from recycler.merge.methods.registry import MERGE_METHODS
from recycler.pool.adapters.fold import match_factors
from recycler.pool.catalog import open_checkpoint
from recycler.pool.storage.tensors import ResidentPool, iterate_tensors
from recycler.pool.storage.writer import write_model
from recycler.types import Pool

REPORT = "lora-merge.json"
ADAPTER_METHODS = MERGE_METHODS | {"lora_cat": MERGE_METHODS["linear"]}
ADAPTER_WORDS = MethodWords(
    members="adapters, here are",
    change_members="Name exactly that many",
)
CAT = ("lora_cat", "linear")  # sums of scaled B A: exact as an adapter
Rows = Mapping[str, Sequence[float]]  # module -> one weight an adapter


class LearnSpec(BaseModel):
    """How weights are learned: by gradient, or from losses alone (SPSA)."""

    model_config = ConfigDict(extra="forbid", strict=True)
    data: str
    by: Literal["gradient", "spsa"] = "gradient"
    steps: int = Field(default=40, ge=1, le=100_000)
    learning_rate: float | None = Field(default=None, gt=0)
    max_length: int = Field(default=256, ge=2)
    batch: int = Field(default=4, ge=1)
    total: float = Field(default=1.0, gt=0)
    """What the weights of a module sum to: 1 is the paper's softmax; K lets every adapter keep its
    full strength.
    """


class LoraSpec(BaseModel):
    """What a person writes."""

    model_config = ConfigDict(extra="forbid", strict=True)
    adapters: dict[str, str] = Field(min_length=1)
    base: str | None = None
    method: str = "lora_cat"
    weights: dict[str, float] | None = None
    learn: LearnSpec | None = None
    write: Literal["adapter", "svd", "folded"] = "adapter"
    rank: int | None = Field(default=None, ge=1)
    options: dict[str, bool | int | float | str | list[float]] = {}
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraMerge:
    """A finished merge: where, in which form, the largest relative error of a module (0 when
    exact), and losses when learned.
    """

    folder: str
    form: str
    num_modules: int
    largest_error: float
    losses: Mapping[str, float] = field(default_factory=dict)


def is_lora_recipe(data: Any) -> bool:
    """Whether a file's data list adapters, which no other recipe does."""
    return isinstance(data, dict) and "adapters" in data


def merge_adapters(path: Path | YamlDocument, out: Path) -> LoraMerge:
    """Run the file at `path` (or that was read already) and write the result to the new folder
    `out`, whole or not at all. Raises RecyclerError.
    """
    document = load_yaml(path)
    spec = parse_model(LoraSpec, document)
    raise_problems(_problems(spec, document))
    folder = Path(document.path).parent
    adapters = [read_adapter(folder / place, name) for name, place in spec.adapters.items()]
    check_fit(adapters)
    base = None
    if spec.base is not None:
        checkpoint = open_checkpoint(folder / spec.base, "base")
        resident = ResidentPool(Pool(members=(checkpoint,)))
        base = BaseWeights(
            num_layers=checkpoint.num_layers, tensor=lambda name: resident.tensor("base", name)
        )
        raise_problems(_depth_problems(spec, document, base.num_layers))
        for adapter in adapters:
            match_factors(
                {f"{module}.weight": part for module, part in adapter.modules.items()},
                checkpoint,
                adapter.name,
            )
    rows, losses = _rows(spec, folder, adapters)
    with atomic_folder(out) as aside:
        errors = _write(spec, folder, adapters, rows, base, aside)
        report = {
            "schema_version": 1,
            "method": spec.method,
            "form": spec.write,
            "adapters": list(spec.adapters),
            "weights": rows,
            "losses": losses,
            "relative_errors": errors,
        }
        (aside / REPORT).write_text(json.dumps(report, indent=1) + "\n")
    return LoraMerge(
        folder=str(out),
        form=spec.write,
        num_modules=len(rows),
        largest_error=max(errors.values(), default=0.0),
        losses=losses,
    )


# ---------------------------------------------------------------- weights


def _rows(
    spec: LoraSpec, folder: Path, adapters: Sequence[Adapter]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """One row of weights a module, static or learned, and the losses met on the way."""
    modules = modules_of(adapters)
    if spec.learn is None:
        assert spec.weights is not None
        return {module: [spec.weights[name] for name in spec.adapters] for module in modules}, {}
    assert spec.base is not None
    from recycler.engines.lora_loss import mix_loss  # loads transformers

    loss = mix_loss(
        folder / spec.base,
        folder / spec.learn.data,
        adapters,
        max_length=spec.learn.max_length,
        batch=spec.learn.batch,
    )
    settings: dict[str, Any] = {"steps": spec.learn.steps} | (
        {"learning_rate": spec.learn.learning_rate} if spec.learn.learning_rate else {}
    )
    total = spec.learn.total

    def scaled(weights: Tensor) -> Tensor:
        return loss(weights * total)

    if spec.learn.by == "spsa":
        weights = learn_by_spsa(scaled, len(modules), len(adapters), seed=spec.seed, **settings)
    else:
        weights = learn_by_gradient(scaled, len(modules), len(adapters), **settings)
    losses = {
        "uniform": loss_of_uniform(scaled, len(modules), len(adapters)),
        "learned": loss.value(weights * total),
    }
    return {
        module: row.tolist() for module, row in zip(modules, weights * total, strict=True)
    }, losses


# ---------------------------------------------------------------- forms


def _write(
    spec: LoraSpec,
    folder: Path,
    adapters: Sequence[Adapter],
    rows: Rows,
    base: BaseWeights | None,
    aside: Path,
) -> dict[str, float]:
    """Write the result in its form; relative Frobenius errors by module, none when exact."""
    exact = cat(adapters, rows) if spec.method in CAT and not spec.options else None

    def delta(module: str) -> Tensor:
        if exact is not None:
            return exact.modules[module].delta()
        return merged_delta(
            adapters,
            rows[module],
            module,
            spec.method if spec.method != "lora_cat" else "linear",
            _options(spec),
            spec.seed,
            base,
        )

    if spec.write == "folded":
        assert spec.base is not None
        _fold(
            folder / spec.base, set(exact.modules) if exact is not None else set(rows), delta, aside
        )
        return {}
    if spec.write == "adapter":
        assert exact is not None
        write_adapter(exact, aside)
        return {}
    assert spec.rank is not None
    if exact is not None:
        small, errors = truncate(exact, spec.rank)
    else:
        parts = [
            factor({module: delta(module)}, spec.rank, base_model=adapters[0].base_model)
            for module in rows
        ]
        small = Adapter(
            name="svd",
            modules={name: low for part, _ in parts for name, low in part.modules.items()},
            base_model=adapters[0].base_model,
        )
        errors = {name: error for _, part in parts for name, error in part.items()}
    write_adapter(small, aside)
    return errors


def _fold(base: Path, modules: set[str], delta: Callable[[str], Tensor], aside: Path) -> None:
    checkpoint = open_checkpoint(base, "base")

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in iterate_tensors(checkpoint):
            module = name.removesuffix(".weight")
            yield name, delta(module).add_(tensor).to(tensor.dtype) if module in modules else tensor

    write_model(
        tensors(),
        {name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()},
        aside,
    )
    shutil.copyfile(base / "config.json", aside / "config.json")
    copy_companions(base, aside)


def _options(spec: LoraSpec) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in spec.options.items()
    }


# ---------------------------------------------------------------- mistakes


def _problems(spec: LoraSpec, document: YamlDocument) -> list[Problem]:
    found: list[tuple[tuple[str, ...], str, str, str]] = []
    problems = method_problems(
        spec.method,
        ADAPTER_WORDS,
        num_members=len(spec.adapters),
        options=tuple(_options(spec).items()),
        groups=["all"],
        methods=ADAPTER_METHODS,
        where=document.where,
    )
    method = ADAPTER_METHODS.get(spec.method)
    if method is not None:
        if spec.base is None and (method.by_depth or method.reads_base):
            found.append(
                (
                    ("method",),
                    f"method {spec.method!r}",
                    "depends on the base's "
                    f"{'number of layers' if method.by_depth else 'own weights'}",
                    "Add base: FOLDER",
                )
            )
    if (spec.weights is None) == (spec.learn is None):
        found.append(
            (
                (),
                "weights and learn",
                "exactly one of them is needed",
                "weights: static ones, learn: on a small mix",
            )
        )
    for name in (
        (spec.weights or {}).keys() ^ spec.adapters.keys() if spec.weights is not None else ()
    ):
        found.append(
            (
                ("weights", name),
                f"{name!r}",
                "is no adapter" if name in spec.weights else "has no weight",
                did_you_mean(name, spec.adapters)
                if name in spec.weights
                else "Give 0 to leave it out",
            )
        )
    found += [
        (("weights", name), f"weight of {name!r}", f"is {value}", "Give a finite number")
        for name, value in (spec.weights or {}).items()
        if not math.isfinite(value)
    ]
    if spec.learn is not None and spec.method not in CAT:
        found.append(
            (
                ("learn",),
                "learn",
                f"learns the weights of a concatenation, not of {spec.method!r}",
                "Use method: lora_cat",
            )
        )
    if spec.base is None and (spec.write == "folded" or spec.learn is not None):
        found.append((("base",), "base", "missing", "Folding and learning need base: FOLDER"))
    if spec.write == "adapter" and (spec.method not in CAT or spec.options):
        found.append(
            (
                ("write",),
                "write: adapter",
                f"{spec.method!r} gives deltas of full rank",
                "Use write: svd with a rank (its error is told), or write: folded",
            )
        )
    if (spec.write == "svd") != (spec.rank is not None):
        found.append(
            (("rank",), "rank", "belongs to write: svd, and is needed there", "Write both or none")
        )
    return problems + [
        Problem(thing=thing, cause=cause, remedy=remedy, where=document.where(key))
        for key, thing, cause, remedy in found
    ]


def _depth_problems(spec: LoraSpec, document: YamlDocument, num_layers: int) -> list[Problem]:
    cause = (
        depth_complaint(MERGE_METHODS["layer_swap"].options | spec.options, num_layers)
        if spec.method == "layer_swap"
        else None
    )
    return (
        [
            Problem(
                thing="layer_swap",
                cause=cause,
                remedy="Set both in options",
                where=document.where(("options",)),
            )
        ]
        if cause
        else []
    )
