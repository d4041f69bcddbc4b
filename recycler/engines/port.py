"""The port that every inference engine fills: weights in place, greedy text, log-likelihoods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from recycler.engines.watch import Watch
from recycler.types import Completion, GenerateRequest, Loglikelihood, LoglikelihoodRequest, Recipe


class Engine(Protocol):
    """One live model whose weights are replaced in place by recipes over one pool.

    Built with the pool (`Engine(pool, dtype=..., max_model_len=...)`); it starts with the weights
    of the pool's template.
    """

    fingerprint: str  # engine, version, dtype and every setting that may change an answer

    def apply(self, recipe: Recipe) -> str:
        """Put the recipe's merge into the live weights, and return the weights digest.

        Every cache that knew the old weights is dropped. After an error the engine is dirty: it
        refuses to answer until an `apply` has succeeded.
        """

    def generate(
        self, requests: Sequence[GenerateRequest], watch: Watch | None = None
    ) -> list[Completion]:
        """Greedy completions, in the order of the requests; text ends before a stop string.

        With `watch` each is handed on as it ends. Raises HopelessError, with the engine clean, when
        its gate closes.
        """

    def loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
        """Natural-log probabilities of continuations, teacher-forced, in the requests' order."""

    def close(self) -> None:
        """Release memory and end child processes."""


class SideBySide(Engine, Protocol):
    """An engine that can also hold several merges of folded adapters beside the live weights.

    They are linear merges, and it answers for all of them in one batch.
    """

    def side_by_side(self, recipes: Sequence[Recipe]) -> tuple[str, ...]:
        """Put the base into the live weights, and load each recipe unmerged.

        Returns their names, for `merge` of requests, which hold until the next `apply`. Answers
        differ from those of the merge by rounding. Raises UsageError for a recipe that is no plain
        linear merge.
        """
