"""Random bits that depend on (seed, member, tensor, element) and on nothing else.

A counter is hashed instead of a generator's state being advanced, so shards, order, block sizes,
threads and devices cannot change a mask. Two rounds of a 32-bit integer mixer (`lowbias32`: C.
Wellons, "Prospecting for hash functions", public domain) with a 32-bit key before each; one hash
makes the 16 bits of two neighbouring elements.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

STEPS = 1 << 16  # probabilities come in steps of 1/65536


def mask_key(seed: int, member: str, tensor: str) -> tuple[int, int]:
    """Two signed 32-bit numbers for one tensor of one member."""
    raw = hashlib.sha256("\x1f".join((str(seed), member, tensor)).encode()).digest()
    first = int.from_bytes(raw[:4], "little", signed=True)
    second = int.from_bytes(raw[4:8], "little", signed=True)
    return first, second


def random_u16(
    key: tuple[int, int], start: int, count: int, device: torch.device | str = "cpu"
) -> Tensor:
    """int32 `(count,)` of uniform integers in [0, 65536), for elements from `start` on."""
    first, last = start // 2, (start + count + 1) // 2
    counter_dtype = torch.int64 if last >= 1 << 31 else torch.int32
    bits = torch.arange(first, last, dtype=counter_dtype, device=device).to(torch.int32)
    scratch = torch.empty_like(bits)
    for number in key:
        bits.bitwise_xor_(number)
        _mix(bits, scratch)
    halves = bits.view(torch.int16)[start - 2 * first :][:count]
    return halves.to(torch.int32).add_(STEPS // 2)


def drop_mask(key: tuple[int, int], start: int, block: Tensor, steps: int | Tensor) -> Tensor:
    """int32 mask of a block whose first element is `start`: all ones where an element is kept.

    `steps`, of 65536, is the probability of keeping it: one number, or one per element.
    """
    drawn = random_u16(key, start, block.numel(), block.device)
    return drawn.sub_(steps).bitwise_right_shift_(31)  # the sign bit, all over: drawn < steps


def _mix(bits: Tensor, scratch: Tensor) -> None:
    """lowbias32, in place, on int32; the arithmetic shift is made a logical one by the mask."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - (1 << 32)), (16, None)):
        torch.bitwise_right_shift(bits, shift, out=scratch)
        scratch.bitwise_and_((1 << (32 - shift)) - 1)
        bits.bitwise_xor_(scratch)
        if factor is not None:
            bits.mul_(factor)


def steps_of(probability: float) -> int:
    """The steps, of 65536, that stand for a probability; at least 1 for a positive one."""
    return max(1, min(STEPS, round(probability * STEPS))) if probability > 0 else 0
