"""Run a recipe: a generator of (name, tensor), or the same numbers written straight into an
engine's weights.

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
SHOWN = 20  # problems that are told; another architecture has hundreds of the same


def check_recipe(recipe: Recipe, resident: ResidentPool) -> None:
    """Raise UsageError, with every problem, unless the recipe can be run on this pool."""
    problems = []
    known = {
        checkpoint.name
        for checkpoint in (
            *resident.pool.members,
            *((resident.pool.base,) if resident.pool.base else ()),
        )
    }
    for name in (*recipe.members, *((recipe.base,) if recipe.base else ())):
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
    misfits = [
        problem
        for name in (*recipe.members, *((recipe.base,) if recipe.base else ()))
        for problem in _misfits(resident.pool, name)
    ]
    if misfits:
        raise UnsafeInputError(misfits[:SHOWN])


def _depth_problems(recipe: Recipe, num_layers: int) -> list[Problem]:
    """Depths of `layer_swap` that the model does not have, in any group of the recipe."""
    defaults = MERGE_METHODS["layer_swap"].options
    causes = {
        depth_complaint(defaults | options_of(recipe.options, group.name), num_layers)
        for group in recipe.groups
    }
    return [
        Problem(thing="layer_swap", cause=cause, remedy="Set both in options")
        for cause in sorted(cause for cause in causes if cause is not None)
    ]


def _misfits(pool: Pool, name: str) -> Iterator[Problem]:
    """Tensors of a checkpoint that are not those of the template: missing, extra, of another shape,
    or numbers in one and counts in the other.
    """
    ours, theirs = pool.find(name).tensors, pool.template.tensors
    if ours is theirs:
        return
    for tensor in theirs.keys() ^ ours.keys():
        yield Problem(
            thing=f"checkpoint {name!r}",
            cause=f"{'has' if tensor in ours else 'lacks'} tensor {tensor!r}, unlike "
            f"{pool.template.name!r}",
            remedy="recycler inspect tells all that differs; nothing is dropped silently",
        )
    for tensor, info in theirs.items():
        own = ours.get(tensor)
        if own is not None and (
            own.shape != info.shape or (own.dtype in FLOAT_DTYPES) != (info.dtype in FLOAT_DTYPES)
        ):
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
        dtype = TORCH_DTYPES[recipe.dtype] if info.dtype in FLOAT_DTYPES else None
        out = torch.empty(
            info.shape, dtype=dtype or resident.tensor(resident.pool.template.name, name).dtype
        )
        _merge_one(recipe, resident, name, out)
        yield name, out


def merge_into(recipe: Recipe, resident: ResidentPool, destinations: Mapping[str, Tensor]) -> None:
    """Write the merge into `destinations` (tensor name -> live weights) in place; storage addresses
    do not change.

    Raises UnsafeInputError before anything is written when names or shapes differ from the
    template's.
    """
    check_recipe(recipe, resident)
    template = resident.pool.template.tensors
    problems = [
        Problem(
            thing=f"tensor {name!r}",
            cause="is in the checkpoint or in the engine, but not in both",
            remedy="The engine runs another architecture than the pool",
        )
        for name in sorted(set(template) ^ set(destinations))
    ]
    problems += [
        Problem(
            thing=f"tensor {name!r}",
            cause=f"engine holds {tuple(destinations[name].shape)}, pool {info.shape}",
            remedy="",
        )
        for name, info in template.items()
        if name in destinations and tuple(destinations[name].shape) != info.shape
    ]
    if problems:
        raise UnsafeInputError(problems)
    with torch.no_grad():
        for name, out in destinations.items():
            if out.device.type == "cpu":
                _merge_one(recipe, resident, name, out)
            # the pool lies in host memory: merge there, so that bits equal the export's, and copy
            # once
            else:
                merged = torch.empty(out.shape, dtype=out.dtype)
                _merge_one(recipe, resident, name, merged)
                out.copy_(merged)


def _merge_one(
    recipe: Recipe, resident: ResidentPool, name: str, out: Tensor, elements: slice | None = None
) -> None:
    """Merge one tensor into `out`; of an elementwise method, if asked, only these elements of it,
    in row-major order.
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
    first, *rest = (resident.tensor(member, name) for member in recipe.members)
    if not all(
        torch.equal(first.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
        for other in rest
    ):
        kind = resident.pool.template.tensors[name].dtype
        raise UnsafeInputError(
            Problem(
                thing=f"tensor {name!r}",
                cause=f"is {kind}, which cannot be averaged, and members disagree about it",
                remedy="Merge the unquantized weights and quantize the result"
                if kind.startswith("F8")
                else "Leave those members out",
            )
        )
    return first


@lru_cache(maxsize=65536)
def _group_index(groups: tuple[Group, ...], name: str) -> int:
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
