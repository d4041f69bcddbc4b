"""The contents of a pool as a JSON document and as a table: `recycler inspect`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from itertools import takewhile
from typing import Any

from recycler.pool.checks.configs import rope_of
from recycler.pool.checks.delta_findings import delta_findings
from recycler.pool.checks.findings import Finding
from recycler.pool.checks.preflight import DEFAULT_OPTIONS, header_findings
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
    """The pool as plain data with `schema_version`: its checkpoints, and what does not fit.

    A base that the members were not trained from is among the findings. With `deltas` the document
    tells how far each member is from the base, or from the first member where there is none.
    `digests` reads every byte once. Without it headers and a few hundred bytes of each tensor are
    read, and every byte of those checkpoints alone that agree in them. Problems do not raise: they
    are listed, as `recycler run` would refuse them. Raises UnsafeInputError for files that cannot
    be read.
    """
    findings = header_findings(pool)
    made: dict[str, str] = {}
    if digests:
        made, values = digests_and_values(pool.base_first)
        findings += values
    duplicates, found = duplicate_findings(pool, known=made)
    findings += duplicates
    profile = delta_profile(pool) if deltas else None
    if pool.base is not None and (digests or deltas):
        judged = profile or delta_profile(pool, sample=DEFAULT_OPTIONS["sample"])
        findings += delta_findings(pool, judged, "linear", DEFAULT_OPTIONS)
    return {
        "schema_version": SCHEMA_VERSION,
        "base": pool.base.name if pool.base else None,
        "checkpoints": [_checkpoint(one, made.get(one.name)) for one in pool.base_first],
        "identical": _identical(found),
        "findings": list(map(_finding, findings)),
        "deltas": _deltas(profile) if profile else None,
    }


def inspect_table(found: dict[str, Any]) -> str:
    """The document of `inspect_pool` as text: one line per checkpoint, findings, then deltas."""
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
    config = found["checkpoints"][0]["config"]
    told = ", ".join(f"{name} {value}" for name, value in config.items() if value is not None)
    lines = [told, "", _align(rows), ""]
    for finding in found["findings"]:
        lines.append(
            f"{finding['level']}: {finding['thing']} {finding['cause']}. {finding['remedy']}"
        )
    if not found["findings"]:
        lines.append("All checkpoints fit together.")
    if found["deltas"]:
        lines += ["", *_delta_lines(found["deltas"])]
    return "\n".join(lines) + "\n"


def _identical(digests: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Groups of two or more names that have one digest."""
    groups: dict[str, list[str]] = {}
    for name, digest in digests:
        groups.setdefault(digest, []).append(name)
    return sorted(names for names in groups.values() if len(names) > 1)


def _checkpoint(checkpoint: Checkpoint, weights_digest: str | None) -> dict[str, Any]:
    dtypes: Counter[str] = Counter()
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


def _finding(finding: Finding) -> dict[str, str]:
    return {
        "check": finding.check,
        "level": finding.level,
        "thing": finding.problem.thing,
        "cause": finding.problem.cause,
        "remedy": finding.problem.remedy,
    }


def _deltas(profile: DeltaProfile) -> dict[str, Any]:
    return {
        "to": profile.base,
        "sample": profile.sample,
        "members": list(map(_member, profile.members)),
        "similarity": {
            "names": list(profile.names),
            "delta_cosine": [list(row) for row in profile.cosines],
            "distance": [list(row) for row in profile.distances],
            "distance_to_base": list(profile.to_base),
        },
    }


def _member(member: MemberDelta) -> dict[str, Any]:
    return {
        "member": member.member,
        "mean": member.mean,
        "p50": member.p50,
        "p99": member.p99,
        "max": member.max,
        "relative_norm": member.relative,
        "cosine_to_base": member.cosine,
        "layers": list(member.layers),
        "proposed_swap": propose_swap(member),
        "tensors": [asdict(tensor) for tensor in member.tensors],
    }


def propose_swap(member: MemberDelta, threshold: float = 1.0) -> dict[str, int]:
    """Numbers of bottom and top layers with a mean |delta| of at least `threshold` times the mean.

    A language expert changes most at both ends, a task expert in the middle; layer swapping takes
    the ends from the first (Bandarkar et al. 2025, arXiv:2410.01335, section 3). The counts are a
    start for a search, not an answer; each end is at most half of the layers.
    """

    mean = sum(member.layers) / max(len(member.layers), 1)

    def end_of(layers: tuple[float, ...]) -> int:
        large = list(takewhile(lambda value: value >= threshold * mean, layers))
        return min(len(large), len(layers) // 2)

    return {"bottom": end_of(member.layers), "top": end_of(member.layers[::-1])}


def _delta_lines(deltas: dict[str, Any]) -> list[str]:
    rows = [["|delta| to " + deltas["to"], "mean", "p50", "p99", "max", "norm / base", "cosine"]]
    for member in deltas["members"]:
        sizes = [f"{member[key]:.2e}" for key in ("mean", "p50", "p99", "max")]
        ratios = [f"{member[key]:.4f}" for key in ("relative_norm", "cosine_to_base")]
        rows.append([member["member"], *sizes, *ratios])
    lines = [_align(rows)]
    if deltas["sample"]:
        lines.append(f"(from {deltas['sample']:,} elements of each tensor)")
    names, cosines = deltas["similarity"]["names"], deltas["similarity"]["delta_cosine"]
    if len(names) > 1:
        rows = [["cosine of deltas", *names]]
        for name, row in zip(names, cosines, strict=True):
            rows.append([name, *(f"{value:+.2f}" for value in row)])
        lines += ["", _align(rows)]
    for member in deltas["members"]:
        highest = max(member["layers"], default=0.0) or 1.0
        lines += [
            "",
            f"{member['member']}: mean |delta| by layer; layer_swap might take bottom "
            f"{member['proposed_swap']['bottom']}, top {member['proposed_swap']['top']}",
        ]
        for layer, value in enumerate(member["layers"]):
            bar = "#" * round(_BAR_WIDTH * value / highest)
            lines.append(f"  {layer:>3} {value:.2e} {bar}")
    return lines


def _size(num_bytes: int) -> str:
    if num_bytes >= 1e9:
        return f"{num_bytes / 1e9:,.2f} GB"
    return f"{num_bytes / 1e6:,.2f} MB"


def _align(rows: list[list[str]]) -> str:
    """Rows of cells as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
