"""What runs inside vLLM's worker: the pool, mapped to views of the live parameters, and the merge into them.

vLLM adds `RecyclerWorker` to its worker's base classes and calls its methods by name; only strings cross processes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from recycler.engines.live import merge_live
from recycler.errors import Problem, RecyclerError, UnsafeInputError, UsageError
from recycler.ledger.codec import recipe_from_json
from recycler.pool.catalog import local_path, open_checkpoint, remote_url
from recycler.pool.headers import FLOAT_DTYPES
from recycler.pool.tensors import TORCH_DTYPES, ResidentPool
from recycler.types import Checkpoint, Pool

KINDS = {kind.__name__: kind for kind in (UsageError, UnsafeInputError)}
SHOWN = 20  # problems that are told; a wrong architecture has hundreds of the same


class RecyclerWorker:
    """Mixed into vLLM's worker, whose `model_runner` holds the model. Names are prefixed: vLLM refuses clashes."""

    def recycler_start(self, pool_json: str, dtype: str) -> str:
        """Open the pool, map its tensors to live weights and prove the map by comparing every bit."""
        return _answer(lambda: self._recycler_map(pool_json, dtype))

    def recycler_apply(self, recipe_json: str) -> str:
        """Merge a recipe into the live weights; gives the digest of what they then hold."""
        return _answer(lambda: self._recycler_merge(recipe_json))

    def _recycler_map(self, pool_json: str, dtype: str) -> str:
        pool = pool_from_json(pool_json)
        self._recycler_pool = ResidentPool(pool)
        self._recycler_views = live_views(self.model_runner.model, pool.template)
        check_views(self._recycler_views, self._recycler_pool, TORCH_DTYPES[dtype])
        return str(len(self._recycler_views))

    def _recycler_merge(self, recipe_json: str) -> str:
        return merge_live(recipe_from_json(recipe_json), self._recycler_pool, self._recycler_views)


def _answer(work) -> str:
    """JSON of a result, or of the problems of an error of ours; anything else is a bug and is raised."""
    try:
        return json.dumps({"result": work()})
    except RecyclerError as error:
        problems = [[problem.thing, problem.cause, problem.remedy, problem.where] for problem in error.problems]
        return json.dumps({"kind": type(error).__name__, "problems": problems})


def read_answer(answer: str) -> str:
    """The result that `_answer` packed; raises the error that it packed."""
    found = json.loads(answer)
    if "problems" in found:
        raise KINDS.get(found["kind"], RecyclerError)(
            [Problem(thing=thing, cause=cause, remedy=remedy, where=where) for thing, cause, remedy, where in found["problems"]])
    return found["result"]


# ---------------------------------------------------------------- the pool as text

def pool_to_json(pool: Pool) -> str:
    """Names and places of a pool; its headers are read again where they are needed."""
    return json.dumps({"members": [[member.name, _anywhere(member.location)] for member in pool.members],
                       "base": [pool.base.name, _anywhere(pool.base.location)] if pool.base else None})


def _anywhere(location: str) -> str:
    """A location that means the same in another working folder; that of a bucket does already."""
    return location if remote_url(location) else str(Path(local_path(location)).absolute())


def pool_from_json(text: str) -> Pool:
    found = json.loads(text)
    return Pool(members=tuple(open_checkpoint(location, name) for name, location in found["members"]),
                base=open_checkpoint(found["base"][1], found["base"][0]) if found["base"] else None)


# ---------------------------------------------------------------- checkpoint names and live parameters

def live_views(model: nn.Module, template: Checkpoint) -> dict[str, Tensor]:
    """Checkpoint name -> view of the live parameter's memory that holds that tensor.

    A fused parameter (qkv_proj, gate_up_proj) is cut into rows in the order the model itself declares; an embedding padded
    to a round vocabulary gives its first rows. Raises UnsafeInputError when a tensor has no place, two share one, or live
    memory is left that no tensor fills.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    padded = {f"{name}.weight" for name, module in model.named_modules() if hasattr(module, "org_vocab_size")}
    packed = _packed_parts(getattr(model, "packed_modules_mapping", {}))
    views: dict[str, Tensor] = {}
    problems: list[Problem] = []
    for name, info in template.tensors.items():
        view = _whole(parameters.get(name), info.shape, padded=name in padded)
        if view is None:
            view = _row_slice(name, template, parameters, packed)
        if view is None or tuple(view.shape) != info.shape:
            problems.append(_misfit(name, "has no place in vLLM's model"))
        else:
            views[name] = view
    problems += _overlaps(views) + _uncovered(views, parameters, padded)
    if problems:
        raise UnsafeInputError(problems[:SHOWN])
    return views


def check_views(views: Mapping[str, Tensor], resident: ResidentPool, dtype: torch.dtype) -> None:
    """Raise UnsafeInputError unless every view holds, bit for bit, what the pool's template says."""
    template = resident.pool.template
    problems = []
    for name, view in views.items():
        expected = resident.tensor(template.name, name)
        if template.tensors[name].dtype in FLOAT_DTYPES:
            expected = expected.to(dtype)
        if view.dtype != expected.dtype or not torch.equal(view.detach().cpu(), expected):
            problems.append(_misfit(name, "is not loaded by vLLM as the checkpoint stores it"))
    if problems:
        raise UnsafeInputError(problems[:SHOWN])


def _misfit(name: str, cause: str) -> Problem:
    return Problem(thing=f"tensor {name!r}", cause=cause, remedy="This model cannot be swapped in place by vLLM; use engine: transformers")


def _packed_parts(mapping: Mapping[str, list[str]]) -> dict[str, tuple[str, list[str]]]:
    """'q_proj' -> ('qkv_proj', ['q_proj', 'k_proj', 'v_proj']) for every part of every fused module."""
    return {part: (fused, list(parts)) for fused, parts in mapping.items() if len(parts) > 1 for part in parts}


def _whole(parameter: Tensor | None, shape: tuple[int, ...], *, padded: bool) -> Tensor | None:
    if parameter is None:
        return None
    return parameter.data[: shape[0]] if padded else parameter.data


def _row_slice(name: str, template: Checkpoint, parameters: Mapping[str, Tensor], packed: Mapping[str, tuple[str, list[str]]]) -> Tensor | None:
    """The rows of a fused parameter that belong to `name`: those after its earlier siblings."""
    module, _, kind = name.rpartition(".")
    parent, _, part = module.rpartition(".")
    if part not in packed:
        return None
    fused, parts = packed[part]
    siblings = [f"{parent}.{sibling}.{kind}" for sibling in parts]
    parameter = parameters.get(f"{parent}.{fused}.{kind}")
    if parameter is None or any(sibling not in template.tensors for sibling in siblings):
        return None
    rows = [template.tensors[sibling].shape[0] for sibling in siblings]
    if sum(rows) != parameter.shape[0]:
        return None
    start = sum(rows[: parts.index(part)])
    return parameter.data[start : start + template.tensors[name].shape[0]]


def _overlaps(views: Mapping[str, Tensor]) -> list[Problem]:
    """Names whose memory another name fills too: tied weights that the checkpoint stores twice."""
    seen: dict[int, str] = {}
    problems = []
    for name, view in views.items():
        if view.numel() and (other := seen.setdefault(view.data_ptr(), name)) != name:
            problems.append(Problem(thing=f"tensor {name!r}", cause=f"is tied to {other!r}, yet the checkpoint stores both", remedy="Save the checkpoint again with save_pretrained, which keeps one of them"))
    return problems


def _uncovered(views: Mapping[str, Tensor], parameters: Mapping[str, Tensor], padded: set[str]) -> list[Problem]:
    """Live parameters of which some element belongs to no tensor of the checkpoint; padding rows do not count."""
    filled: dict[int, int] = {}
    for view in views.values():
        filled[view.untyped_storage().data_ptr()] = filled.get(view.untyped_storage().data_ptr(), 0) + view.numel()
    return [Problem(thing=f"vLLM's parameter {name!r}", cause="is not filled by the checkpoint's tensors", remedy="The engine runs another architecture than the pool")
            for name, parameter in parameters.items()
            if (found := filled.get(parameter.untyped_storage().data_ptr(), 0)) != parameter.numel() and not (name in padded and 0 < found)]
