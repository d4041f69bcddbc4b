"""Checks of a job whose proposals are scored side by side, as sums of adapters, without merging."""

from __future__ import annotations

from dataclasses import replace

from recycler.errors import Problem, RecyclerError, raise_problems
from recycler.run.prepared import PreparedJob


def lora_batch_warnings(prepared: PreparedJob, *, look_inside: bool) -> list[str]:
    """Warnings of a job with engine.lora_batch or engine.adapters.

    Raises UsageError or UnsafeInputError unless every proposal is a sum of the members' adapters
    and the engine can hold several. Members in a bucket are compared with their adapters where they
    are read whole, by each engine as it starts.
    """
    engine, document = prepared.job.engine, prepared.document
    if engine.lora_batch > 1:
        raise_problems(check_lora_batch(prepared))
        _check_adapters(prepared, look_inside)
        return _rounding_warnings(prepared)
    if engine.adapters:
        return [
            f"{document.where(('engine', 'adapters'))}: engine.adapters is not used, since "
            "engine.lora_batch is 1: every merge is merged"
        ]
    return []


def check_lora_batch(prepared: PreparedJob) -> list[Problem]:
    """Settings under which proposals are no sums of adapters, or no engine holds several."""
    job, where = prepared.job, _where(prepared)
    options = ", ".join(name for name, *_ in prepared.space.options)
    wrong = [
        (prepared.engine_name != "vllm", "needs engine: vllm"),
        (job.method != "linear", f"is for linear merges, not {job.method!r}"),
        (bool(options), f"is for plain sums, and the space searches {options}"),
        (job.engine.adapters is None, "needs engine.adapters"),
    ]
    remedy = "Mend that, or leave lora_batch out"
    return [
        Problem(thing="engine.lora_batch", cause=cause, remedy=remedy, where=where)
        for is_wrong, cause in wrong
        if is_wrong
    ]


def _check_adapters(prepared: PreparedJob, look_inside: bool) -> None:
    # torch comes with it, which a job without adapters does not need to be planned
    from recycler.engines.vllm.lora import check_folded, read_adapters

    is_remote = any(member.location.is_remote for member in prepared.pool.checkpoints)
    try:
        adapters = read_adapters(prepared.pool, prepared.adapters)
        if look_inside and not is_remote:
            check_folded(prepared.pool, adapters)
    except RecyclerError as error:
        where = _where(prepared)
        problems = [replace(problem, where=problem.where or where) for problem in error.problems]
        raise type(error)(problems) from None


def _rounding_warnings(prepared: PreparedJob) -> list[str]:
    """A warning where the members were folded into a dtype that loses part of each adapter."""
    dtypes = {tensor.dtype for tensor in prepared.pool.template.tensors.values()}
    rounded = dtypes & {"BF16", "F16"}
    if not rounded:
        return []
    return [
        f"{_where(prepared)}: the members were folded into {min(rounded)}, which loses part of "
        "each adapter: merges score worse than the adapters that the search sees. Fold them into "
        "a float32 base (docs/methods.md)"
    ]


def _where(prepared: PreparedJob) -> str:
    return prepared.document.where(("engine", "lora_batch"))
