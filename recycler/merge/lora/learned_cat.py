"""Learned CAT: one weight per adapter and wrapped Linear, by gradient or from losses alone.

Prabhakar et al. 2024, arXiv:2410.13025, section 3: alpha = softmax(logits) over adapters in each
module, as in the authors' code; logits start at zero, not at random, so that training starts from
the uniform CAT and a seed decides nothing. Adapters and base stay frozen: M x K numbers are
trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from recycler.errors import Problem, UsageError
from recycler.merge.lora.factors import Adapter, modules_of

# weights (M, K), rows in the order of modules_of(adapters) -> scalar
Loss: TypeAlias = Callable[[Tensor], Tensor]
Hook: TypeAlias = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]


@contextmanager
def attached(model: nn.Module, adapters: Sequence[Adapter], weights: Tensor) -> Iterator[None]:
    """Let `model` compute with base + sum_k weights[m, k] s_k B_k A_k in module m.

    Gradients reach `weights`. Raises UsageError for a module that the model does not have.
    """
    handles = []
    by_name = dict(model.named_modules())
    try:
        for row, module in zip(weights, modules_of(adapters), strict=True):
            if module not in by_name:
                raise UsageError(
                    Problem(
                        thing=f"module {module!r}",
                        cause="is in an adapter and not in the model",
                        remedy="The adapter was trained on another base",
                    )
                )
            handles.append(by_name[module].register_forward_hook(_adds(module, adapters, row)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adds(module: str, adapters: Sequence[Adapter], row: Tensor) -> Hook:
    """A hook that adds the adapters' weighted products to a module's output."""
    parts = [
        (index, adapter.modules[module])
        for index, adapter in enumerate(adapters)
        if module in adapter.modules
    ]

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        for index, part in parts:
            low = x @ part.down.to(x.dtype).T
            output = output + (low @ part.up.to(x.dtype).T) * (row[index].to(x.dtype) * part.scale)
        return output

    return hook


def loss_of_uniform(loss: Loss, num_modules: int, num_adapters: int) -> float:
    """The loss of the static CAT with equal weights, from which learning starts."""
    with torch.no_grad():
        return float(loss(torch.full((num_modules, num_adapters), 1 / num_adapters)))


def learn_by_gradient(
    loss: Loss,
    num_modules: int,
    num_adapters: int,
    *,
    steps: int = 100,
    learning_rate: float = 0.05,
) -> Tensor:
    """The best weights `(M, K)` met in `steps` of Adam on the logits, uniform included."""
    logits = torch.zeros(num_modules, num_adapters, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=learning_rate)
    best, best_loss = logits.detach().softmax(1), float("inf")
    for _ in range(steps + 1):
        weights = logits.softmax(1)
        value = loss(weights)
        if float(value.detach()) < best_loss:
            best, best_loss = weights.detach().clone(), float(value.detach())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return best


def learn_by_spsa(
    loss: Loss,
    num_modules: int,
    num_adapters: int,
    *,
    steps: int = 200,
    learning_rate: float = 0.2,
    epsilon: float = 0.05,
    seed: int = 0,
) -> Tensor:
    """The best weights `(M, K)` met by SPSA, from losses alone with two evaluations per step.

    As in MeZO (Malladi et al. 2023, arXiv:2305.17333): x -= a_t g z / rms(g), with
    g = (L(x + eps z) - L(x - eps z)) / (2 eps), z of random signs, a_t shrinking as in Spall 1998.
    Dividing by the running size of g makes the step the same for losses of any scale. The uniform
    start is among the points compared.
    """
    generator = torch.Generator().manual_seed(seed)
    logits, size = torch.zeros(num_modules, num_adapters), 0.0
    with torch.no_grad():
        best, best_loss = logits.softmax(1), float(loss(logits.softmax(1)))
        for step in range(steps):
            coins = torch.randint(0, 2, logits.shape, generator=generator)
            direction = coins.float().mul_(2).sub_(1)
            ahead = float(loss((logits + epsilon * direction).softmax(1)))
            behind = float(loss((logits - epsilon * direction).softmax(1)))
            slope = (ahead - behind) / (2 * epsilon)
            size = max(abs(slope), 1e-30) if step == 0 else (0.9 * size**2 + 0.1 * slope**2) ** 0.5
            logits -= learning_rate / (step + 1) ** 0.3 * slope / size * direction
            if step % 10 == 9 or step == steps - 1:
                value = float(loss(logits.softmax(1)))
                if value < best_loss:
                    best, best_loss = logits.softmax(1), value
    return best
