"""The port that every inference engine fills: weights in place, greedy text, log-likelihoods.

Nothing else.
"""

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
        """Put the recipe's merge into the live weights, drop every cache that knew the old ones;
        give the weights digest.

        After an error the engine is dirty: it refuses to answer until an `apply` has succeeded.
        """

    def generate(
        self, requests: Sequence[GenerateRequest], watch: Watch | None = None
    ) -> list[Completion]:
        """Greedy completions, in the order of the requests; text ends before the first stop string.

        With `watch` each is handed on as it ends; raises HopelessError, with the engine clean, when
        its gate closes.
        """

    def loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
        """Natural-log probabilities of continuations, teacher-forced, in the order of the requests."""

    def close(self) -> None:
        """Give back memory and end child processes."""


class SideBySide(Engine, Protocol):
    """An engine that can also hold several linear merges of folded adapters beside the live
    weights, and answer for all in one batch.
    """

    def side_by_side(self, recipes: Sequence[Recipe]) -> tuple[str, ...]:
        """Put the base into the live weights and load each recipe, unmerged; their names, for
        `merge` of requests, hold until the next `apply`.

        Answers differ from those of the merge by rounding. Raises UsageError for a recipe that is
        no plain linear merge.
        """
