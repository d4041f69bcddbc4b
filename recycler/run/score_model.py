"""Score one checkpoint as it is: the same items, engines and error bars as in a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from recycler.engines import build_engine, default_engine_name, parallel_problems
from recycler.errors import Problem, UsageError, raise_problems
from recycler.pool.catalog import open_checkpoint
from recycler.scoring.evaluate import score_recipe
from recycler.scoring.scorers import item_metrics
from recycler.scoring.suite_file import suite_path
from recycler.scoring.tasks import build_suite, load_tokenizer
from recycler.search.baselines import blend
from recycler.specs.splits import few_problems_warnings
from recycler.specs.suite import context_length
from recycler.types import Item, Objective, Pool, Role, Score


def score_model(
    folder: Path,
    suites: Sequence[str],
    *,
    role: Role,
    engine: str | None,
    dtype: str,
    tensor_parallel: int = 1,
    data_folders: Sequence[Path] = (),
    notes: Callable[[Sequence[str]], None] = lambda notes: None,
) -> tuple[Score, ...]:
    """Every metric of every task of the suites.

    `notes` hears, before the engine starts, of what makes these scores unsure. Raises UsageError,
    NotFoundError or UnsafeInputError.
    """
    pool = Pool(members=(open_checkpoint(folder, name="model"),))
    if tensor_parallel < 1:
        raise UsageError(
            Problem(
                thing="--tensor-parallel",
                cause=f"is {tensor_parallel}",
                remedy="Give the number of GPUs that share the model, 1 or more",
            )
        )
    raise_problems(tuple(parallel_problems(pool, tensor_parallel)))
    tokenizer = load_tokenizer(folder)
    built = [
        build_suite(
            suite_path(name, beside=Path(), data_folders=data_folders),
            tokenizer,
            data_folders=data_folders,
        )
        for name in suites
    ]
    items = [item for suite in built for item in suite.select(role)]
    notes(few_problems_warnings([replace(suite, items=suite.select(role)) for suite in built]))
    ranks = {"tensor_parallel": tensor_parallel} if tensor_parallel > 1 else {}
    live = build_engine(
        engine or default_engine_name(),
        pool,
        dtype=dtype,
        **ranks,
        max_model_len=context_length(items, positions=pool.template.positions),
    )
    try:
        return score_recipe(
            live, blend(pool, dtype, {"model": 1.0}), items, _all_objectives(items), role
        ).scores
    finally:
        live.close()


def _all_objectives(items: Sequence[Item]) -> list[Objective]:
    found = {(item.suite, item.task, metric) for item in items for metric in item_metrics(item)}
    return [
        Objective(suite=suite, task=task, metric=metric, direction="maximize")
        for suite, task, metric in sorted(found)
    ]
