"""Run a recipe tensor by tensor, into fresh tensors or into an engine's live weights.

A whole model is never in one dict. Every tensor of every member is accounted for before any
arithmetic: merged when it is floating point, copied when it is not and all members agree, refused
otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache

import torch
from torch import Tensor

from recycler.errors import Problem, UnsafeInputError, UsageError, did_you_mean
from recycler.merge.methods.layers import depth_complaint
from recycler.merge.methods.method import TensorContext, as_keywords
from recycler.merge.methods.options import options_of
from recycler.merge.methods.problems import MethodWords, method_problems
from recycler.merge.methods.registry import MERGE_METHODS
from recycler.pool.storage.headers import FLOAT_DTYPES
from recycler.pool.storage.tensors import TORCH_DTYPES, ResidentPool
from recycler.types import Group, Pool, Recipe

RECIPE_WORDS = MethodWords(
    no_base="the recipe has no base",
    add_base="Add base: to it",
    members="members, the recipe has",
    change_members="Name exactly that many",
)
SHOWN = 20  # problems that are shown; another architecture has hundreds of the same


def check_recipe(recipe: Recipe, resident: ResidentPool) -> None:
    """Raise UsageError, with every problem, unless the recipe can be run on this pool."""
    problems = []
    known = {checkpoint.name for checkpoint in resident.pool.checkpoints}
    for name in _checkpoints_of(recipe):
        if name not in known:
            problems.append(
                Problem(
                    thing=f"checkpoint {name!r}",
                    cause="not in the pool",
                    remedy=did_you_mean(name, known),
                )
            )
    problems += method_problems(
        recipe.method,
        RECIPE_WORDS,
        has_base=recipe.base is not None,
        num_members=len(recipe.members),
        options=recipe.options,
        groups=[group.name for group in recipe.groups],
    )
    if recipe.method == "layer_swap" and not problems:
        problems += _depth_problems(recipe, resident.pool.template.num_layers)
    if recipe.dtype not in TORCH_DTYPES:
        problems.append(
            Problem(
                thing=f"dtype {recipe.dtype!r}",
                cause="unknown",
                remedy=did_you_mean(recipe.dtype, TORCH_DTYPES),
            )
        )
    if problems:
        raise UsageError(problems)
    misfits: list[Problem] = []
    for name in _checkpoints_of(recipe):
        misfits += _misfits(resident.pool, name)
    if misfits:
        raise UnsafeInputError(misfits[:SHOWN])


def _checkpoints_of(recipe: Recipe) -> tuple[str, ...]:
    """Names of the recipe's members and of its base, where it has one."""
    return recipe.members if recipe.base is None else (*recipe.members, recipe.base)


def _depth_problems(recipe: Recipe, num_layers: int) -> list[Problem]:
    """Depths of `layer_swap` that the model does not have, in any group of the recipe."""
    causes = set()
    for group in recipe.groups:
        own = options_of(recipe.options, group.name)
        cause = depth_complaint({**MERGE_METHODS["layer_swap"].options, **own}, num_layers)
        if cause is not None:
            causes.add(cause)
    return [
        Problem(thing="layer_swap", cause=cause, remedy="Set both in options")
        for cause in sorted(causes)
    ]


def _misfits(pool: Pool, name: str) -> Iterator[Problem]:
    """Tensors of a checkpoint that do not fit the template's.

    They are missing, extra, of another shape, or floating point in only one of the two.
    """
    ours, theirs = pool.find(name).tensors, pool.template.tensors
    if ours is theirs:
        return
    for tensor in theirs.keys() ^ ours.keys():
        has = "has" if tensor in ours else "lacks"
        yield Problem(
            thing=f"checkpoint {name!r}",
            cause=f"{has} tensor {tensor!r}, unlike {pool.template.name!r}",
            remedy="recycler inspect tells all that differs; nothing is dropped silently",
        )
    for tensor, info in theirs.items():
        own = ours.get(tensor)
        if own is None:
            continue
        only_one_is_float = (own.dtype in FLOAT_DTYPES) != (info.dtype in FLOAT_DTYPES)
        if own.shape != info.shape or only_one_is_float:
            yield Problem(
                thing=f"checkpoint {name!r}",
                cause=f"holds {tensor!r} as {own.dtype} {list(own.shape)} where "
                f"{pool.template.name!r} has {info.dtype} {list(info.shape)}",
                remedy="recycler inspect tells all that differs",
            )


def merged_tensors(recipe: Recipe, resident: ResidentPool) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the merge as a fresh (name, tensor) in the template's order."""
    check_recipe(recipe, resident)
    for name, info in resident.pool.template.tensors.items():
        if info.dtype in FLOAT_DTYPES:
            dtype = TORCH_DTYPES[recipe.dtype]
        else:
            dtype = resident.tensor(resident.pool.template.name, name).dtype
        out = torch.empty(info.shape, dtype=dtype)
        merge_one(recipe, resident, name, out)
        yield name, out


def merge_into(recipe: Recipe, resident: ResidentPool, destinations: Mapping[str, Tensor]) -> None:
    """Write the merge into live weights, by tensor name, in place.

    Their storage addresses do not change. Raises UnsafeInputError before anything is written when
    names or shapes differ from the template's.
    """
    check_recipe(recipe, resident)
    problems = _destination_problems(resident.pool, destinations)
    if problems:
        raise UnsafeInputError(problems)
    with torch.no_grad():
        for name, out in destinations.items():
            if out.device.type == "cpu":
                merge_one(recipe, resident, name, out)
            else:
                # merged in host memory, where the pool lies, so that bits equal the export's
                merged = torch.empty(out.shape, dtype=out.dtype)
                merge_one(recipe, resident, name, merged)
                out.copy_(merged)


def _destination_problems(pool: Pool, destinations: Mapping[str, Tensor]) -> list[Problem]:
    """Names and shapes of an engine's weights that are not those of the template."""
    template = pool.template.tensors
    problems = [
        Problem(
            thing=f"tensor {name!r}",
            cause="is in the checkpoint or in the engine, but not in both",
            remedy="The engine runs another architecture than the pool",
        )
        for name in sorted(set(template) ^ set(destinations))
    ]
    for name, info in template.items():
        if name in destinations and tuple(destinations[name].shape) != info.shape:
            cause = f"engine holds {tuple(destinations[name].shape)}, pool {info.shape}"
            problems.append(Problem(thing=f"tensor {name!r}", cause=cause, remedy=""))
    return problems


def merge_one(
    recipe: Recipe, resident: ResidentPool, name: str, out: Tensor, elements: slice | None = None
) -> None:
    """Merge one tensor into `out`; with `elements`, only these of it, in row-major order.

    `elements` are for elementwise methods alone.
    """
    if resident.pool.template.tensors[name].dtype not in FLOAT_DTYPES:
        out.copy_(_agreed(recipe, resident, name))
        return
    group, method = _group_index(recipe.groups, name), MERGE_METHODS[recipe.method]
    if elements is None:
        tensors = [resident.tensor(member, name) for member in recipe.members]
        base = resident.tensor(recipe.base, name) if recipe.base else None
    else:  # of weight 0: out stands in for what is not read
        tensors = [
            resident.elements(member, name, elements) if weight != 0.0 or method.reads_all else out
            for member, weight in zip(recipe.members, recipe.weights[group], strict=True)
        ]
        base = resident.elements(recipe.base, name, elements) if recipe.base else None
    context = TensorContext(
        name=name,
        members=recipe.members,
        seed=recipe.seed,
        num_layers=resident.pool.template.num_layers,
    )
    options = options_of(recipe.options, recipe.groups[group].name)
    method.function(
        tensors, recipe.weights[group], base=base, context=context, out=out, **as_keywords(options)
    )


def _agreed(recipe: Recipe, resident: ResidentPool, name: str) -> Tensor:
    """A tensor that cannot be averaged, as all members have it.

    Raises UnsafeInputError when they do not have the same bits.
    """
    first, *rest = (resident.tensor(member, name) for member in recipe.members)
    bits = first.reshape(-1).view(torch.uint8)
    if all(torch.equal(bits, other.reshape(-1).view(torch.uint8)) for other in rest):
        return first
    kind = resident.pool.template.tensors[name].dtype
    remedy = "Leave those members out"
    if kind.startswith("F8"):
        remedy = "Merge the unquantized weights and quantize the result"
    raise UnsafeInputError(
        Problem(
            thing=f"tensor {name!r}",
            cause=f"is {kind}, which cannot be averaged, and members disagree about it",
            remedy=remedy,
        )
    )


@lru_cache(maxsize=65536)
def _group_index(groups: tuple[Group, ...], name: str) -> int:
    """Index of the first group that takes a tensor. Raises UsageError when none does."""
    for index, group in enumerate(groups):
        if re.search(group.match, name):
            return index
    raise UsageError(
        Problem(
            thing=f"tensor {name!r}",
            cause="no group of the recipe matches it",
            remedy="Add a last group with match: ''",
        )
    )
