"""Items that a run asked, from its frozen suites: clusters, weights, questions, answers.

The ledger holds what was answered, not what was asked. A run folder keeps its suites beside the
ledger; where they are gone (or the ledger is in a database and the folder elsewhere) paired figures
take every item as one independent vote.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path

from recycler.errors import RecyclerError
from recycler.scoring.frozen import read_frozen
from recycler.scoring.scorers import item_weight
from recycler.types import Item

SUITES = "suites"
MAX_RUNS = 8  # whose items are kept in memory
Signature = tuple[tuple[str, int, int], ...]


class FrozenItems:
    """Items by id of each run, read once; read again when a suite file has changed."""

    def __init__(self) -> None:
        self._cached: dict[Path, tuple[Signature, dict[str, Item]]] = {}
        self._lock = threading.Lock()

    def of(self, folder: Path) -> Mapping[str, Item]:
        """Items of a run folder by id; empty when it has no suites, or a broken one."""
        paths = sorted((folder / SUITES).glob("*.jsonl"))
        signature = tuple(_signature_of(path) for path in paths)
        with self._lock:
            known = self._cached.get(folder)
            if known is None or known[0] != signature:
                self._cached.pop(folder, None)
                while len(self._cached) >= MAX_RUNS:
                    self._cached.pop(next(iter(self._cached)))
                known = self._cached[folder] = (signature, _read(paths))
            return known[1]


def _signature_of(path: Path) -> tuple[str, int, int]:
    stat = path.stat()
    return path.name, stat.st_mtime_ns, stat.st_size


def _read(paths: Iterable[Path]) -> dict[str, Item]:
    found: dict[str, Item] = {}
    for path in paths:
        try:
            found.update((item.id, item) for item in read_frozen(path).items)
        except (RecyclerError, OSError, ValueError):
            return {}  # a figure with some clusters would be wrong in a way that nobody sees
    return found


def clusters_and_weights(
    items: Mapping[str, Item], ids: Iterable[Hashable], metric: str
) -> tuple[dict[Hashable, str], dict[Hashable, float]] | None:
    """Clusters and weights by item id, for a paired difference.

    They are those of the scores' own errors. None when an item is unknown.
    """
    clusters: dict[Hashable, str] = {}
    weights: dict[Hashable, float] = {}
    for name in ids:
        item = items.get(str(name))
        if item is None:
            return None
        clusters[name] = item.cluster or item.id
        weights[name] = item_weight(item, metric)
    return clusters, weights
