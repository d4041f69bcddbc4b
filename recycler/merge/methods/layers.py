"""Merges that treat layers by their depth: layer swapping and LiNeS."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from recycler.errors import Problem, UsageError, did_you_mean
from recycler.merge.methods.linear import linear
from recycler.merge.methods.method import TensorContext, require_members
from recycler.merge.methods.task_arithmetic import task_arithmetic

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")
_EMBEDDING = re.compile(r"embed|\bwte\b|\bwpe\b")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output|score)\.")
POLICIES = ("adjacent", "outer", "middle", "transition")
Place = Literal["embedding", "final_norm", "head"]


def layer_of(tensor: str) -> int | None:
    """Index of the transformer layer a tensor belongs to; None outside the layers."""
    found = _LAYER.search(tensor)
    return int(found.group(1)) if found else None


def place_of(tensor: str) -> Place:
    """The place of a tensor outside the layers: the final norm if it is no embedding or head."""
    if _HEAD.search(tensor):
        return "head"
    return "embedding" if _EMBEDDING.search(tensor) else "final_norm"


def layer_swap(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
    bottom: int = 5,
    top: int = 2,
    bottom_transition: int = 1,
    top_transition: int = 1,
    embeddings: str = "adjacent",
    final_norm: str = "adjacent",
    head: str = "adjacent",
) -> None:
    """Take outer layers from one member, middle ones from another (Bandarkar et al. 2024).

    Layer swapping (arXiv:2410.01335, Algorithm 1). The first member is the middle one, the task
    expert; the second is the outer one, the language expert.

    1. Outer: the lowest `bottom` and the highest `top` layers are the outer member's.
    2. Transition: the next `bottom_transition` and `top_transition` layers are `sum_k w_k t_k`, so
       weights (0.5, 0.5) are the paper's average. Weights have no other use.
    3. Middle: all other layers are the middle member's.
    4. Outside the layers, of which the paper does not speak, `embeddings`, `final_norm` and `head`
       are treated as the layer next to them ('adjacent': the first, the last, the last), or as
       'outer', 'middle' or 'transition'. A tied head follows the embeddings.

    Limitations: exactly two members; defaults are the paper's for 32 layers. A layer that is outer
    by one end and transition by the other is outer. Raises UsageError for an unknown policy, and
    for a model whose number of layers is not known.
    """
    require_members("layer_swap", tensors, 2)
    _require_layers("layer_swap", context)
    layer, policy = layer_of(context.name), "adjacent"
    if layer is None:
        place = place_of(context.name)
        policy = {"embedding": embeddings, "final_norm": final_norm, "head": head}[place]
        layer = 0 if place == "embedding" else context.num_layers - 1
    if policy not in POLICIES:
        raise UsageError(
            Problem(
                thing=f"layer_swap's policy {policy!r}",
                cause="unknown",
                remedy=did_you_mean(str(policy), POLICIES),
            )
        )
    zone = policy
    if policy == "adjacent":
        edges = (int(bottom), int(top), int(bottom_transition), int(top_transition))
        zone = _zone(layer, context.num_layers, *edges)
    row = {"middle": (1.0, 0.0), "outer": (0.0, 1.0), "transition": tuple(weights)}[zone]
    linear(tensors, row, base=base, context=context, out=out)


def _zone(
    layer: int, num_layers: int, bottom: int, top: int, bottom_transition: int, top_transition: int
) -> str:
    """The zone of a layer: 'outer', 'transition' or 'middle'."""
    from_top = num_layers - 1 - layer
    if layer < bottom or from_top < top:
        return "outer"
    if layer < bottom + bottom_transition or from_top < top + top_transition:
        return "transition"
    return "middle"


def lines(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
    alpha: float = 0.5,
    beta: float = 0.5,
) -> None:
    """Add deltas with a step that grows linearly with depth (Wang et al. 2024).

    LiNeS (arXiv:2410.17146).

    1. Take the layer's number l of 0..L-1. Embeddings count as the first layer, final norm and head
       as the last.
    2. Take the step `alpha + beta l / (L - 1)`: shallow layers, which hold general features, move
       by alpha, the deepest by alpha + beta.
    3. Write `b +` this step times `sum_k w_k (t_k - b)`.

    Limitations: those of `task_arithmetic`. Raises UsageError for a model whose number of layers is
    not known.
    """
    _require_layers("lines", context)
    layer = layer_of(context.name)
    if layer is None:
        layer = 0 if place_of(context.name) == "embedding" else context.num_layers - 1
    depth = layer / (context.num_layers - 1) if context.num_layers > 1 else 1.0
    task_arithmetic(
        tensors, weights, base=base, context=context, out=out, lambda_=alpha + beta * depth
    )


def _require_layers(method: str, context: TensorContext) -> None:
    """Raise UsageError when the depth is unknown: every layer would count as the last."""
    if context.num_layers < 1:
        raise UsageError(
            Problem(
                thing=f"method {method!r}",
                cause="must know how many layers the model has, and its config does not say",
                remedy="Give a config.json with num_hidden_layers",
            )
        )
    layer = layer_of(context.name)
    if layer is not None and layer >= context.num_layers:
        raise UsageError(
            Problem(
                thing=f"tensor {context.name!r}",
                cause=f"is of layer {layer}, the model has {context.num_layers} by its config",
                remedy="Mend num_hidden_layers in config.json",
            )
        )


def depth_complaint(options: Mapping[str, Any], num_layers: int) -> str | None:
    """The complaint about layer_swap's outer layers in a model of this depth, or None.

    There is none for an unknown depth, which the method itself refuses.
    """
    bottom, top = options["bottom"], options["top"]
    if bottom + top > num_layers > 0:
        return (
            f"bottom {bottom:g} and top {top:g} are more than the {num_layers} layers of the model"
        )
    return None
