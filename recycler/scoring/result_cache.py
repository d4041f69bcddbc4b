"""Answers kept across runs: the same weights, engine and question are not asked twice.

Keyed by the digest of the merged weights themselves, so it does not matter which recipe or pool they came from, and by the
engine's fingerprint, so another version, dtype or batch size asks anew. One small file for each pair of both, replaced as a
whole; a folder on a disk that all workers share serves a cluster.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from json import JSONDecodeError
from pathlib import Path

from recycler.digest import digest
from recycler.ledger.codec import outcomes_from_bytes, outcomes_to_bytes
from recycler.types import Item, Outcome


class ResultCache:
    """A folder of outcomes. A file that cannot be read counts as not there."""

    def __init__(self, folder: Path):
        self._folder = folder

    def read(self, weights_digest: str, fingerprint: str, items: Sequence[Item]) -> dict[str, Outcome]:
        """Known outcomes of `items` by item id."""
        known = self._stored(self._path(weights_digest, fingerprint))
        found = {item.id: known.get(question_digest(item)) for item in items} if known else {}
        return {name: replace(outcome, item=name) for name, outcome in found.items() if outcome is not None}

    def write(self, weights_digest: str, fingerprint: str, items: Iterable[Item], outcomes: Mapping[str, Outcome]) -> None:
        """Add the outcomes of `items`."""
        path = self._path(weights_digest, fingerprint)
        known = self._stored(path) | {key: replace(outcomes[item.id], item=key) for item in items for key in (question_digest(item),)}
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            aside.write_bytes(outcomes_to_bytes(known.values()))
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    def _path(self, weights_digest: str, fingerprint: str) -> Path:
        key = digest([weights_digest, fingerprint])
        return self._folder / key[:2] / f"{key}.outcomes"

    @staticmethod
    def _stored(path: Path) -> dict[str, Outcome]:
        try:
            return {outcome.item: outcome for outcome in outcomes_from_bytes(path.read_bytes())}
        except (OSError, zlib.error, JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
            return {}


def question_digest(item: Item) -> str:
    """All of an item that its outcome depends on; not its name, split or cluster."""
    return digest([item.kind, item.scorer, item.prompt_ids, item.continuations, item.gold, item.num_bytes, item.max_new_tokens, item.stop, item.detail])
