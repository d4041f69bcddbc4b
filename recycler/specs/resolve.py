"""A space file made concrete: G groups of tensors by K members, and every contradiction named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from recycler.errors import Problem, UsageError, did_you_mean, raise_problems
from recycler.io.strict_yaml import YamlDocument
from recycler.specs.space import (
    NO_WEIGHT,
    LayerBlocks,
    MemberSpec,
    SearchSpace,
    SpaceSpec,
    reachable_sums,
)
from recycler.types import Group

# with a base, scale matters as much as proportion (docs/design/weights.md)
DEFAULT_DELTA_SUM = (0.3, 3.0)
MODULE_GROUPS = (
    Group(
        name="embeddings", match=r"(^|\.)(embed_tokens|lm_head|wte|wpe|embed_out|embeddings?)(\.|$)"
    ),
    Group(name="attention", match=r"(^|\.)(self_attn|attn|attention|linear_attn)(\.|$)"),
    Group(name="mlp", match=r"(^|\.)(mlp|feed_forward|block_sparse_moe|ffn)(\.|$)"),
    Group(name="norms", match=""),
)


def resolve(
    spec: SpaceSpec,
    document: YamlDocument,
    *,
    members: Sequence[str],
    num_layers: int,
    has_base: bool,
    method_options: Mapping[str, object],
    left_out: Sequence[str] = (),
) -> SearchSpace:
    """The space over these members; limits of members that the job has `left_out` are ignored.

    Raises UsageError naming members or options that do not exist and impossible sums.
    """
    problems = _member_problems(spec, document, members, left_out)
    problems += _option_problems(spec, document, num_layers, method_options)
    problems += _layer_problems(spec, document, num_layers, method_options)
    limits = [spec.members.get(name, MemberSpec()) for name in members]
    low = [_lowest(limit, spec.bounds[0]) for limit in limits]
    high = [_highest(limit, spec.bounds[1]) for limit in limits]
    lowest, highest = _sum_range(spec, has_base)
    problems += _sum_problems(spec, document, members, low, high, (lowest, highest))
    raise_problems(problems, UsageError)
    return SearchSpace(
        groups=_groups(spec, num_layers),
        members=tuple(members),
        low=tuple(low),
        high=tuple(high),
        total=(float(lowest), float(highest)),
        max_nonzero=spec.max_nonzero,
        options=tuple((name, (value[0], value[1])) for name, value in spec.options.items()),
    )


def _member_problems(
    spec: SpaceSpec, document: YamlDocument, members: Sequence[str], left_out: Sequence[str]
) -> list[Problem]:
    """Limits of members that are not in the pool."""
    problems = []
    for name in spec.members:
        if name in members or name in left_out:
            continue
        problems.append(
            Problem(
                thing=f"member {name!r}",
                cause="not in the pool",
                remedy=did_you_mean(name, members),
                where=document.where(("members", name)),
            )
        )
    return problems


def _option_problems(
    spec: SpaceSpec,
    document: YamlDocument,
    num_layers: int,
    method_options: Mapping[str, object],
) -> list[Problem]:
    """Options that the method has not, and options of groups that the space has not."""
    problems = []
    for name in spec.options:
        bare, at, group = name.partition("@")
        names = [known.name for known in _groups(spec, max(num_layers, 1))] if at else []
        if bare not in method_options:
            cause = "not an option of the job's method"
            remedy = did_you_mean(bare, method_options or ["none"])
        elif at and group not in names:
            cause = f"there is no group {group!r}"
            remedy = did_you_mean(group, names)
        else:
            continue
        problems.append(
            Problem(
                thing=f"option {name!r}",
                cause=cause,
                remedy=remedy,
                where=document.where(("options", name)),
            )
        )
    return problems


def _layer_problems(
    spec: SpaceSpec,
    document: YamlDocument,
    num_layers: int,
    method_options: Mapping[str, object],
) -> list[Problem]:
    """Blocks, or counts of layers of `layer_swap`, that exceed the model's number of layers."""
    problems = []
    if isinstance(spec.groups, LayerBlocks) and spec.groups.layer_blocks > num_layers:
        problems.append(
            Problem(
                thing="groups.layer_blocks",
                cause=f"{spec.groups.layer_blocks} blocks for {num_layers} layers",
                remedy="Use fewer blocks",
                where=document.where(("groups",)),
            )
        )
    if {"bottom", "top"} <= method_options.keys():
        most = sum(_largest_count(spec, count, method_options) for count in ("bottom", "top"))
        if most > num_layers:
            problems.append(
                Problem(
                    thing="options bottom and top",
                    cause=f"reach {most:g} layers together, the model has {num_layers}",
                    remedy="Lower their upper ends",
                    where=document.where(("options",)),
                )
            )
    return problems


def _largest_count(spec: SpaceSpec, count: str, method_options: Mapping[str, object]) -> float:
    """The largest value that the option `count` takes in any group, else the method's default."""
    ends = [value[1] for name, value in spec.options.items() if name.partition("@")[0] == count]
    if ends:
        return max(ends)
    default = method_options[count]
    if not isinstance(default, int | float):
        raise TypeError(f"option {count} is a number of layers, got {default!r}")
    return default


def _lowest(limit: MemberSpec, bound: float) -> float:
    """The lowest weight of a member: its own limit first, then the space's `bound`."""
    if limit.fixed is not None:
        return limit.fixed
    if limit.min is not None:
        return limit.min
    return bound if limit.max is None else min(bound, limit.max)


def _highest(limit: MemberSpec, bound: float) -> float:
    """The highest weight of a member: its own limit first, then the space's `bound`."""
    if limit.fixed is not None:
        return limit.fixed
    if limit.max is not None:
        return limit.max
    return bound if limit.min is None else max(bound, limit.min)


def _sum_range(spec: SpaceSpec, has_base: bool) -> tuple[float, float]:
    """Lowest and highest sum of a row of weights."""
    if spec.sum is None:
        return DEFAULT_DELTA_SUM if has_base else (1.0, 1.0)
    if isinstance(spec.sum, list):
        lowest, highest = spec.sum
        return lowest, highest
    return spec.sum, spec.sum


def _sum_problems(
    spec: SpaceSpec,
    document: YamlDocument,
    members: Sequence[str],
    low: Sequence[float],
    high: Sequence[float],
    total: tuple[float, float],
) -> list[Problem]:
    """The reason why no row of weights can have a sum in `total`; empty when one can."""
    if total[0] <= 0.0:
        return [
            Problem(
                thing="sum",
                cause=f"reaches {total[0]:g}, and the weights of a merge must sum to more than 0: "
                "sums are searched by their ratios",
                where=document.where(("sum",)),
                remedy=f"Write a number above 0, or a range such as [{max(total[1], 1.0) / 20:g}, "
                f"{max(total[1], 1.0):g}]; single weights may be negative by bounds or "
                "members",
            )
        ]
    must = [
        name
        for name, least, most in zip(members, low, high, strict=True)
        if least > 0.0 or most < 0.0
    ]
    places = spec.max_nonzero or len(low)
    if len(must) > places:
        return [
            Problem(
                thing="max_nonzero",
                cause=f"{places} is fewer than the members that have a weight in every merge "
                f"({', '.join(must)})",
                remedy="Raise it, or let those weights be 0",
                where=document.where(("max_nonzero",)),
            )
        ]
    least, most = reachable_sums(low, high, places)
    if least > total[1] + NO_WEIGHT or most < total[0] - NO_WEIGHT:
        few = f" of at most {places} members" if places < len(low) else ""
        return [
            Problem(
                thing="sum",
                cause=f"weights{few} between {least:g} and {most:g} in all can never sum to "
                f"[{total[0]:g}, {total[1]:g}]",
                remedy=f"Widen bounds, members{', max_nonzero' * bool(few)} or sum",
                where=document.where(("sum",)),
            )
        ]
    return []


def _groups(spec: SpaceSpec, num_layers: int) -> tuple[Group, ...]:
    if spec.groups == "global":
        return (Group(name="all"),)
    if spec.groups == "modules":
        return MODULE_GROUPS
    if isinstance(spec.groups, list):
        return tuple(
            Group(name=name, match=match) for entry in spec.groups for name, match in entry.items()
        )
    return layer_groups(num_layers, spec.groups.layer_blocks)


def layer_groups(num_layers: int, num_blocks: int) -> tuple[Group, ...]:
    """Blocks of consecutive layers.

    Embeddings go with the first block, final norm and head with the last.
    """
    edges = [round(block * num_layers / num_blocks) for block in range(num_blocks + 1)]
    blocks = [
        Group(
            name=f"layers-{first}-{last - 1}",
            match=rf"(^|\.)(layers|h|blocks)\.({'|'.join(map(str, range(first, last)))})\.",
        )
        for first, last in pairwise(edges)
    ]
    embeddings = rf"{MODULE_GROUPS[0].match.replace('|lm_head', '').replace('|embed_out', '')}"
    blocks[0] = Group(name=blocks[0].name, match=f"{blocks[0].match}|{embeddings}")
    blocks[-1] = Group(
        name=blocks[-1].name,
        match=f"{blocks[-1].match}|^(?!.*(layers|h|blocks)\\.\\d+\\.)(?!.*{embeddings})",
    )
    return tuple(blocks)
