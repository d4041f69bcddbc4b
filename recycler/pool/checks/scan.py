"""Read the bytes of a pool, a block at a time:

NaN and infinite values, digests, members that are the same.

Blocks are read into one buffer and not mapped: memory is bounded, and a file that is cut short
while it is read is an error and not a SIGBUS.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Literal

from recycler.digest import weights_digest
from recycler.pool.checks.findings import Finding, named, refuse, warn
from recycler.pool.storage.blocks import count_not_finite, read_bytes, tensor_digest
from recycler.pool.storage.headers import DTYPE_BYTES, FLOAT_DTYPES
from recycler.types import Checkpoint, Pool

SAMPLE_BYTES = 512  # from the start, the middle and the end of a tensor


def checkpoint_digest(checkpoint: Checkpoint, spoiled: list[str] | None = None) -> str:
    """Digest of all its weights, whatever their shards; the same as an export's `weights_digest`.

    `spoiled` as in `tensor_digest`.
    """
    return weights_digest(
        (name, tensor_digest(info, spoiled)) for name, info in checkpoint.tensors.items()
    )


def value_findings(pool: Pool, threads: int = 2) -> list[Finding]:
    """NaN, infinities, integer tensors that differ, heads that are tied and differ.

    Reads every byte of the pool once.
    """
    checkpoints = (*([pool.base] if pool.base else []), *pool.members)
    with ThreadPoolExecutor(threads) as threads_pool:
        found = list(threads_pool.map(_not_finite, checkpoints))
    return (
        [finding for group in found for finding in group]
        + _integers(pool)
        + [finding for checkpoint in checkpoints for finding in _head(checkpoint)]
    )


def _not_finite(checkpoint: Checkpoint, names: Iterable[str] | None = None) -> list[Finding]:
    """What is not finite in these tensors of a checkpoint, or in all."""
    said = []
    for name in checkpoint.tensors if names is None else names:
        info = checkpoint.tensors[name]
        nans, infinities = count_not_finite(info)
        if nans or infinities:
            counts = " and ".join(
                f"{count} {what}"
                for count, what in ((nans, "NaN"), (infinities, "infinite"))
                if count
            )
            said.append(f"{name}: {counts} of {info.num_bytes // DTYPE_BYTES[info.dtype]:,}")
    return (
        [
            refuse(
                "values",
                checkpoint,
                f"holds NaN or infinite values in {named(said)}",
                "That training run broke, or the file did; leave the checkpoint out",
            )
        ]
        if said
        else []
    )


def _integers(pool: Pool) -> list[Finding]:
    """Tensors that are not floating point cannot be merged: they must be equal everywhere."""
    names = [name for name, info in pool.template.tensors.items() if info.dtype not in FLOAT_DTYPES]
    findings = []
    for name in names:
        wanted = tensor_digest(pool.template.tensors[name])
        findings += [
            refuse(
                "integers",
                member,
                f"holds other numbers in the {member.tensors[name].dtype} tensor {name!r} than "
                f"{pool.template.name!r}",
                "Leave it out: such a tensor cannot be merged",
            )
            for member in pool.members
            if member is not pool.template
            and name in member.tensors
            and tensor_digest(member.tensors[name]) != wanted
        ]
    return findings


def _head(checkpoint: Checkpoint) -> Iterator[Finding]:
    """A stored head that config.json declares tied must be the embeddings, or transformers would
    ignore it.
    """
    head, embeddings = (
        checkpoint.tensors.get("lm_head.weight"),
        checkpoint.tensors.get("model.embed_tokens.weight"),
    )
    if (
        head
        and embeddings
        and checkpoint.config.get("tie_word_embeddings") is True
        and tensor_digest(head) != tensor_digest(embeddings)
    ):
        yield refuse(
            "tied_head",
            checkpoint,
            "has its own lm_head.weight, unlike the embeddings to which config.json ties it",
            "Set tie_word_embeddings to false in all members, or save it tied",
        )


# ---------------------------------------------------------------- duplicates


def digests_and_values(
    checkpoints: Sequence[Checkpoint], threads: int = 2
) -> tuple[dict[str, str], list[Finding]]:
    """Digest of each by name, and what is not finite in them. Reads every byte once."""

    def read(checkpoint: Checkpoint) -> tuple[str, list[Finding]]:
        spoiled: list[str] = []
        digest = checkpoint_digest(checkpoint, spoiled)
        return digest, _not_finite(checkpoint, spoiled)

    with ThreadPoolExecutor(threads) as threads_pool:
        found = list(threads_pool.map(read, checkpoints))
    return {
        checkpoint.name: digest for checkpoint, (digest, _) in zip(checkpoints, found, strict=True)
    }, [finding for _, findings in found for finding in findings]


def duplicate_findings(
    pool: Pool,
    *,
    level: Literal["warn", "refuse"] = "refuse",
    known: Mapping[str, str] = MappingProxyType({}),
    read: bool = True,
) -> tuple[list[Finding], tuple[tuple[str, str], ...]]:
    """Members with identical weights, and the digests that had to be made to know it; those in
    `known` are made already.

    A few hundred bytes of every tensor tell most members apart; only those that agree in them are
    digested in full, or, when not to `read`, said to look alike.
    """
    by_sample: dict[bytes, list[Checkpoint]] = {}
    for checkpoint in (*([pool.base] if pool.base else []), *pool.members):
        by_sample.setdefault(_sample(checkpoint), []).append(checkpoint)
    findings, digests = [], {}
    for alike in by_sample.values():
        if not read:
            findings += [
                warn(
                    "duplicates",
                    checkpoint,
                    f"agrees with {alike[0].name!r} in every byte that was sampled",
                    "They are probably the same weights; recycler merge and run compare them whole",
                )
                for checkpoint in alike[1:]
            ]
            continue
        first: dict[str, Checkpoint] = {}
        for checkpoint in alike if len(alike) > 1 else ():
            digests[checkpoint.name] = digest = known.get(checkpoint.name) or checkpoint_digest(
                checkpoint
            )
            original = first.setdefault(digest, checkpoint)
            if original is pool.base and checkpoint is not original:
                findings.append(
                    warn(
                        "duplicates",
                        checkpoint,
                        "has the weights of the base: its delta is zero",
                        "It can only dilute a merge; leave it out",
                    )
                )
            elif original is not checkpoint:
                how = refuse(
                    "duplicates",
                    checkpoint,
                    f"has the same weights as {original.name!r} ({digest[:12]})",
                    "Leave one of them out, or set pool.duplicates: allow",
                    unsafe=False,
                )
                findings.append(
                    how
                    if level == "refuse"
                    else warn(
                        "duplicates", checkpoint, how.problem.cause, "Their weights act as one"
                    )
                )
    return findings, tuple(sorted(digests.items()))


def _sample(checkpoint: Checkpoint) -> bytes:
    sha = hashlib.sha256()
    for name, info in sorted(checkpoint.tensors.items()):
        sha.update(f"{name} {info.dtype} {info.shape}".encode())
        for start in sorted({0, info.num_bytes // 2, max(info.num_bytes - SAMPLE_BYTES, 0)}):
            sha.update(read_bytes(info, start, min(SAMPLE_BYTES, info.num_bytes - start)))
    return sha.digest()
