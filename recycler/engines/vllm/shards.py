"""The map from checkpoint names to the live parameters of one of vLLM's ranks: fused, padded, and
cut among ranks.

How a parameter is cut is read off the vLLM layer that owns it; comparing every bit with the
checkpoint is the judge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from recycler.engines.live import Shard, same_bits
from recycler.errors import Problem, UnsafeInputError
from recycler.pool.storage.headers import FLOAT_DTYPES
from recycler.pool.storage.tensors import ResidentPool
from recycler.types import Checkpoint

SHOWN = 20  # problems that are told; a wrong architecture has hundreds of the same


def live_shards(model: nn.Module, template: Checkpoint) -> dict[str, tuple[Shard, ...]]:
    """Checkpoint name -> the parts of that tensor that this rank holds, with a view of the live
    memory of each.

    A fused parameter (qkv_proj, gate_up_proj) is cut into rows in the order the model itself
    declares; an embedding padded to a round vocabulary gives its first rows. A tensor that is fused
    in the checkpoint too has a part for each of its own. Raises UnsafeInputError when a tensor has
    no place, two share one, or live memory is left that no tensor fills.
    """
    parameters = {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    packed = _packed_parts(getattr(model, "packed_modules_mapping", {}))
    shards: dict[str, tuple[Shard, ...]] = {}
    problems: list[Problem] = []
    for name, info in template.tensors.items():
        pieces = (
            _stored_alone(name, model, parameters)
            if name in parameters
            else _stored_apart(name, template, model, parameters, packed)
        )
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
    """Raise UnsafeInputError unless every part holds, bit for bit, what the pool's template says."""
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
    """Of `whole` rows in the checkpoint a rank holds `held`, from `start` on."""

    whole: int
    held: int
    start: int = 0


def _layer(model: nn.Module, path: str) -> nn.Module:
    """The layer itself, where vLLM has wrapped it for adapters too."""
    module = model.get_submodule(path)
    return getattr(module, "base_layer", module)


def _kinds(module: nn.Module) -> set[str]:
    """Names of a layer's class and of those it inherits from: vLLM's own are known by these,
    wherever it keeps them.
    """
    return {kind.__name__ for kind in type(module).__mro__}


def _rows(module: nn.Module) -> list[_Rows] | None:
    """How vLLM cuts the rows of a layer, part by part where it is fused; None for a layer that
    every rank holds whole.
    """
    kinds = _kinds(module)
    if "VocabParallelEmbedding" in kinds:
        held = module.shard_indices
        return [_Rows(module.org_vocab_size, held.num_org_elements, held.org_vocab_start_index)]
    if "QKVParallelLinear" in kinds:
        kv_rank = (
            module.tp_rank // module.num_kv_head_replicas
        )  # ranks in excess of the kv heads share them
        heads = (
            (module.total_num_heads, module.num_heads, module.head_size, module.tp_rank),
            (module.total_num_kv_heads, module.num_kv_heads, module.head_size, kv_rank),
            (module.total_num_kv_heads, module.num_kv_heads, module.v_head_size, kv_rank),
        )
        return [
            _Rows(total * size, held * size, rank * held * size)
            for total, held, size, rank in heads
        ]
    if "ColumnParallelLinear" in kinds:
        sizes = (
            module.output_sizes if "MergedColumnParallelLinear" in kinds else [module.output_size]
        )
        return [
            _Rows(size, size // module.tp_size, module.tp_rank * (size // module.tp_size))
            for size in sizes
        ]
    return None


def _stored_alone(
    name: str, model: nn.Module, parameters: Mapping[str, Tensor]
) -> tuple[Shard, ...]:
    """The parts of a tensor that the checkpoint and vLLM both keep under one name."""
    parameter = parameters[name].data
    module = _layer(model, name.rpartition(".")[0])
    if (
        "RowParallelLinear" in _kinds(module) and parameter.ndim > 1 and module.tp_size > 1
    ):  # its bias is whole everywhere
        start = module.tp_rank * module.input_size_per_partition
        return (
            Shard(parameter, (slice(None), slice(start, start + module.input_size_per_partition))),
        )
    rows = _rows(module) if parameter.ndim else None
    if rows is None:
        return (Shard(parameter),)
    if all(part.held == part.whole for part in rows):
        return (Shard(parameter[: sum(part.held for part in rows)]),)
    pieces, live, stored = [], 0, 0
    for part in rows:
        pieces.append(
            Shard(
                parameter[live : live + part.held],
                (slice(stored + part.start, stored + part.start + part.held),),
            )
        )
        live, stored = live + part.held, stored + part.whole
    return tuple(pieces)


def _packed_parts(mapping: Mapping[str, list[str]]) -> dict[str, tuple[str, list[str]]]:
    """'q_proj' -> ('qkv_proj', ['q_proj', 'k_proj', 'v_proj']) for every part of every fused
    module.
    """
    return {
        part: (fused, list(parts))
        for fused, parts in mapping.items()
        if len(parts) > 1
        for part in parts
    }


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
    if [part.whole for part in rows] != stored or sum(
        part.held for part in rows
    ) != parameter.shape[0]:
        return ()
    own = rows[parts.index(part)]
    first = [0, *accumulate(part.held for part in rows)][parts.index(part)]
    view = parameter.data[first : first + own.held]
    return (
        Shard(view)
        if own.held == own.whole
        else Shard(view, (slice(own.start, own.start + own.held),)),
    )


# ---------------------------------------------------------------- every tensor once, and nothing left over


def _fits(shard: Shard, shape: tuple[int, ...]) -> bool:
    """Whether the part that the view holds has the view's shape and lies within the tensor."""
    cut = tuple(
        len(range(*part.indices(size))) for part, size in zip(shard.index, shape, strict=False)
    )
    return len(shard.index) <= len(shape) and tuple(shard.view.shape) == cut + tuple(
        shape[len(cut) :]
    )


def _views(shards: Mapping[str, tuple[Shard, ...]]) -> Iterator[tuple[str, Tensor]]:
    return (
        (name, piece.view)
        for name, pieces in shards.items()
        for piece in pieces
        if piece.view.numel()
    )


def _overlaps(shards: Mapping[str, tuple[Shard, ...]]) -> list[Problem]:
    """Names whose memory another name fills too: tied weights that the checkpoint stores twice."""
    seen: dict[int, str] = {}
    return [
        Problem(
            thing=f"tensor {name!r}",
            cause=f"is tied to {other!r}, yet the checkpoint stores both",
            remedy="Save the checkpoint again with save_pretrained, which keeps one of them",
        )
        for name, view in _views(shards)
        if (other := seen.setdefault(view.data_ptr(), name)) != name
    ]


def _uncovered(
    shards: Mapping[str, tuple[Shard, ...]], model: nn.Module, parameters: Mapping[str, Tensor]
) -> list[Problem]:
    """Live parameters of which some element belongs to no tensor of the checkpoint; padding rows do
    not count.
    """
    filled: dict[int, int] = {}
    for _, view in _views(shards):
        filled[view.untyped_storage().data_ptr()] = (
            filled.get(view.untyped_storage().data_ptr(), 0) + view.numel()
        )
    padding = {
        f"{path}.{kind}": module.shard_indices
        for path, module in model.named_modules(remove_duplicate=False)
        if "VocabParallelEmbedding" in _kinds(module)
        for kind in ("weight", "bias")
    }
    problems = []
    for name, parameter in parameters.items():
        wanted = parameter.numel()
        if name in padding:
            wanted = (
                wanted
                // parameter.shape[0]
                * (padding[name].num_org_elements + padding[name].num_added_elements)
            )
        if filled.get(parameter.untyped_storage().data_ptr(), 0) != wanted:
            problems.append(
                Problem(
                    thing=f"vLLM's parameter {name!r}",
                    cause="is not filled by the checkpoint's tensors",
                    remedy="The engine runs another architecture than the pool",
                )
            )
    return problems
