"""Digests of content: the same value has the same digest on every machine.

Standard library only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """The value as dicts, lists and scalars, ready for JSON.

    Dataclasses lose their type, tuples become lists.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces.

    Raises ValueError for NaN and infinities, which JSON cannot hold.
    """
    return json.dumps(
        plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_digest(tensors: Iterable[tuple[str, str]]) -> str:
    """Digest of a model from its (name, tensor digest) pairs, whatever their order or shard."""
    return digest(sorted(tensors))


def derive_seed(*parts: int | str) -> int:
    """A 32-bit seed that depends on every part and nothing else.

    A trial's seed, for example, is derived from (job seed, trial number).
    """
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:4], "big")
