"""A delta as a few singular vectors at mixed precision, within a budget of bits (Delta-CoMe:

Ping et al. 2024, arXiv:2406.08903).

As there, large singular values get more bits than small ones. Changed: vectors are rounded to the
nearest level (the paper uses GPTQ with calibration data, which a pool does not have); the
coefficients are then fitted again by least squares to the rounded vectors; and the split into
precisions is chosen per matrix from a few, by its error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

COEFFICIENT_BITS = 32
TRIAL_ROWS = 2048
Split = tuple[
    tuple[int, int], ...
]  # (bits per number, number of singular vectors), largest singular values first


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """delta ~ sum_r coefficients[r] left[:, r] right[:, r]^T; `left` (M, R) and `right` (N, R) hold odd integers of
    `split`'s bits (-1, 1 for one bit; -3, -1, 1, 3 for two). `error` is |delta - approximation| / |delta| (Frobenius)."""

    split: Split
    left: np.ndarray
    right: np.ndarray
    coefficients: np.ndarray
    error: float

    def matrix(self) -> np.ndarray:
        """The approximation, float32, of shape (M, N)."""
        return (self.left.astype(np.float32) * self.coefficients) @ self.right.T.astype(np.float32)


def compress(delta: np.ndarray, num_bits: int) -> LowRank:
    """The best approximation of a float32 matrix (M, N) that fits into `num_bits`, among a few
    splits of precision.

    One symmetric eigenproblem of the smaller side, so up to some thousands of rows or columns on
    that side.
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
    left, right = _singular_vectors(
        delta, max(sum(count for _, count in split) for split in splits)
    )
    rows = np.linspace(0, rows - 1, min(rows, TRIAL_ROWS)).astype(
        np.int64
    )  # enough of them to choose a split
    part, part_left = np.ascontiguousarray(delta[rows]), np.ascontiguousarray(left[rows])
    best = min(splits, key=lambda split: _fit(part, part_left, right, split).error)
    return _fit(delta, left, right, best)


def _splits(num_bits: int, side: int, rank: int) -> list[Split]:
    """Splits that use the budget: one precision throughout, or a part of the budget for the first
    vectors at 8 or 4 bits.
    """

    def count(bits: int, share: float) -> int:
        return int(num_bits * share / (bits * side + COEFFICIENT_BITS))

    wanted = [((bits, count(bits, 1.0)),) for bits in (8, 4, 3, 2)]
    wanted += [
        ((high, count(high, share)), (low, count(low, 1.0 - share)))
        for high, low in ((8, 3), (8, 2), (4, 2))
        for share in (0.1, 0.25, 0.5)
    ]
    wanted += [((8, count(8, 0.1)), (3, count(3, 0.4)), (2, count(2, 0.5)))]
    capped = {_capped(split, rank) for split in wanted}
    return sorted(split for split in capped if split)


def _capped(split: Split, rank: int) -> Split:
    capped = []
    for bits, count in split:
        if count := min(count, rank):
            capped.append((bits, count))
            rank -= count
    return tuple(capped)


def _singular_vectors(delta: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `rank` left (M, R) and right (N, R) singular vectors, for M >= N, by the
    eigenvectors of the Gram matrix.
    """
    gram = (
        delta.T.astype(np.float64) @ delta.astype(np.float64)
        if delta.size < 4_000_000
        else (delta.T @ delta).astype(np.float64)
    )
    _, vectors = np.linalg.eigh(gram)
    right = np.ascontiguousarray(vectors[:, ::-1][:, :rank]).astype(np.float32)
    left = delta @ right
    return left / np.maximum(np.linalg.norm(left, axis=0), 1e-30), right


def _fit(delta: np.ndarray, left: np.ndarray, right: np.ndarray, split: Split) -> LowRank:
    codes = [
        np.concatenate(
            [
                _rounded(vectors[:, start : start + count], bits)
                for bits, count, start in _stretches(split)
            ],
            axis=1,
        )
        for vectors in (left, right)
    ]
    a, b = (code.astype(np.float32) for code in codes)
    normal = (a.T @ a).astype(np.float64) * (b.T @ b)
    target = np.einsum("mr,mr->r", a, delta @ b).astype(np.float64)
    scale = 1.0 / np.sqrt(np.diag(normal))  # odd integers: no column is zero
    unit = normal * np.outer(scale, scale) + 1e-7 * np.eye(len(scale))
    coefficients = (scale * np.linalg.solve(unit, scale * target)).astype(np.float32)
    error = float(
        np.linalg.norm(delta - (a * coefficients) @ b.T) / max(np.linalg.norm(delta), 1e-30)
    )
    return LowRank(
        split=split, left=codes[0], right=codes[1], coefficients=coefficients, error=error
    )


def _stretches(split: Split) -> list[tuple[int, int, int]]:
    starts = np.cumsum([0, *(count for _, count in split)])
    return [(bits, count, int(start)) for (bits, count), start in zip(split, starts, strict=False)]


_STEPS = {
    2: 0.996,
    3: 0.586,
    4: 0.335,
}  # best uniform steps for a normal distribution, in standard deviations (Max 1960)


def _rounded(vectors: np.ndarray, bits: int) -> np.ndarray:
    """Each column to the nearest of 2^bits evenly spaced levels, as odd integers."""
    deviation = np.sqrt(np.mean(vectors**2, axis=0, keepdims=True))
    step = (
        deviation * _STEPS[bits]
        if bits in _STEPS
        else np.abs(vectors).max(axis=0, keepdims=True) / 2 ** (bits - 1)
    )
    half = 1 << (bits - 1)
    return (2 * np.clip(np.floor(vectors / np.maximum(step, 1e-30)), -half, half - 1) + 1).astype(
        np.int16
    )


def pack_codes(codes: np.ndarray, split: Split) -> bytes:
    """Odd integers (rows, R) as a bit string, column by column, each at its split's bits."""
    columns = []
    for bits, count, start in _stretches(split):
        unsigned = (
            (codes[:, start : start + count].T.reshape(-1) - 1) // 2 + (1 << (bits - 1))
        ).astype(np.uint8)
        columns.append(np.unpackbits(unsigned[:, None], axis=1)[:, 8 - bits :].reshape(-1))
    return np.packbits(np.concatenate(columns)).tobytes() if columns else b""


def unpack_codes(raw: bytes, rows: int, split: Split) -> np.ndarray:
    """The inverse of `pack_codes`, (rows, R) int16.

    Raises ValueError when the bytes are too few.
    """
    bits_left, parts = np.unpackbits(np.frombuffer(raw, dtype=np.uint8)), []
    for bits, count, _ in _stretches(split):
        taken, bits_left = bits_left[: rows * count * bits], bits_left[rows * count * bits :]
        unsigned = (
            taken.reshape(count, rows, bits).dot(1 << np.arange(bits - 1, -1, -1)).astype(np.int16)
        )
        parts.append((2 * (unsigned - (1 << (bits - 1))) + 1).T)
    return np.concatenate(parts, axis=1) if parts else np.zeros((rows, 0), np.int16)


def num_ranks(split: Sequence[Sequence[int]]) -> int:
    return sum(count for _, count in split)
