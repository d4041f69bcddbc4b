"""Pools of really trained tiny networks: merges really average parameters and are really evaluated.

One base of 13 000 parameters (35 -> 96 -> 96 -> 6, the task is an input) learns three teacher-made
tasks badly; K members are tuned from it with their own mixes, learning rates, lengths, label noise
and finite data. Search scores 200 items per task, the same for all trials; truth is 2 000 other
items. After `search_bench/problem.py` of the research notes.

An item is a choice of six, the likeliest wins. Two more families: in `stages` the members are
checkpoints along a few runs, each with a curriculum of mixes, so that neighbours hardly differ; in
`sequences` an answer is right when three choices in a row are, as exact match is of a text of
several tokens.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from recycler.scoring.subsets import estimate
from recycler.types import Item, Objective, Outcome

from .families import NUM_ITEMS, NUM_OBJECTIVES, Family

HIDDEN, INPUTS, CLASSES = 96, 32, 6
SHAPES = [
    (HIDDEN, INPUTS + NUM_OBJECTIVES),
    (HIDDEN,),
    (HIDDEN, HIDDEN),
    (HIDDEN,),
    (CLASSES, HIDDEN),
    (CLASSES,),
]
SIZES = [int(np.prod(shape)) for shape in SHAPES]


NETWORKS = ("networks", "stages", "sequences")


def network_pool(num_members: int, seed: int, name: str = "networks") -> Family:
    """A trained pool as a `Family`; about 0.3 s a member. Deterministic for a given torch build."""
    torch.set_num_threads(1)
    base, members = (_stages if name == "stages" else _trained)(num_members, seed)
    deltas = members - base
    length = 3 if name == "sequences" else 1  # choices an item
    test = [
        _items(task, 2000 * length, torch.Generator().manual_seed(99), seed)
        for task in range(NUM_OBJECTIVES)
    ]
    searched = [
        _items(task, NUM_ITEMS * length, torch.Generator().manual_seed(10_000 + seed), seed)
        for task in range(NUM_OBJECTIVES)
    ]

    def right(
        weights: np.ndarray, items: list[tuple[torch.Tensor, torch.Tensor]]
    ) -> list[np.ndarray]:
        merged = base + torch.tensor(weights, dtype=torch.float32) @ deltas
        with torch.inference_mode():
            return [
                (_forward(merged, x).argmax(1) == y).view(-1, length).all(1).double().numpy()
                for x, y in items
            ]

    def score(weights: np.ndarray, items: list[tuple[torch.Tensor, torch.Tensor]]) -> np.ndarray:
        return np.array([outcomes.mean() for outcomes in right(weights, items)])

    asked = [
        Item(
            id=f"{task}-{index}",
            suite="networks",
            task=str(task),
            role="search",
            kind="generate",
            scorer="exact_match",
            prompt="",
            prompt_ids=(),
            gold="",
        )
        for task in range(NUM_OBJECTIVES)
        for index in range(NUM_ITEMS)
    ]
    objectives = [
        Objective(suite="networks", task=str(task), metric="exact_match", direction="maximize")
        for task in range(NUM_OBJECTIVES)
    ]
    members_right = [
        dict(zip((item.id for item in asked), np.concatenate(right(row, searched)), strict=True))
        for row in np.eye(num_members)
    ]

    def noisy(
        weights: np.ndarray, rng: np.random.Generator, num_items: int, controls: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """All searched items, or `num_items` of them drawn anew; the standard error is that of
        fresh items either way.
        """
        outcomes = right(weights, searched)
        picks = [
            np.arange(NUM_ITEMS)
            if num_items >= NUM_ITEMS
            else rng.permutation(NUM_ITEMS)[:num_items]
            for _ in searched
        ]
        if controls and num_items < NUM_ITEMS:
            said = [
                Outcome(
                    item=f"{task}-{index}", values=(("exact_match", float(outcomes[task][index])),)
                )
                for task in range(NUM_OBJECTIVES)
                for index in picks[task]
            ]
            scores = [
                estimate(asked, said, objective, members_right).at_large for objective in objectives
            ]
            return np.array([score.value for score in scores]), np.array(
                [score.stderr for score in scores]
            )
        value = np.array([own[chosen].mean() for own, chosen in zip(outcomes, picks, strict=True)])
        return value, np.sqrt(np.clip(value * (1 - value), 0.02, None) / num_items)

    def truth(table: np.ndarray) -> np.ndarray:
        return np.array([score(weights, test) for weights in np.atleast_2d(table)])

    with torch.inference_mode():
        logits = [
            torch.stack([_forward(member, x) for member in members]) for x, _ in searched
        ]  # (K, items, classes)

    def ensemble(table: np.ndarray) -> np.ndarray:
        """Mean chance that the members' averaged logits give the right answer, on the searched
        items.
        """
        rows = torch.tensor(np.atleast_2d(table), dtype=torch.float32)
        chances = [
            torch.einsum("nk,kic->nic", rows, own).softmax(2)[:, torch.arange(len(y)), y]
            for own, (_, y) in zip(logits, searched, strict=True)
        ]
        return (
            torch.stack([own.unflatten(1, (-1, length)).prod(2).mean(1) for own in chances], 1)
            .double()
            .numpy()
        )

    def slopes(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean cross-entropy of the searched items (T,) and its gradient (T, K): what one pass back
        costs.
        """
        losses, gradients = [], []
        for x, y in searched:
            merged = (base + torch.tensor(weights, dtype=torch.float32) @ deltas).requires_grad_()
            loss = F.cross_entropy(_forward(merged, x), y)
            losses.append(loss.item())
            gradients.append((deltas @ torch.autograd.grad(loss, merged)[0]).double().numpy())
        return np.array(losses), np.array(gradients)

    gram = (deltas @ deltas.T).double().numpy()
    return Family(name, num_members, truth, gram, noise=noisy, ensemble=ensemble, slopes=slopes)


def _forward(flat: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    a, b, c, d, e, f = (
        part.view(shape) for part, shape in zip(flat.split(SIZES), SHAPES, strict=True)
    )
    return F.linear(torch.tanh(F.linear(torch.tanh(F.linear(x, a, b)), c, d)), e, f)


def _items(
    task: int, count: int, generator: torch.Generator, seed: int, noise: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs with a one-hot task, and the teacher's labels, a share `noise` of them random."""
    teacher = torch.Generator().manual_seed(7 + 100 * seed)
    shared = torch.randn(INPUTS, INPUTS, generator=teacher) / INPUTS**0.5 * 2.2
    own = [
        torch.randn(INPUTS, INPUTS, generator=teacher) / INPUTS**0.5 * 1.6
        for _ in range(NUM_OBJECTIVES)
    ]
    heads = [torch.randn(INPUTS, CLASSES, generator=teacher) for _ in range(NUM_OBJECTIVES)]
    x = torch.randn(count, INPUTS, generator=generator)
    y = (torch.tanh(torch.tanh(x @ shared) @ own[task]) @ heads[task]).argmax(1)
    wrong = torch.rand(count, generator=generator) < noise
    y = torch.where(wrong, torch.randint(0, CLASSES, (count,), generator=generator), y)
    return torch.cat([x, F.one_hot(torch.full((count,), task), NUM_OBJECTIVES).float()], 1), y


def _base(seed: int) -> torch.Tensor:
    start = torch.Generator().manual_seed(seed)
    flat = torch.cat(
        [
            torch.randn(size, generator=start) * (0.15 if len(shape) == 2 else 0.0)
            for size, shape in zip(SIZES, SHAPES, strict=True)
        ]
    )
    return _tuned(flat, np.ones(NUM_OBJECTIVES), 700, 3e-3, 0.5, 8000, seed, seed)


@lru_cache(maxsize=8)
def _trained(num_members: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng, base, members = np.random.default_rng([8, seed]), _base(seed), []
    for member in range(num_members):
        mix = 0.9 * rng.dirichlet(np.full(NUM_OBJECTIVES, 0.35)) + 0.1 / NUM_OBJECTIVES
        steps, rate = int(rng.choice((80, 200, 300))), float(rng.choice((4e-4, 8e-4, 1.6e-3)))
        noise, data = float(rng.choice((0.0, 0.0, 0.15, 0.35))), int(rng.choice((400, 1000, 3000)))
        members.append(_tuned(base, mix, steps, rate, noise, data, 1000 * seed + member, seed))
    return base, torch.stack(members)


@lru_cache(maxsize=8)
def _stages(num_members: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs of up to eight checkpoints, 60 steps apart; each stage has a mix of its own, half of it
    the one before.
    """
    rng, base, members = np.random.default_rng([9, seed]), _base(seed), []
    for member in range(num_members):
        if member % 8 == 0:
            now, mix, rate = (
                base,
                np.full(NUM_OBJECTIVES, 1 / NUM_OBJECTIVES),
                float(rng.choice((8e-4, 1.6e-3))),
            )
        mix = 0.5 * mix + 0.5 * rng.dirichlet(np.full(NUM_OBJECTIVES, 0.2))
        now = _tuned(now, mix, 60, rate, 0.0, 2000, 1000 * seed + member, seed)
        members.append(now)
    return base, torch.stack(members)


def _tuned(
    start: torch.Tensor,
    mix: np.ndarray,
    steps: int,
    rate: float,
    noise: float,
    data: int,
    seed: int,
    world: int,
) -> torch.Tensor:
    """Adam on batches of 128 from `data` items per task, mixed by `mix`; returns the flat
    parameters.
    """
    generator = torch.Generator().manual_seed(seed)
    pools = [_items(task, data, generator, world, noise) for task in range(NUM_OBJECTIVES)]
    counts = np.round(mix / mix.sum() * 128).astype(int)
    flat = start.clone().requires_grad_(True)
    optimiser = torch.optim.AdamW([flat], lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, eta_min=0.1 * rate)
    for _ in range(steps):
        picks = [torch.randint(0, data, (int(count),), generator=generator) for count in counts]
        x = torch.cat([pool[0][pick] for pool, pick in zip(pools, picks, strict=True)])
        y = torch.cat([pool[1][pick] for pool, pick in zip(pools, picks, strict=True)])
        optimiser.zero_grad()
        F.cross_entropy(_forward(flat, x), y).backward()
        optimiser.step()
        schedule.step()
    return flat.detach()
