"""The checks before a recipe is run: the preflight of a job, for the members that it uses.

`recycler merge` and `recycler plan` make them. A recipe of ours is refused what a job is refused. A
mergekit file is warned instead: what mergekit merges stays mergeable.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from recycler.errors import Problem, UsageError, did_you_mean, raise_problems
from recycler.location import DiskLocation
from recycler.merge.methods.registry import MERGE_METHODS
from recycler.pool.checks.preflight import CHECKS, check_pool
from recycler.pool.storage.gathered import GatheredTensor
from recycler.pool.tokens.aligned import AlignedPool
from recycler.types import Checkpoint, Pool, Recipe

OVERRIDE = "--allow"
# warned of, not refused: each value is read exactly and rounded once, to the recipe's own dtype
WARNED = frozenset({"dtypes"})
BY_TOKEN = frozenset({"vocabulary", "tokenizer"})  # settled already by the policy union or base
SAMPLED_TENSORS = 20_000  # tensors of all checkpoints together that are sampled in seconds


def check_merge(
    recipe: Recipe, pool: Pool, *, allow: Collection[str] = (), lenient: bool = False
) -> tuple[Problem, ...]:
    """The warnings of a merge's preflight.

    It looks at headers, configs, tokenizers, a sample of every delta, and digests of members that
    look alike. `allow` names checks whose refusals are warnings; `lenient` allows them all. Raises
    as `check_pool` does.
    """
    _known(allow)
    return check_pool(
        _used(recipe, pool),
        method=recipe.method,
        scan_values=False,
        options=_options(pool, allow, lenient),
    ).warnings


def check_plan(
    recipe: Recipe, pool: Pool, *, allow: Collection[str] = (), lenient: bool = False
) -> tuple[Problem, ...]:
    """The same warnings without a digest of any checkpoint.

    They come from headers alone where sampling would fetch shards or take minutes.
    """
    _known(allow)
    used = _used(recipe, pool)
    near = all(isinstance(checkpoint.location, DiskLocation) for checkpoint in used.checkpoints)
    few = sum(len(checkpoint.tensors) for checkpoint in used.checkpoints) <= SAMPLED_TENSORS
    return check_pool(
        used,
        method=recipe.method,
        scan_values=False,
        look_inside="sample" if near and few else "headers",
        options=_options(pool, allow, lenient),
    ).warnings


def _known(allow: Collection[str]) -> None:
    """Raise UsageError for a name that is no check."""
    raise_problems(
        [
            Problem(
                thing=f"{OVERRIDE} {name}", cause="is no check", remedy=did_you_mean(name, CHECKS)
            )
            for name in allow
            if name not in CHECKS
        ],
        UsageError,
    )


def _options(pool: Pool, allow: Collection[str], lenient: bool) -> dict[str, object]:
    return {
        "allow": tuple(CHECKS) if lenient else (*allow, *WARNED),
        "ignore": tuple(BY_TOKEN) if isinstance(pool, AlignedPool) else (),
        "override": OVERRIDE,
    }


def _used(recipe: Recipe, pool: Pool) -> Pool:
    """The pool without members of weight 0, and without tensors whose rows are reordered.

    Weights of such members are not read by the merge.
    """
    used = list(recipe.members)
    if not MERGE_METHODS[recipe.method].reads_all:
        columns = zip(recipe.members, zip(*recipe.weights, strict=True), strict=True)
        used = [name for name, column in columns if any(column)]
    return Pool(
        members=tuple(_as_stored(pool.find(name)) for name in used or recipe.members),
        base=_as_stored(pool.find(recipe.base)) if recipe.base else None,
    )


def _as_stored(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint without the tensors that are gathered from rows of several."""
    stored = {
        name: info
        for name, info in checkpoint.tensors.items()
        if not isinstance(info, GatheredTensor)
    }
    if len(stored) == len(checkpoint.tensors):
        return checkpoint
    return replace(checkpoint, tensors=stored)
