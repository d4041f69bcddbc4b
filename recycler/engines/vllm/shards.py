"""The map from checkpoint names to the live parameters of one of vLLM's ranks.

Parameters are fused, padded, and cut among ranks. How a parameter is cut is read off the vLLM layer
that owns it; comparing every bit with the checkpoint is the judge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recycler.engines.live import Shard, same_bits
from recycler.errors import Problem, UnsafeInputError
from recycler.pool.storage.headers import FLOAT_DTYPES
from recycler.pool.storage.tensors import ResidentPool
from recycler.types import Checkpoint

SHOWN = 20  # problems that are shown; a wrong architecture has hundreds of the same


def live_shards(model: nn.Module, template: Checkpoint) -> dict[str, tuple[Shard, ...]]:
    """Checkpoint name -> the parts of that tensor that this rank holds, as views of live memory.

    A fused parameter (qkv_proj, gate_up_proj) is cut into rows in the order the model itself
    declares; an embedding padded to a round vocabulary has it in its first rows. A tensor that is
    fused in the checkpoint too has a part for each of its own. Raises UnsafeInputError when a
    tensor has no place, two share one, or live memory is left that no tensor fills.
    """
    parameters = {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    packed = _packed_parts(getattr(model, "packed_modules_mapping", {}))
    shards: dict[str, tuple[Shard, ...]] = {}
    problems: list[Problem] = []
    for name, info in template.tensors.items():
        if name in parameters:
            pieces = _stored_alone(name, model, parameters)
        else:
            pieces = _stored_apart(name, template, model, parameters, packed)
        if not pieces or not all(_fits(piece, info.shape) for piece in pieces):
            problems.append(_misfit(name, "has no place in vLLM's model"))
        else:
            shards[name] = pieces
    problems += _overlaps(shards) + _uncovered(shards, model, parameters)
    if problems:
        raise UnsafeInputError(problems[:SHOWN])
    return shards


def check_shards(
    shards: Mapping[str, tuple[Shard, ...]], resident: ResidentPool, dtype: torch.dtype
) -> None:
    """Raise UnsafeInputError unless every part holds the template's numbers, bit for bit."""
    template = resident.pool.template
    problems = []
    for name, pieces in shards.items():
        whole = resident.tensor(template.name, name)
        dtype_of = dtype if template.tensors[name].dtype in FLOAT_DTYPES else whole.dtype
        if not all(same_bits(piece.view, piece.of(whole).to(dtype_of)) for piece in pieces):
            problems.append(_misfit(name, "is not loaded by vLLM as the checkpoint stores it"))
    if problems:
        raise UnsafeInputError(problems[:SHOWN])


def _misfit(name: str, cause: str) -> Problem:
    return Problem(
        thing=f"tensor {name!r}",
        cause=cause,
        remedy="This model cannot be swapped in place by vLLM; use engine: transformers",
    )


# ---------------------------------------------------------------- how a layer is cut


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a tensor that a rank holds: `held` of `whole`, from `start` on."""

    whole: int
    held: int
    start: int = 0

    @property
    def index(self) -> tuple[slice, ...]:
        """The rows as an index of the checkpoint's tensor; empty for all of them."""
        return () if self.held == self.whole else (slice(self.start, self.start + self.held),)


def _layer(model: nn.Module, path: str) -> Any:
    """The layer itself, where vLLM has wrapped it for adapters too."""
    module = model.get_submodule(path)
    return getattr(module, "base_layer", module)


def _kinds(module: nn.Module) -> set[str]:
    """Names of a layer's class and of its bases, by which vLLM's own layers are known."""
    return {kind.__name__ for kind in type(module).__mro__}


def _rows(layer: Any) -> list[_Rows] | None:
    """The rows of one of vLLM's layers that this rank holds, part by part where it is fused.

    None for a layer that every rank holds whole.
    """
    kinds = _kinds(layer)
    if "VocabParallelEmbedding" in kinds:
        held = layer.shard_indices
        return [_Rows(layer.org_vocab_size, held.num_org_elements, held.org_vocab_start_index)]
    if "QKVParallelLinear" in kinds:
        kv_rank = layer.tp_rank // layer.num_kv_head_replicas  # ranks may share a kv head
        heads = (
            (layer.total_num_heads, layer.num_heads, layer.head_size, layer.tp_rank),
            (layer.total_num_kv_heads, layer.num_kv_heads, layer.head_size, kv_rank),
            (layer.total_num_kv_heads, layer.num_kv_heads, layer.v_head_size, kv_rank),
        )
        return [
            _Rows(total * size, held * size, rank * held * size)
            for total, held, size, rank in heads
        ]
    if "ColumnParallelLinear" in kinds:
        is_fused = "MergedColumnParallelLinear" in kinds
        sizes = layer.output_sizes if is_fused else [layer.output_size]
        held_of = [(size, size // layer.tp_size) for size in sizes]
        return [_Rows(size, held, layer.tp_rank * held) for size, held in held_of]
    return None


def _stored_alone(
    name: str, model: nn.Module, parameters: Mapping[str, Tensor]
) -> tuple[Shard, ...]:
    """The parts of a tensor that the checkpoint and vLLM both keep under one name."""
    parameter = parameters[name].data
    layer = _layer(model, name.rpartition(".")[0])
    is_bias = parameter.ndim <= 1  # of a row-parallel layer it is whole everywhere
    if "RowParallelLinear" in _kinds(layer) and not is_bias and layer.tp_size > 1:
        start = layer.tp_rank * layer.input_size_per_partition
        columns = slice(start, start + layer.input_size_per_partition)
        return (Shard(parameter, (slice(None), columns)),)
    rows = _rows(layer) if parameter.ndim else None
    if rows is None:
        return (Shard(parameter),)
    if all(part.held == part.whole for part in rows):
        return (Shard(parameter[: sum(part.held for part in rows)]),)
    pieces, live, stored = [], 0, 0
    for part in rows:
        first = stored + part.start
        view = parameter[live : live + part.held]
        pieces.append(Shard(view, (slice(first, first + part.held),)))
        live, stored = live + part.held, stored + part.whole
    return tuple(pieces)


def _packed_parts(mapping: Mapping[str, list[str]]) -> dict[str, tuple[str, list[str]]]:
    """'q_proj' -> ('qkv_proj', ['q_proj', 'k_proj', 'v_proj']), and so on for all fused modules."""
    packed: dict[str, tuple[str, list[str]]] = {}
    for fused, parts in mapping.items():
        if len(parts) > 1:
            packed.update(dict.fromkeys(parts, (fused, list(parts))))
    return packed


def _stored_apart(
    name: str,
    template: Checkpoint,
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    packed: Mapping[str, tuple[str, list[str]]],
) -> tuple[Shard, ...]:
    """The rows of a fused parameter that belong to `name`: those after its earlier siblings."""
    path, _, kind = name.rpartition(".")
    part = path.rpartition(".")[2]
    parent = path.removesuffix(part)
    if part not in packed:
        return ()
    fused, parts = packed[part]
    siblings = [f"{parent}{sibling}.{kind}" for sibling in parts]
    parameter = parameters.get(f"{parent}{fused}.{kind}")
    if parameter is None or any(sibling not in template.tensors for sibling in siblings):
        return ()
    stored = [template.tensors[sibling].shape[0] for sibling in siblings]
    rows = _rows(_layer(model, f"{parent}{fused}")) or [_Rows(size, size) for size in stored]
    held = [own.held for own in rows]
    if [own.whole for own in rows] != stored or sum(held) != parameter.shape[0]:
        return ()
    place = parts.index(part)
    first = sum(held[:place])
    return (Shard(parameter.data[first : first + held[place]], rows[place].index),)


# ---------------------------------------------------------------- every tensor once, none left over


def _fits(shard: Shard, shape: tuple[int, ...]) -> bool:
    """True when the view has the shape of its part, and the part lies within the tensor."""
    if len(shard.index) > len(shape):
        return False
    held = list(shape)
    for axis, part in enumerate(shard.index):
        held[axis] = len(range(*part.indices(shape[axis])))
    return list(shard.view.shape) == held


def _views(shards: Mapping[str, tuple[Shard, ...]]) -> Iterator[tuple[str, Tensor]]:
    """(checkpoint name, live memory) of every part that is not empty."""
    for name, pieces in shards.items():
        for piece in pieces:
            if piece.view.numel():
                yield name, piece.view


def _overlaps(shards: Mapping[str, tuple[Shard, ...]]) -> list[Problem]:
    """Names whose memory another name fills too: tied weights that the checkpoint stores twice."""
    seen: dict[int, str] = {}
    problems = []
    for name, view in _views(shards):
        other = seen.setdefault(view.data_ptr(), name)
        if other == name:
            continue
        problems.append(
            Problem(
                thing=f"tensor {name!r}",
                cause=f"is tied to {other!r}, yet the checkpoint stores both",
                remedy="Save the checkpoint again with save_pretrained, which keeps one of them",
            )
        )
    return problems


def _uncovered(
    shards: Mapping[str, tuple[Shard, ...]], model: nn.Module, parameters: Mapping[str, Tensor]
) -> list[Problem]:
    """Live parameters with elements that belong to no tensor of the checkpoint.

    Padding rows do not count.
    """
    filled: Counter[int] = Counter()  # memory of a parameter -> elements that tensors fill
    for _, view in _views(shards):
        filled[view.untyped_storage().data_ptr()] += view.numel()
    num_rows = _unpadded_rows(model)
    problems = []
    for name, parameter in parameters.items():
        wanted = parameter.numel()
        if name in num_rows:
            wanted = wanted // parameter.shape[0] * num_rows[name]
        if filled[parameter.untyped_storage().data_ptr()] != wanted:
            problems.append(
                Problem(
                    thing=f"vLLM's parameter {name!r}",
                    cause="is not filled by the checkpoint's tensors",
                    remedy="The engine runs another architecture than the pool",
                )
            )
    return problems


def _unpadded_rows(model: nn.Module) -> dict[str, int]:
    """Rows of every embedding's parameters that are not padding, by the parameter's name."""
    rows: dict[str, int] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if "VocabParallelEmbedding" in _kinds(module):
            held: Any = module.shard_indices
            for kind in ("weight", "bias"):
                rows[f"{path}.{kind}"] = held.num_org_elements + held.num_added_elements
    return rows
