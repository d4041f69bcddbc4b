"""`recycler merge` of LoRA adapters: a small file says which, how, and in which form.

    adapters: {math: ../math-lora, code: ../code-lora}
    base: ../base                     # for folded results and for learning
    method: lora_cat                  # or a method on the deltas: linear, ties, dare_linear, ...
    weights: {math: 0.6, code: 0.4}   # static; or
    learn: {data: mix.jsonl}          # one weight per module and adapter
    write: adapter                    # exact, ranks add up; or svd (give rank:), or folded

Lines of the data are {prompt, completion} or {text}; a folded result is a full checkpoint. Paths
are meant from the file's own folder. Beside the result stands lora-merge.json: weights, losses,
errors.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
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
    LowRank,
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
from recycler.pool.adapters.fold import Factors, match_factors
from recycler.pool.catalog import open_checkpoint
from recycler.pool.storage.tensors import ResidentPool, iterate_tensors
from recycler.pool.storage.writer import write_model
from recycler.types import Checkpoint, OptionValue, Pool

REPORT = "lora-merge.json"
ADAPTER_METHODS = MERGE_METHODS | {"lora_cat": MERGE_METHODS["linear"]}
ADAPTER_WORDS = MethodWords(
    members="adapters, here are",
    change_members="Name exactly that many",
)
CAT = ("lora_cat", "linear")  # sums of scaled B A: exact as an adapter
Rows = Mapping[str, Sequence[float]]  # module -> one weight per adapter


class LearnSpec(BaseModel):
    """The way that weights are learned: by gradient, or from losses alone (SPSA)."""

    model_config = ConfigDict(extra="forbid", strict=True)
    data: str
    by: Literal["gradient", "spsa"] = "gradient"
    steps: int = Field(default=40, ge=1, le=100_000)
    learning_rate: float | None = Field(default=None, gt=0)
    max_length: int = Field(default=256, ge=2)
    batch: int = Field(default=4, ge=1)
    total: float = Field(default=1.0, gt=0)
    """Sum of a module's weights: 1 is the paper's softmax; K keeps every adapter's strength."""


class LoraSpec(BaseModel):
    """The file, as the user writes it."""

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
    """A finished merge."""

    folder: str
    form: str
    num_modules: int
    largest_error: float  # relative, of a module; 0 when exact
    losses: Mapping[str, float] = field(default_factory=dict)


def is_lora_recipe(data: Any) -> bool:
    """True when a file's data list adapters, which no other recipe does."""
    return isinstance(data, dict) and "adapters" in data


def merge_adapters(path: Path | YamlDocument, out: Path) -> LoraMerge:
    """Run an adapter recipe, and write the result to the new folder `out`.

    The folder appears whole or not at all. Raises UsageError or UnsafeInputError.
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
        raise_problems(_depth_problems(spec, document, checkpoint.num_layers))
        base = _base_weights(checkpoint, adapters)
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


def _base_weights(checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> BaseWeights:
    """The weights of a base. Raises UnsafeInputError when an adapter does not fit it."""
    resident = ResidentPool(Pool(members=(checkpoint,)))
    for adapter in adapters:
        factors = {
            f"{module}.weight": Factors(part.down, part.up, part.scale)
            for module, part in adapter.modules.items()
        }
        match_factors(factors, checkpoint, adapter.name)
    return BaseWeights(
        num_layers=checkpoint.num_layers, tensor=lambda name: resident.tensor("base", name)
    )


# ---------------------------------------------------------------- weights


def _rows(
    spec: LoraSpec, folder: Path, adapters: Sequence[Adapter]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """A row of weights for each module, static or learned, and the losses met on the way."""
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
    settings: dict[str, Any] = {"steps": spec.learn.steps}
    if spec.learn.learning_rate:
        settings["learning_rate"] = spec.learn.learning_rate
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
    return dict(zip(modules, (weights * total).tolist(), strict=True)), losses


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
    method = "linear" if spec.method == "lora_cat" else spec.method

    def delta(module: str) -> Tensor:
        if exact is not None:
            return exact.modules[module].delta()
        row, options = rows[module], _options(spec)
        return merged_delta(adapters, row, module, method, options, spec.seed, base)

    if spec.write == "folded":
        assert spec.base is not None
        modules = rows if exact is None else exact.modules
        _fold(folder / spec.base, modules.keys(), delta, aside)
        return {}
    if spec.write == "adapter":
        assert exact is not None
        write_adapter(exact, aside)
        return {}
    assert spec.rank is not None
    if exact is not None:
        small, errors = truncate(exact, spec.rank)
    else:
        small, errors = _factored(rows, delta, spec.rank, adapters[0].base_model)
    write_adapter(small, aside)
    return errors


def _factored(
    modules: Iterable[str], delta: Callable[[str], Tensor], rank: int, base_model: str
) -> tuple[Adapter, dict[str, float]]:
    """The best adapter of a rank, module by module, so that one delta is held at a time."""
    factors: dict[str, LowRank] = {}
    errors: dict[str, float] = {}
    for module in modules:
        part, part_errors = factor({module: delta(module)}, rank)
        factors.update(part.modules)
        errors.update(part_errors)
    return Adapter(name="svd", modules=factors, base_model=base_model), errors


def _fold(base: Path, modules: Set[str], delta: Callable[[str], Tensor], aside: Path) -> None:
    """Write the base with the deltas of `modules` added."""
    checkpoint = open_checkpoint(base, "base")

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in iterate_tensors(checkpoint):
            module = name.removesuffix(".weight")
            if module in modules:
                tensor = delta(module).add_(tensor).to(tensor.dtype)
            yield name, tensor

    infos = {name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()}
    write_model(tensors(), infos, aside)
    shutil.copyfile(base / "config.json", aside / "config.json")
    copy_companions(base, aside)


def _options(spec: LoraSpec) -> dict[str, OptionValue]:
    """The method's options, with lists as the tuples that methods take."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in spec.options.items()
    }


# ---------------------------------------------------------------- mistakes


def _problems(spec: LoraSpec, document: YamlDocument) -> list[Problem]:
    """Every mistake in a file that has the right keys, with its line."""
    problems = method_problems(
        spec.method,
        ADAPTER_WORDS,
        num_members=len(spec.adapters),
        options=tuple(_options(spec).items()),
        groups=["all"],
        methods=ADAPTER_METHODS,
        where=document.where,
    )
    return [
        *problems,
        *_base_problems(spec, document),
        *_weight_problems(spec, document),
        *_form_problems(spec, document),
    ]


def _base_problems(spec: LoraSpec, document: YamlDocument) -> Iterator[Problem]:
    """A method that must know the base, in a file without one."""
    method = ADAPTER_METHODS.get(spec.method)
    if method is None or spec.base is not None:
        return
    if method.by_depth or method.reads_base:
        needed = "number of layers" if method.by_depth else "own weights"
        yield Problem(
            thing=f"method {spec.method!r}",
            cause=f"depends on the base's {needed}",
            remedy="Add base: FOLDER",
            where=document.where(("method",)),
        )


def _weight_problems(spec: LoraSpec, document: YamlDocument) -> Iterator[Problem]:
    """Weights that are given twice or not at all, for strangers, for too few, or not finite."""
    if (spec.weights is None) == (spec.learn is None):
        yield Problem(
            thing="weights and learn",
            cause="exactly one of them is needed",
            remedy="weights: static ones, learn: on a small mix",
            where=document.where(()),
        )
    if spec.weights is None:
        return
    for name in spec.weights.keys() ^ spec.adapters.keys():
        cause, remedy = "has no weight", "Give 0 to leave it out"
        if name in spec.weights:
            cause, remedy = "is no adapter", did_you_mean(name, spec.adapters)
        where = document.where(("weights", name))
        yield Problem(thing=f"{name!r}", cause=cause, remedy=remedy, where=where)
    for name, value in spec.weights.items():
        if not math.isfinite(value):
            yield Problem(
                thing=f"weight of {name!r}",
                cause=f"is {value}",
                remedy="Give a finite number",
                where=document.where(("weights", name)),
            )


def _form_problems(spec: LoraSpec, document: YamlDocument) -> Iterator[Problem]:
    """A form of the result that this method, base or rank does not allow."""
    if spec.learn is not None and spec.method not in CAT:
        yield Problem(
            thing="learn",
            cause=f"learns the weights of a concatenation, not of {spec.method!r}",
            remedy="Use method: lora_cat",
            where=document.where(("learn",)),
        )
    if spec.base is None and (spec.write == "folded" or spec.learn is not None):
        yield Problem(
            thing="base",
            cause="missing",
            remedy="Folding and learning need base: FOLDER",
            where=document.where(("base",)),
        )
    if spec.write == "adapter" and (spec.method not in CAT or spec.options):
        yield Problem(
            thing="write: adapter",
            cause=f"{spec.method!r} gives deltas of full rank",
            remedy="Use write: svd with a rank (its error is told), or write: folded",
            where=document.where(("write",)),
        )
    if (spec.write == "svd") != (spec.rank is not None):
        yield Problem(
            thing="rank",
            cause="belongs to write: svd, and is needed there",
            remedy="Write both or none",
            where=document.where(("rank",)),
        )


def _depth_problems(spec: LoraSpec, document: YamlDocument, num_layers: int) -> list[Problem]:
    """Depths of `layer_swap` that the base does not have."""
    if spec.method != "layer_swap":
        return []
    cause = depth_complaint(dict(ADAPTER_METHODS["layer_swap"].options) | spec.options, num_layers)
    if cause is None:
        return []
    where = document.where(("options",))
    return [Problem(thing="layer_swap", cause=cause, remedy="Set both in options", where=where)]
