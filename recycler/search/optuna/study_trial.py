"""A trial in the terms of an Optuna study, without optuna."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyTrial:
    """One trial in a study's own terms."""

    params: Mapping[str, float]
    values: Sequence[float] | None  # None for a failed trial
    attributes: Mapping[str, Any]
