"""Findings on deltas: a wrong base, and deltas too large for a merge method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    findings: list[Finding] = []
    for index, (member, delta) in enumerate(zip(pool.members, profile.members, strict=True)):
        if delta.cosine < settings["base_cosine"]:
            cause = (
                f"is no relative of the base (cosine of their matrices {delta.cosine:.2f}, "
                f"norm of the delta {delta.relative:.2f} of the base's)"
            )
            remedy = "Give the checkpoint it was trained from as base"
            findings.append(refuse("wrong_base", member, cause, remedy, unsafe=False))
            continue
        found = _nearer_candidate(member, index, profile, len(pool.members))
        if found is None and delta.p99 > settings["dare_warn"]:
            found = _far_from_base(member, index, profile, len(pool.members), method)
        if found is not None:
            findings.append(found)
        findings += _too_large(member, delta, method, settings)
    return findings


def _nearer_candidate(
    member: Checkpoint, index: int, profile: DeltaProfile, num_members: int
) -> Finding | None:
    """Another checkpoint that is much nearer to a member than the base is."""
    distances, own = profile.distances[index], profile.to_base[index]
    candidates = range(num_members, len(profile.names))
    best = min(candidates, key=lambda other: distances[other], default=None)
    if best is None or distances[best] * NEARER >= own:
        return None
    return refuse(
        "wrong_base",
        member,
        f"is {own / max(distances[best], 1e-12):.0f} times nearer to "
        f"{profile.names[best]!r} than to the base",
        f"Give {profile.names[best]!r} as base",
        unsafe=False,
    )


def _far_from_base(
    member: Checkpoint, index: int, profile: DeltaProfile, num_members: int, method: str
) -> Finding | None:
    """A member that is farther from the base than from its siblings, or than they are from it."""
    own, p99 = profile.to_base[index], profile.members[index].p99
    siblings = [other for other in range(num_members) if other != index]
    usual = _upper_median(profile.to_base[other] for other in siblings)
    if own > OUTLIER * usual > 0:
        cause = (
            f"is {own / usual:.0f} times farther from the base than the other "
            f"members (p99 of |delta| {p99:.2g})"
        )
        remedy = "It was probably trained from another base; leave it out, or merge it apart"
        if method in DROP_METHODS:
            return refuse("wrong_base", member, cause, remedy, unsafe=False)
        return warn("wrong_base", member, cause, remedy)
    distances = [profile.distances[index][other] for other in siblings]
    apart = _upper_median(distance for distance in distances if distance > 0)
    if apart > 0 and apart * NEARER < own:
        cause = (
            f"is {own / apart:.0f} times nearer to the other members "
            f"than to the base (p99 of |delta| {p99:.2g})"
        )
        remedy = "They share a nearer ancestor; give that as base if you have it"
        return warn("wrong_base", member, cause, remedy)
    return None


def _upper_median(values: Iterable[float]) -> float:
    """The middle value, the larger of two; 0 of none."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else 0.0


def _too_large(
    member: Checkpoint, delta: MemberDelta, method: str, settings: Mapping[str, Any]
) -> list[Finding]:
    """Deltas from which a method that drops most of them would lose what was trained."""
    if delta.p99 <= settings["dare_warn"]:
        return []
    cause = f"has large deltas: p50 {delta.p50:.2g}, p99 {delta.p99:.2g}, max {delta.max:.2g}"
    is_beyond = delta.p99 > settings["dare_refuse"]
    if method not in DROP_METHODS:
        remedy = "DARE and DELLA would break it; widen is made for such members"
        return [warn("delta_size", member, cause, remedy)] if is_beyond else []
    if is_beyond:
        cause += f"; {method} drops most of a delta, which breaks above {settings['dare_refuse']:g}"
        remedy = "Use linear, ties or widen, or give its true base; dare_refuse moves the limit"
        return [refuse("delta_size", member, cause, remedy, unsafe=False)]
    cause += f"; {method} may lose it above {settings['dare_warn']:g}"
    remedy = "Keep the density high, or use linear or ties"
    return [warn("delta_size", member, cause, remedy)]
