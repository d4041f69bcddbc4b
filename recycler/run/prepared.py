"""A job that was found sound, with everything that it names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recycler.digest import digest
from recycler.engines import default_engine_name
from recycler.io.strict_yaml import YamlDocument
from recycler.objectives.costs import benchmarks
from recycler.specs.job import JobSpec
from recycler.specs.space import SearchSpace
from recycler.specs.suite import EvalSuite, context_length
from recycler.types import Item, Objective, Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedJob:
    """A job that was found sound: every file read, every name resolved."""

    job: JobSpec
    document: YamlDocument
    pool: Pool
    space: SearchSpace
    suites: tuple[EvalSuite, ...]
    warnings: tuple[str, ...] = ()

    @property
    def objectives(self) -> tuple[Objective, ...]:
        return self.job.searched_objectives

    @property
    def benchmarks(self) -> tuple[Objective, ...]:
        """The objectives that have items: all but the costs."""
        return benchmarks(self.objectives)

    @property
    def adapters(self) -> Path:
        """The folder of the members' LoRA adapters, where the job names one."""
        return (Path(self.document.path).parent / (self.job.engine.adapters or "")).absolute()

    @property
    def items(self) -> tuple[Item, ...]:
        return tuple(item for suite in self.suites for item in suite.items)

    @property
    def engine_name(self) -> str:
        """The engine of the job, or the one that this machine would take."""
        return self.job.engine.name or default_engine_name()

    @property
    def digests(self) -> dict[str, str]:
        """Digests by name of everything that must not change between two sessions of a run."""
        tensors = {
            checkpoint.name: [
                (tensor.name, tensor.dtype, tensor.shape) for tensor in checkpoint.tensors.values()
            ]
            for checkpoint in self.pool.checkpoints
        }
        # the pool says who is left out, and more of budget and workers changes no score
        ignored: dict[str, Any] = {
            "budget": True,
            "engine": {"workers"},
            "earlier": True,
            "pool": {"without"},
        }
        return {
            "job": digest(self.job.model_dump(exclude=ignored)),
            "pool": digest(tensors),
            "space": digest(self.space),
            **{f"suite {suite.name}": suite.digest for suite in self.suites},
            **object_versions(self.pool),
        }

    def max_model_len(self) -> int:
        """Longest prompt plus answer that the engine must take, in tokens.

        Raises UsageError for items that cannot fit.
        """
        return context_length(
            self.items,
            positions=self.pool.template.positions,
            wanted=self.job.engine.max_model_len,
            where=self.document.where(("engine",)),
        )


def object_versions(pool: Pool) -> dict[str, str]:
    """Versions of a pool's objects in buckets, by URL: etags of weights, digests of configs."""
    weights = {
        f"object {tensor.file}": tensor.etag
        for checkpoint in pool.checkpoints
        for tensor in checkpoint.tensors.values()
        if tensor.etag
    }
    configs = {
        f"object {checkpoint.location}/config.json": digest(checkpoint.config)
        for checkpoint in pool.checkpoints
        if checkpoint.location.is_remote
    }
    return weights | configs
