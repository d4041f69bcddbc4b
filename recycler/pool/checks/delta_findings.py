"""Findings on deltas: a wrong base, and deltas too large for a merge method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recycler.pool.checks.findings import Finding, refuse, warn
from recycler.pool.geometry.delta_profile import DeltaProfile, MemberDelta
from recycler.types import Checkpoint, Pool

DROP_METHODS = frozenset({"dare_linear", "dare_ties", "della", "della_linear"})


# a member this many times farther from the base than the others are probably has another base
OUTLIER = 10.0
NEARER = 4.0  # a candidate this many times nearer than the base is the base


def delta_findings(
    pool: Pool, profile: DeltaProfile, method: str, settings: Mapping[str, Any]
) -> list[Finding]:
    """A wrong base, and deltas too large for the method; empty without a base."""
    if pool.base is None:
        return []
    findings = []
    for index, (member, delta) in enumerate(zip(pool.members, profile.members, strict=True)):
        if delta.cosine < settings["base_cosine"]:
            findings.append(
                refuse(
                    "wrong_base",
                    member,
                    f"is no relative of the base (cosine of their matrices {delta.cosine:.2f}, "
                    f"norm of the delta {delta.relative:.2f} of the base's)",
                    "Give the checkpoint it was trained from as base",
                    unsafe=False,
                )
            )
            continue
        findings += _nearer(pool, profile, index, member, delta, method, settings)
        findings += _too_large(member, delta, method, settings)
    return findings


def _nearer(
    pool: Pool,
    profile: DeltaProfile,
    index: int,
    member: Checkpoint,
    delta: MemberDelta,
    method: str,
    settings: Mapping[str, Any],
) -> list[Finding]:
    num, own = len(pool.members), profile.to_base[index]
    nearer = [
        other
        for other in range(num, len(profile.names))
        if profile.distances[index][other] * NEARER < own
    ]
    if nearer:
        best = min(nearer, key=lambda other: profile.distances[index][other])
        return [
            refuse(
                "wrong_base",
                member,
                f"is {own / max(profile.distances[index][best], 1e-12):.0f} times nearer to "
                f"{profile.names[best]!r} than to the base",
                f"Give {profile.names[best]!r} as base",
                unsafe=False,
            )
        ]
    if delta.p99 <= settings["dare_warn"]:
        return []
    others = sorted(profile.to_base[other] for other in range(num) if other != index)
    if others and own > OUTLIER * others[len(others) // 2] > 0:
        said = (
            f"is {own / others[len(others) // 2]:.0f} times farther from the base than the other "
            f"members (p99 of |delta| {delta.p99:.2g})"
        )
        remedy = "It was probably trained from another base; leave it out, or merge it apart"
        return [
            refuse("wrong_base", member, said, remedy, unsafe=False)
            if method in DROP_METHODS
            else warn("wrong_base", member, said, remedy)
        ]
    siblings = sorted(
        profile.distances[index][other]
        for other in range(num)
        if other != index and profile.distances[index][other] > 0
    )
    if siblings and siblings[len(siblings) // 2] * NEARER < own:
        return [
            warn(
                "wrong_base",
                member,
                f"is {own / siblings[len(siblings) // 2]:.0f} times nearer to the other members "
                f"than to the base (p99 of |delta| {delta.p99:.2g})",
                "They share a nearer ancestor; give that as base if you have it",
            )
        ]
    return []


def _too_large(
    member: Checkpoint, delta: MemberDelta, method: str, settings: Mapping[str, Any]
) -> list[Finding]:
    if delta.p99 <= settings["dare_warn"]:
        return []
    said = f"has large deltas: p50 {delta.p50:.2g}, p99 {delta.p99:.2g}, max {delta.max:.2g}"
    if method not in DROP_METHODS:
        return (
            [
                warn(
                    "delta_size",
                    member,
                    said,
                    "DARE and DELLA would break it; widen is made for such members",
                )
            ]
            if delta.p99 > settings["dare_refuse"]
            else []
        )
    if delta.p99 > settings["dare_refuse"]:
        return [
            refuse(
                "delta_size",
                member,
                f"{said}; {method} drops most of a delta, which breaks above "
                f"{settings['dare_refuse']:g}",
                "Use linear, ties or widen, or give its true base; dare_refuse moves the limit",
                unsafe=False,
            )
        ]
    return [
        warn(
            "delta_size",
            member,
            f"{said}; {method} may lose it above {settings['dare_warn']:g}",
            "Keep the density high, or use linear or ties",
        )
    ]
