"""Answers kept across runs: the same weights, engine and question are not asked twice.

Keyed by the digest of the merged weights themselves, so it does not matter which recipe or pool
they came from; by the engine's fingerprint, so another version, dtype or batch size asks anew; and
by `surroundings`, all else that answers and verdicts depend on: the model's configs and tokenizer,
lm-eval's version, the sandbox's Python and rules. One small file for each such key, replaced as a
whole; a folder on a disk that all workers share serves a cluster.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from recycler.digest import digest
from recycler.io.atomic import atomic_file
from recycler.ledger.codec import outcomes_from_bytes, outcomes_to_bytes
from recycler.pool.storage.files import local_folder
from recycler.scoring.sandbox.parent import judge
from recycler.types import Item, Outcome, Pool

# of a config: say where a model comes from, not what it answers
_IDLE = ("_name_or_path", "transformers_version", "_commit_hash")
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


def surroundings(pool: Pool) -> str:
    """A digest of all else that an answer and its verdict depend on, for a pool on local disk.

    Beside weights, engine and question that is the template's config.json and
    generation_config.json (rope_theta, end-of-text tokens), its tokenizer's files, which turn ids
    into text again, the version of lm-eval, whose checkers some answers go through, and the Python
    and rules that programs are judged by.
    """
    folder = local_folder(pool.template)
    configs = [
        {key: value for key, value in found.items() if key not in _IDLE}
        for found in (pool.template.config, _json(folder / "generation_config.json"))
    ]
    files = [_file_digest(folder / name) for name in _TOKENIZER]
    try:
        lm_eval = version("lm_eval")
    except PackageNotFoundError:
        lm_eval = ""
    return digest([configs, files, lm_eval, judge()])


def _file_digest(path: Path) -> str:
    """SHA-256 of a file, '' where there is none."""
    if not path.is_file():
        return ""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return found


class ResultCache:
    """A folder of outcomes under given `surroundings`.

    A file that cannot be read counts as not there.
    """

    def __init__(self, folder: Path, surroundings: str):
        self._folder, self._surroundings = folder, surroundings

    def read(
        self, weights_digest: str, fingerprint: str, items: Sequence[Item]
    ) -> dict[str, Outcome]:
        """Known outcomes of `items` by item id."""
        known = self._stored(self._path(weights_digest, fingerprint))
        if not known:
            return {}
        found: dict[str, Outcome] = {}
        for item in items:
            outcome = known.get(question_digest(item))
            if outcome is not None:
                found[item.id] = replace(outcome, item=item.id)
        return found

    def write(
        self,
        weights_digest: str,
        fingerprint: str,
        items: Iterable[Item],
        outcomes: Mapping[str, Outcome],
    ) -> None:
        """Add the outcomes of `items`."""
        path = self._path(weights_digest, fingerprint)
        known = self._stored(path)
        for item in items:
            key = question_digest(item)
            known[key] = replace(outcomes[item.id], item=key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as aside:
            aside.write_bytes(outcomes_to_bytes(known.values()))

    def _path(self, weights_digest: str, fingerprint: str) -> Path:
        key = digest([weights_digest, fingerprint, self._surroundings])
        return self._folder / key[:2] / f"{key}.outcomes"

    @staticmethod
    def _stored(path: Path) -> dict[str, Outcome]:
        try:
            return {outcome.item: outcome for outcome in outcomes_from_bytes(path.read_bytes())}
        except (OSError, zlib.error, JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
            return {}


def question_digest(item: Item) -> str:
    """A digest of all of an item that its outcome depends on: not of name, split or cluster."""
    return digest(
        [
            item.kind,
            item.scorer,
            item.prompt_ids,
            item.continuations,
            item.gold,
            item.num_bytes,
            item.max_new_tokens,
            item.stop,
            item.detail,
        ]
    )
