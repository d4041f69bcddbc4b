"""Checks of a pool before it is merged: headers and configs, then values; all problems at once.

Nothing is dropped, padded or converted silently: every difference is named, with its remedy. The
parts: `agreement` compares headers, configs and tokenizers; `scan` reads every byte once, for NaN
and digests; `delta_findings` judges how far the members are from their base.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from recycler.errors import Problem, UnsafeInputError, UsageError, did_you_mean
from recycler.pool.checks.agreement import compare, soundness
from recycler.pool.checks.delta_findings import delta_findings
from recycler.pool.checks.findings import Finding, Level
from recycler.pool.checks.scan import Digests, duplicate_findings, value_findings
from recycler.pool.geometry.delta_profile import DeltaProfile, delta_profile
from recycler.types import Pool

CHECKS = {  # every check by name; a name in options["allow"] turns its refusals into warnings
    "quantized": "integer or 8-bit weights, or a quantization_config",
    "architecture": "another model_type or architecture",
    "tensors": "extra or missing tensors",
    "shapes": "tensors of another shape",
    "dtypes": "tensors of another dtype",
    "vocabulary": "another vocab_size, or more tokens than rows",
    "tokenizer": "another tokenizer.json",
    "special_ids": "other bos, eos or pad ids among members",
    "rope": "other rotary position parameters",
    "config": "config.json differs in something that changes the computation, or contradicts the "
    "tensors",
    "tied_head": "the head is tied in one and not in another, or tied and different",
    "chat_template": "other chat templates (a warning always)",
    "duplicates": "members with identical weights",
    "values": "NaN or infinite values",
    "integers": "integer tensors that differ",
    "wrong_base": "a base that the members were not trained from",
    "delta_size": "deltas too large for methods that drop most of them (DARE, DELLA)",
}
DEFAULT_OPTIONS: dict[str, Any] = {
    "allow": (),  # names of CHECKS
    "ignore": (),  # names of CHECKS that are not told at all
    "override": "",  # the flag with which the user allows a check, told with its refusal
    # p99 of |delta|: above it, dropping starts to hurt (arXiv:2311.03099v1, abstract)
    "dare_warn": 0.005,
    "dare_refuse": 0.03,  # continued pretraining: dropping breaks the model (same place)
    "base_cosine": 0.3,  # median cosine of member and base below which they are not relatives
    "candidates": (),  # other Checkpoints that may be the true base
    "sample": 16_384,  # elements read per tensor for deltas
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolReport:
    """A pool that passed, and what the user should know all the same (`warnings`).

    `digests` are (checkpoint name, whole-model SHA-256 in hex) of those that had to be read in full
    to tell them apart; `deltas` is None without a base.
    """

    num_members: int
    num_tensors: int
    num_bytes: int
    warnings: tuple[Problem, ...] = ()
    digests: Digests = ()
    deltas: DeltaProfile | None = None


def check_pool(
    pool: Pool,
    *,
    duplicates: Literal["refuse", "allow"] = "refuse",
    method: str = "linear",
    scan_values: bool = True,
    look_inside: Literal["digests", "sample", "headers"] = "digests",
    options: Mapping[str, Any] | None = None,
) -> PoolReport:
    """Compare every checkpoint with the template (base, or first member), then read the values.

    Headers, configs and tokenizers come first and take milliseconds; only a pool that passes them
    is read. Then a sample of every tensor gives deltas and likely duplicates, and with
    `scan_values` every byte is read once. `look_inside` stops before digests of likely duplicates
    (sample), or before any weight is read (headers). `options` are those of DEFAULT_OPTIONS. Raises
    UnsafeInputError when checkpoints are broken or do not fit together, UsageError when only the
    choice is wrong: a duplicate, a base they were not trained from, a method too coarse for such
    deltas.
    """
    settings = _settings(options)
    findings = _raise_refusals(header_findings(pool), settings)
    profile: DeltaProfile | None = None
    digests: Digests = ()
    if look_inside != "headers":
        if pool.base:
            profile = delta_profile(
                pool, sample=settings["sample"], candidates=settings["candidates"]
            )
        level: Level = "refuse" if duplicates == "refuse" else "warn"
        found, digests = duplicate_findings(pool, level=level, read=look_inside == "digests")
        findings += found
    if profile is not None:
        findings += delta_findings(pool, profile, method, settings)
    if scan_values:
        findings += value_findings(pool)
    findings = _raise_refusals(findings, settings)
    return PoolReport(
        num_members=len(pool.members),
        num_tensors=len(pool.template.tensors),
        num_bytes=sum(checkpoint.num_bytes for checkpoint in pool.checkpoints),
        warnings=tuple(finding.problem for finding in findings),
        digests=digests,
        deltas=profile,
    )


def header_findings(pool: Pool) -> list[Finding]:
    """Findings from headers, configs and tokenizers alone."""
    findings: list[Finding] = []
    for checkpoint in pool.base_first:
        findings += soundness(checkpoint)
    return findings + compare(pool)


def _settings(options: Mapping[str, Any] | None) -> dict[str, Any]:
    options = dict(options or {})
    problems = [
        Problem(
            thing=f"preflight option {name!r}",
            cause="unknown",
            remedy=did_you_mean(name, DEFAULT_OPTIONS),
        )
        for name in options
        if name not in DEFAULT_OPTIONS
    ]
    problems += [
        Problem(
            thing=f"preflight check {name!r}",
            cause="unknown",
            remedy=did_you_mean(str(name), CHECKS),
        )
        for key in ("allow", "ignore")
        for name in options.get(key, ())
        if name not in CHECKS
    ]
    if problems:
        raise UsageError(problems)
    return {**DEFAULT_OPTIONS, **options}


def _raise_refusals(findings: Iterable[Finding], settings: Mapping[str, Any]) -> list[Finding]:
    """The findings that are told as warnings; raises the refusals that are not allowed."""
    told = [finding for finding in findings if finding.check not in settings["ignore"]]
    refused = [
        finding
        for finding in told
        if finding.level == "refuse" and finding.check not in settings["allow"]
    ]
    if not refused:
        return told
    problems = [_with_override(finding, settings["override"]) for finding in refused]
    if any(finding.unsafe for finding in refused):
        raise UnsafeInputError(problems)
    raise UsageError(problems)


def _with_override(finding: Finding, override: str) -> Problem:
    """The problem of a refusal, and the flag that allows it where there is one."""
    if not override:
        return finding.problem
    remedy = f"{finding.problem.remedy}. To go on all the same: {override} {finding.check}"
    return replace(finding.problem, remedy=remedy)
