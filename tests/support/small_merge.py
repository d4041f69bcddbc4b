"""A recipe over three members of a few small tensors."""

import torch

from recycler.types import Group, Recipe


def tensors_of(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (50, 8), "model.norm.weight": (8,)} | {
        f"model.layers.{layer}.mlp.up_proj.weight": (16, 8) for layer in range(3)
    }
    found = {
        name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()
    }
    return found | {"model.positions": torch.arange(5), "model.scale": torch.tensor(2.0).bfloat16()}


WHOLE = (Group(name="all"),)


def recipe(method="linear", base=None, options=(), groups=WHOLE, weights=((0.5, 0.3, 0.2),)):
    return Recipe(
        method=method,
        members=("a", "b", "c"),
        base=base,
        weights=weights,
        groups=groups,
        options=options,
        seed=5,
    )
