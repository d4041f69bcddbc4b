"""A delta as a few singular vectors at mixed precision, within a budget of bits.

Delta-CoMe: Ping et al. 2024, arXiv:2406.08903. As there, large singular values get more bits than
small ones. Changed: vectors are rounded to the nearest level (the paper uses GPTQ with calibration
data, which a pool does not have); the coefficients are then fitted again by least squares to the
rounded vectors; and the split into precisions is chosen per matrix from a few, by its error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

COEFFICIENT_BITS = 32
TRIAL_ROWS = 2048
MAX_DOUBLE = 4_000_000  # elements up to which a Gram matrix is made in float64
# (bits per number, number of singular vectors), largest singular values first
Split = tuple[tuple[int, int], ...]
# best uniform steps for a normal distribution by bits, in standard deviations (Max 1960)
_STEPS = {2: 0.996, 3: 0.586, 4: 0.335}


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """delta ~ sum_r coefficients[r] left[:, r] right[:, r]^T.

    `left` (M, R) and `right` (N, R) hold odd integers of `split`'s bits (-1, 1 for one bit; -3, -1,
    1, 3 for two). `error` is |delta - approximation| / |delta| in the Frobenius norm.
    """

    split: Split
    left: np.ndarray
    right: np.ndarray
    coefficients: np.ndarray
    error: float

    def matrix(self) -> np.ndarray:
        """The approximation, float32, of shape (M, N)."""
        return (self.left.astype(np.float32) * self.coefficients) @ self.right.T.astype(np.float32)


def compress(delta: np.ndarray, num_bits: int) -> LowRank:
    """The best approximation of a float32 matrix (M, N) in `num_bits`, among a few splits.

    It takes one symmetric eigenproblem of the smaller side, which may have some thousands of rows
    or columns.
    """
    if delta.shape[0] < delta.shape[1]:
        found = compress(np.ascontiguousarray(delta.T), num_bits)
        return replace(found, left=found.right, right=found.left)
    norm = float(np.linalg.norm(delta))
    rank, (rows, columns) = min(delta.shape), delta.shape
    splits = _splits(num_bits, rows + columns, rank)
    if norm == 0.0 or not splits:
        return LowRank(
            split=(),
            left=np.zeros((rows, 0), np.int16),
            right=np.zeros((columns, 0), np.int16),
            coefficients=np.zeros(0, np.float32),
            error=float(norm > 0.0),
        )
    left, right = _singular_vectors(delta, max(map(num_ranks, splits)))
    # enough rows to choose a split
    chosen = np.linspace(0, rows - 1, min(rows, TRIAL_ROWS)).astype(np.int64)
    part, part_left = np.ascontiguousarray(delta[chosen]), np.ascontiguousarray(left[chosen])
    best = min(splits, key=lambda split: _fit(part, part_left, right, split).error)
    return _fit(delta, left, right, best)


def _splits(num_bits: int, side: int, rank: int) -> list[Split]:
    """Splits that use the budget: one precision, or a part of it for the first vectors.

    The first vectors get 8 or 4 bits per number.
    """

    def part(bits: int, share: float) -> tuple[int, int]:
        return bits, int(num_bits * share / (bits * side + COEFFICIENT_BITS))

    wanted: list[Split] = [(part(bits, 1.0),) for bits in (8, 4, 3, 2)]
    for high, low in ((8, 3), (8, 2), (4, 2)):
        for share in (0.1, 0.25, 0.5):
            wanted.append((part(high, share), part(low, 1.0 - share)))
    wanted.append((part(8, 0.1), part(3, 0.4), part(2, 0.5)))
    capped = {_capped(split, rank) for split in wanted}
    return sorted(split for split in capped if split)


def _capped(split: Split, rank: int) -> Split:
    """The split cut to `rank` vectors, without empty parts."""
    capped = []
    for bits, count in split:
        if count := min(count, rank):
            capped.append((bits, count))
            rank -= count
    return tuple(capped)


def _singular_vectors(delta: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `rank` left (M, R) and right (N, R) singular vectors, for M >= N.

    They come from the eigenvectors of the Gram matrix.
    """
    if delta.size < MAX_DOUBLE:
        gram = delta.T.astype(np.float64) @ delta.astype(np.float64)
    else:
        gram = (delta.T @ delta).astype(np.float64)
    _, vectors = np.linalg.eigh(gram)
    right = np.ascontiguousarray(vectors[:, ::-1][:, :rank]).astype(np.float32)
    left = delta @ right
    return left / np.maximum(np.linalg.norm(left, axis=0), 1e-30), right


def _fit(delta: np.ndarray, left: np.ndarray, right: np.ndarray, split: Split) -> LowRank:
    """The approximation by these vectors, rounded, with coefficients fitted by least squares."""
    left_codes, right_codes = _rounded_columns(left, split), _rounded_columns(right, split)
    a, b = left_codes.astype(np.float32), right_codes.astype(np.float32)
    normal = (a.T @ a).astype(np.float64) * (b.T @ b)
    target = np.einsum("mr,mr->r", a, delta @ b).astype(np.float64)
    scale = 1.0 / np.sqrt(np.diag(normal))  # odd integers: no column is zero
    unit = normal * np.outer(scale, scale) + 1e-7 * np.eye(len(scale))
    coefficients = (scale * np.linalg.solve(unit, scale * target)).astype(np.float32)
    left_over, norm = np.linalg.norm(delta - (a * coefficients) @ b.T), np.linalg.norm(delta)
    return LowRank(
        split=split,
        left=left_codes,
        right=right_codes,
        coefficients=coefficients,
        error=float(left_over / np.maximum(norm, 1e-30)),
    )


def _columns(split: Split) -> list[tuple[int, slice]]:
    """(bits, columns) of each part of a split."""
    columns, start = [], 0
    for bits, count in split:
        columns.append((bits, slice(start, start + count)))
        start += count
    return columns


def _rounded_columns(vectors: np.ndarray, split: Split) -> np.ndarray:
    """Each column as odd integers of its part's bits, (rows, R)."""
    parts = [_rounded(vectors[:, columns], bits) for bits, columns in _columns(split)]
    return np.concatenate(parts, axis=1)


def _rounded(vectors: np.ndarray, bits: int) -> np.ndarray:
    """Each column to the nearest of 2^bits evenly spaced levels, as odd integers."""
    half = 1 << (bits - 1)
    if bits in _STEPS:
        step = np.sqrt(np.mean(vectors**2, axis=0, keepdims=True)) * _STEPS[bits]
    else:
        step = np.abs(vectors).max(axis=0, keepdims=True) / half
    level = np.clip(np.floor(vectors / np.maximum(step, 1e-30)), -half, half - 1)
    return (2 * level + 1).astype(np.int16)


def pack_codes(codes: np.ndarray, split: Split) -> bytes:
    """Odd integers (rows, R) as a bit string, column by column, each at its split's bits."""
    parts = []
    for bits, columns in _columns(split):
        signed = (codes[:, columns].T.reshape(-1) - 1) // 2
        unsigned = (signed + (1 << (bits - 1))).astype(np.uint8)
        parts.append(np.unpackbits(unsigned[:, None], axis=1)[:, 8 - bits :].reshape(-1))
    return np.packbits(np.concatenate(parts)).tobytes() if parts else b""


def unpack_codes(raw: bytes, rows: int, split: Split) -> np.ndarray:
    """The inverse of `pack_codes`, (rows, R) int16.

    Raises ValueError when the bytes are too few.
    """
    bits_left, parts = np.unpackbits(np.frombuffer(raw, dtype=np.uint8)), []
    for bits, count in split:
        taken, bits_left = bits_left[: rows * count * bits], bits_left[rows * count * bits :]
        powers = 1 << np.arange(bits - 1, -1, -1)
        unsigned = taken.reshape(count, rows, bits).dot(powers).astype(np.int16)
        parts.append((2 * (unsigned - (1 << (bits - 1))) + 1).T)
    return np.concatenate(parts, axis=1) if parts else np.zeros((rows, 0), np.int16)


def num_ranks(split: Sequence[Sequence[int]]) -> int:
    """The number of singular vectors of a split."""
    return sum(count for _, count in split)
