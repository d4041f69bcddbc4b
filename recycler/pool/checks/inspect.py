"""What is in a pool, as one JSON document and as a table for people:

`recycler inspect POOL [--base B] [--deltas]`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from recycler.pool.checks.agreement import compare, soundness
from recycler.pool.checks.configs import rope_of
from recycler.pool.checks.delta_findings import delta_findings
from recycler.pool.checks.preflight import DEFAULT_OPTIONS
from recycler.pool.checks.scan import digests_and_values, duplicate_findings
from recycler.pool.geometry.delta_profile import DeltaProfile, MemberDelta, delta_profile
from recycler.pool.storage.headers import DTYPE_BYTES
from recycler.types import Checkpoint, Pool

SCHEMA_VERSION = 1
_FACTS = (
    "model_type",
    "architectures",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
)
_BAR_WIDTH = 40


def inspect_pool(pool: Pool, *, deltas: bool = False, digests: bool = True) -> dict[str, Any]:
    """The pool as plain data with `schema_version`: checkpoints, which of them are identical, what
    does not fit, a base that they were not trained from among it, and with `deltas` how far each is
    from the base.

    `digests` reads every byte once; without it, headers and a few hundred bytes a tensor, and all
    of those alone that agree in them. Without a base, deltas are to the first member. Problems do
    not raise: they are listed, as `recycler run` would refuse them. Raises UnsafeInputError for
    files that cannot be read.
    """
    checkpoints = (*([pool.base] if pool.base else []), *pool.members)
    findings = [
        finding for checkpoint in checkpoints for finding in soundness(checkpoint)
    ] + compare(pool)
    made, values = digests_and_values(checkpoints) if digests else ({}, [])
    findings += values
    duplicates, found = duplicate_findings(pool, known=made)
    findings += duplicates
    profile = delta_profile(pool) if deltas else None
    if pool.base is not None and (digests or deltas):
        findings += delta_findings(
            pool,
            profile or delta_profile(pool, sample=DEFAULT_OPTIONS["sample"]),
            "linear",
            DEFAULT_OPTIONS,
        )
    return {
        "schema_version": SCHEMA_VERSION,
        "base": pool.base.name if pool.base else None,
        "checkpoints": [
            _checkpoint(checkpoint, made.get(checkpoint.name)) for checkpoint in checkpoints
        ],
        "identical": _identical(found),
        "findings": [
            {
                "check": finding.check,
                "level": finding.level,
                "thing": finding.problem.thing,
                "cause": finding.problem.cause,
                "remedy": finding.problem.remedy,
            }
            for finding in findings
        ],
        "deltas": _deltas(profile) if profile else None,
    }


def inspect_table(found: dict[str, Any]) -> str:
    """The document of `inspect_pool` as text: one line a checkpoint, then what was found, then
    deltas by member and layer.
    """
    rows = [["checkpoint", "parameters", "size", "dtype", "tensors", "shards", "sha256"]]
    for entry in found["checkpoints"]:
        mark = " (base)" if entry["name"] == found["base"] else ""
        rows.append(
            [
                entry["name"] + mark,
                f"{entry['num_parameters'] / 1e6:,.1f} M",
                _size(entry["num_bytes"]),
                "+".join(entry["dtypes"]),
                str(entry["num_tensors"]),
                str(entry["num_shards"]),
                (entry["weights_digest"] or "-")[:12],
            ]
        )
    facts = found["checkpoints"][0]["config"]
    lines = [
        ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None),
        "",
        _align(rows),
        "",
    ]
    lines += [
        f"{finding['level']}: {finding['thing']} {finding['cause']}. {finding['remedy']}"
        for finding in found["findings"]
    ] or ["All checkpoints fit together."]
    if found["deltas"]:
        lines += ["", *_delta_lines(found["deltas"])]
    return "\n".join(lines) + "\n"


def _identical(digests: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Names that have one digest together, two or more each."""
    groups: dict[str, list[str]] = {}
    for name, digest in digests:
        groups.setdefault(digest, []).append(name)
    return sorted(names for names in groups.values() if len(names) > 1)


def _checkpoint(checkpoint: Checkpoint, weights_digest: str | None) -> dict[str, Any]:
    dtypes = Counter()
    for info in checkpoint.tensors.values():
        dtypes[info.dtype] += info.num_bytes
    return {
        "name": checkpoint.name,
        "location": str(checkpoint.location),
        "num_tensors": len(checkpoint.tensors),
        "num_parameters": sum(math.prod(info.shape) for info in checkpoint.tensors.values()),
        "num_bytes": checkpoint.num_bytes,
        "dtypes": [name for name, _ in dtypes.most_common()],
        "bytes_per_element": {name: DTYPE_BYTES[name] for name in dtypes},
        "num_shards": len({info.file for info in checkpoint.tensors.values()}),
        "weights_digest": weights_digest,
        "config": {name: checkpoint.config.get(name) for name in _FACTS},
        "rope": rope_of(checkpoint.config),
    }


def _deltas(profile: DeltaProfile) -> dict[str, Any]:
    return {
        "to": profile.base,
        "sample": profile.sample,
        "members": [
            {
                "member": member.member,
                "mean": member.mean,
                "p50": member.p50,
                "p99": member.p99,
                "max": member.max,
                "relative_norm": member.relative,
                "cosine_to_base": member.cosine,
                "layers": list(member.layers),
                "proposed_swap": propose_swap(member),
                "tensors": [
                    {
                        "name": tensor.name,
                        "mean": tensor.mean,
                        "p50": tensor.p50,
                        "p99": tensor.p99,
                        "max": tensor.max,
                    }
                    for tensor in member.tensors
                ],
            }
            for member in profile.members
        ],
        "similarity": {
            "names": list(profile.names),
            "delta_cosine": [list(row) for row in profile.cosines],
            "distance": [list(row) for row in profile.distances],
            "distance_to_base": list(profile.to_base),
        },
    }


def propose_swap(member: MemberDelta, threshold: float = 1.0) -> dict[str, int]:
    """Bottom and top layers whose mean |delta| is at least `threshold` times the mean over layers.

    A language expert changes most at both ends, a task expert in the middle; layer swapping takes
    the ends from the first (Bandarkar et al. 2025, arXiv:2410.01335, section 3). The counts are a
    start for a search, not an answer; each end is at most half of the layers.
    """
    layers = member.layers
    mean = sum(layers) / max(len(layers), 1)
    ends = []
    for ordered in (layers, layers[::-1]):
        count = next(
            (index for index, value in enumerate(ordered) if value < threshold * mean), len(layers)
        )
        ends.append(min(count, len(layers) // 2))
    return {"bottom": ends[0], "top": ends[1]}


def _delta_lines(deltas: dict[str, Any]) -> list[str]:
    sampled = f", from {deltas['sample']:,} elements of each tensor" if deltas["sample"] else ""
    rows = [["|delta| to " + deltas["to"], "mean", "p50", "p99", "max", "norm / base", "cosine"]]
    rows += [
        [
            member["member"],
            *(f"{member[key]:.2e}" for key in ("mean", "p50", "p99", "max")),
            f"{member['relative_norm']:.4f}",
            f"{member['cosine_to_base']:.4f}",
        ]
        for member in deltas["members"]
    ]
    lines = [_align(rows), *([f"({sampled[2:]})"] if sampled else [])]
    names = deltas["similarity"]["names"]
    if len(names) > 1:
        lines += [
            "",
            _align(
                [
                    ["cosine of deltas", *names],
                    *(
                        [name, *(f"{value:+.2f}" for value in row)]
                        for name, row in zip(
                            names, deltas["similarity"]["delta_cosine"], strict=True
                        )
                    ),
                ]
            ),
        ]
    for member in deltas["members"]:
        highest = max(member["layers"], default=0.0) or 1.0
        lines += [
            "",
            f"{member['member']}: mean |delta| by layer; layer_swap might take bottom "
            f"{member['proposed_swap']['bottom']}, top {member['proposed_swap']['top']}",
        ]
        lines += [
            f"  {layer:>3} {value:.2e} {'#' * round(_BAR_WIDTH * value / highest)}"
            for layer, value in enumerate(member["layers"])
        ]
    return lines


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.2f} MB"


def _align(rows: list[list[str]]) -> str:
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
