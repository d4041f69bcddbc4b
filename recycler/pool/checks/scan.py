"""Findings from the bytes of a pool: values that are not finite, members that are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

from recycler.digest import weights_digest
from recycler.pool.checks.findings import Finding, Level, named, refuse, warn
from recycler.pool.storage.blocks import count_not_finite, read_bytes, tensor_digest
from recycler.pool.storage.headers import DTYPE_BYTES, FLOAT_DTYPES
from recycler.types import Checkpoint, Pool

SAMPLE_BYTES = 512  # from the start, the middle and the end of a tensor
Digests = tuple[tuple[str, str], ...]  # (checkpoint name, SHA-256 in hex of all its weights)


def checkpoint_digest(checkpoint: Checkpoint, spoiled: list[str] | None = None) -> str:
    """Digest of all its weights, whatever their shards; the same as an export's `weights_digest`.

    The names of tensors that are not finite are put into `spoiled`, where that is given.
    """
    return weights_digest(
        (name, tensor_digest(info, spoiled)) for name, info in checkpoint.tensors.items()
    )


def value_findings(pool: Pool, threads: int = 2) -> list[Finding]:
    """NaN, infinities, integer tensors that differ, heads that are tied and differ.

    Reads every byte of the pool once.
    """
    findings: list[Finding] = []
    with ThreadPoolExecutor(threads) as executor:
        for found in executor.map(_not_finite, pool.base_first):
            findings += found
    findings += _integers(pool)
    for checkpoint in pool.base_first:
        findings += _tied_head(checkpoint)
    return findings


def _not_finite(checkpoint: Checkpoint, names: Iterable[str] | None = None) -> list[Finding]:
    """NaN and infinities in these tensors of a checkpoint, or in all."""
    said = []
    for name in checkpoint.tensors if names is None else names:
        info = checkpoint.tensors[name]
        nans, infinities = count_not_finite(info)
        counts = [(nans, "NaN"), (infinities, "infinite")]
        found = " and ".join(f"{count} {kind}" for count, kind in counts if count)
        if found:
            said.append(f"{name}: {found} of {info.num_bytes // DTYPE_BYTES[info.dtype]:,}")
    if not said:
        return []
    cause = f"holds NaN or infinite values in {named(said)}"
    remedy = "That training run broke, or the file did; leave the checkpoint out"
    return [refuse("values", checkpoint, cause, remedy)]


def _integers(pool: Pool) -> list[Finding]:
    """Tensors that are not floating point cannot be merged: they must be equal everywhere."""
    findings = []
    others = [member for member in pool.members if member is not pool.template]
    for name, info in pool.template.tensors.items():
        if info.dtype in FLOAT_DTYPES:
            continue
        wanted = tensor_digest(info)
        for member in others:
            own = member.tensors.get(name)
            if own is not None and tensor_digest(own) != wanted:
                cause = (
                    f"holds other numbers in the {own.dtype} tensor {name!r} than "
                    f"{pool.template.name!r}"
                )
                remedy = "Leave it out: such a tensor cannot be merged"
                findings.append(refuse("integers", member, cause, remedy))
    return findings


def _tied_head(checkpoint: Checkpoint) -> Iterator[Finding]:
    """A stored head that config.json ties to embeddings it differs from: it would be ignored."""
    if checkpoint.config.get("tie_word_embeddings") is not True:
        return
    head = checkpoint.tensors.get("lm_head.weight")
    embeddings = checkpoint.tensors.get("model.embed_tokens.weight")
    if head and embeddings and tensor_digest(head) != tensor_digest(embeddings):
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
    """Digest of each checkpoint by name, and findings of values that are not finite.

    Reads every byte once, and once more of the tensors that are not finite.
    """

    def read(checkpoint: Checkpoint) -> tuple[str, list[Finding]]:
        spoiled: list[str] = []
        digest = checkpoint_digest(checkpoint, spoiled)
        return digest, _not_finite(checkpoint, spoiled)

    digests: dict[str, str] = {}
    findings: list[Finding] = []
    with ThreadPoolExecutor(threads) as executor:
        for checkpoint, (digest, found) in zip(
            checkpoints, executor.map(read, checkpoints), strict=True
        ):
            digests[checkpoint.name] = digest
            findings += found
    return digests, findings


def duplicate_findings(
    pool: Pool,
    *,
    level: Level = "refuse",
    known: Mapping[str, str] = MappingProxyType({}),
    read: bool = True,
) -> tuple[list[Finding], Digests]:
    """Members with identical weights, and the digests that had to be made to know it.

    `known` are digests by name that are made already. A few hundred bytes of every tensor tell most
    members apart. Only those that agree in them are digested in full, or said to look alike where
    `read` is False.
    """
    by_sample: dict[bytes, list[Checkpoint]] = {}
    for checkpoint in pool.base_first:
        by_sample.setdefault(_sample(checkpoint), []).append(checkpoint)
    findings: list[Finding] = []
    digests: dict[str, str] = {}
    for alike in by_sample.values():
        if not read:
            findings += _lookalikes(alike)
        elif len(alike) > 1:
            for checkpoint in alike:
                found = known.get(checkpoint.name) or checkpoint_digest(checkpoint)
                digests[checkpoint.name] = found
            findings += _equals(pool, alike, digests, level)
    return findings, tuple(sorted(digests.items()))


def _lookalikes(alike: Sequence[Checkpoint]) -> list[Finding]:
    """Warnings of checkpoints that have the same sample as the first of them."""
    cause = f"agrees with {alike[0].name!r} in every byte that was sampled"
    remedy = "They are probably the same weights; recycler merge and run compare them whole"
    return [warn("duplicates", checkpoint, cause, remedy) for checkpoint in alike[1:]]


def _equals(
    pool: Pool, alike: Sequence[Checkpoint], digests: Mapping[str, str], level: Level
) -> Iterator[Finding]:
    """Checkpoints that have the digest of an earlier one."""
    originals: dict[str, Checkpoint] = {}
    for checkpoint in alike:
        digest = digests[checkpoint.name]
        original = originals.setdefault(digest, checkpoint)
        if original is checkpoint:
            continue
        cause = f"has the same weights as {original.name!r} ({digest[:12]})"
        if original is pool.base:
            cause = "has the weights of the base: its delta is zero"
            yield warn("duplicates", checkpoint, cause, "It can only dilute a merge; leave it out")
        elif level == "warn":
            yield warn("duplicates", checkpoint, cause, "Their weights act as one")
        else:
            remedy = "Leave one of them out, or set pool.duplicates: allow"
            yield refuse("duplicates", checkpoint, cause, remedy, unsafe=False)


def _sample(checkpoint: Checkpoint) -> bytes:
    """A digest of a few hundred bytes of every tensor."""
    sha = hashlib.sha256()
    for name, info in sorted(checkpoint.tensors.items()):
        sha.update(f"{name} {info.dtype} {info.shape}".encode())
        for start in sorted({0, info.num_bytes // 2, max(info.num_bytes - SAMPLE_BYTES, 0)}):
            sha.update(read_bytes(info, start, min(SAMPLE_BYTES, info.num_bytes - start)))
    return sha.digest()
