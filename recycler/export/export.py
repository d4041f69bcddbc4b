"""Write a merge as a Hugging Face folder that anyone can serve.

The folder appears whole or not at all.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from recycler.digest import digest, file_digest, plain, weights_digest
from recycler.errors import Problem, UnsafeInputError, UsageError
from recycler.export.card import model_card
from recycler.io.atomic import atomic_folder, copy_companions
from recycler.location import local_path, parse_location
from recycler.merge.files.mergekit_yaml import recipe_to_mergekit
from recycler.merge.files.recipe_yaml import recipe_to_yaml
from recycler.merge.to_disk import merge_to_folder
from recycler.pool.storage.cache import cache_folder
from recycler.pool.storage.files import local_folder
from recycler.pool.storage.tensors import ResidentPool
from recycler.pool.storage.upload import check_target, upload_folder
from recycler.pool.storage.writer import DEFAULT_SHARD_BYTES
from recycler.pool.tokens.aligned import AlignedPool
from recycler.types import Pool, Recipe, Trial

MANIFEST = "recycler-manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A finished export: its folder, its size, and the digest of its weights."""

    folder: str
    num_tensors: int
    num_bytes: int
    weights_digest: str


def export_recipe(
    recipe: Recipe,
    pool: Pool,
    folder: Path,
    *,
    trial: Trial | None = None,
    title: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    allow_not_finite: bool = False,
    searched: Mapping[str, Sequence[str]] | None = None,
) -> Export:
    """Merge `recipe` into a new folder: weights, config, tokenizer, card, recipe, manifest.

    The manifest with digests is written last. `recipe` is the trial's, or differs from it in dtype
    alone; `searched` is what `searched_test_tasks` tells of its run. Raises UsageError when the
    folder exists and UnsafeInputError when the weights differ from those that were scored (in
    another dtype nothing was scored to compare with), or are not finite; in all these cases, and
    when killed, nothing is left at `folder`.
    """
    if trial is not None and trial.is_unmerged:
        raise UnsafeInputError(
            Problem(
                thing=f"trial {trial.number}",
                cause="was scored unmerged, as one of several adapters in a batch, and its merge "
                "was not",
                remedy="Export a finalist (`recycler front`), whose merge was scored; or merge its "
                "recipe and use `recycler score`",
            )
        )
    with atomic_folder(folder) as aside:
        digests = merge_to_folder(
            recipe,
            ResidentPool(pool),
            aside,
            max_shard_bytes=max_shard_bytes,
            allow_not_finite=allow_not_finite,
        )
        found = weights_digest(digests.items())
        if trial is not None:
            _check_scored(trial, recipe, found)
        _write_config(recipe, pool, aside)
        recipe_text = recipe_to_yaml(recipe, _sources(recipe, pool), tokenizer=_policy(pool))
        (aside / "recipe.yaml").write_text(recipe_text)
        mergekit = _write_mergekit(recipe, pool, aside)
        name = title or folder.name
        card = model_card(
            name, pool, recipe, trial, recipe_text, mergekit=mergekit, searched=searched
        )
        (aside / "README.md").write_text(card)
        total = sum(path.stat().st_size for path in aside.iterdir())
        _write_manifest(recipe, trial, aside, digests, found)
    return Export(
        folder=str(folder), num_tensors=len(digests), num_bytes=total, weights_digest=found
    )


def export_to(
    recipe: Recipe,
    pool: Pool,
    target: str,
    *,
    trial: Trial | None = None,
    title: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    allow_not_finite: bool = False,
    searched: Mapping[str, Sequence[str]] | None = None,
) -> Export:
    """Export a recipe to a folder, or to a prefix of a bucket.

    For a bucket it is merged on this machine's disk first, uploaded with the manifest last, read
    back and compared. Started again after an interruption, the upload goes on where it was. Raises
    as `export_recipe` and `upload_folder` do.
    """
    export = partial(
        export_recipe,
        recipe,
        pool,
        trial=trial,
        title=title,
        max_shard_bytes=max_shard_bytes,
        allow_not_finite=allow_not_finite,
        searched=searched,
    )
    location = parse_location(target)
    if not location.is_url or target.startswith("file://"):
        return export(local_path(target))
    check_target(target)
    with tempfile.TemporaryDirectory(prefix="export-", dir=cache_folder()) as aside:
        folder = Path(aside) / target.rstrip("/").rsplit("/", 1)[-1]
        done = export(folder)
        upload_folder(folder, target)
    return replace(done, folder=target.rstrip("/"))


def _check_scored(trial: Trial, recipe: Recipe, found: str) -> None:
    """Raise UnsafeInputError when a merge of a trial's dtype has another digest than was scored."""
    comparable = trial.weights_digest and trial.recipe.dtype == recipe.dtype
    if comparable and trial.weights_digest != found:
        raise UnsafeInputError(
            Problem(
                thing=f"trial {trial.number}",
                cause="the exported weights are not the ones that were scored: a member's "
                "files have changed since",
                remedy="Put the pool back as it was, or score it again in a new run",
            )
        )


def _write_config(recipe: Recipe, pool: Pool, aside: Path) -> None:
    """Write config.json, and the companions of the template's weights."""
    config = {
        key: value
        for key, value in pool.template.config.items()
        if key not in ("_name_or_path", "torch_dtype")
    }
    config["dtype"] = recipe.dtype
    (aside / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    copy_companions(local_folder(pool.template), aside)
    if isinstance(pool, AlignedPool):
        pool.write_tokenizer(aside)


def _sources(recipe: Recipe, pool: Pool) -> dict[str, str]:
    """The place of each checkpoint, from whatever folder it is read: absolute paths, and URLs."""
    names = recipe.members if recipe.base is None else (*recipe.members, recipe.base)
    return {name: str(pool.find(name).location.absolute()) for name in names}


def _policy(pool: Pool) -> str:
    return pool.policy if isinstance(pool, AlignedPool) else "refuse"


def _write_mergekit(recipe: Recipe, pool: Pool, aside: Path) -> str:
    """Write the recipe in mergekit's words, where it has them.

    Returns a sentence for the card that says so, or why not.
    """
    try:
        text = recipe_to_mergekit(
            recipe,
            _sources(recipe, pool),
            num_layers=pool.template.num_layers,
            tensors=pool.template.tensors,
            tokenizer=_policy(pool),
        )
    except UsageError as error:  # mergekit has no such method or grouping; our own recipe says it
        reason = error.problems[0]
        return f"mergekit cannot say this merge: {reason.thing} {reason.cause}."
    (aside / "mergekit_config.yml").write_text(text)
    return "The same in mergekit's words is in `mergekit_config.yml`."


def _write_manifest(
    recipe: Recipe, trial: Trial | None, aside: Path, digests: dict[str, str], found: str
) -> None:
    """Write the manifest: digests of the recipe, of the weights and of every file; the scores."""
    scores = None
    if trial is not None:
        scores = {role: plain(trial.scores(role)) for role in ("search", "holdout")}
    manifest = {
        "schema_version": 1,
        "recipe_digest": digest(recipe),
        "weights_digest": found,
        "scores": scores,
        "files": {path.name: _file_facts(path) for path in sorted(aside.iterdir())},
        "tensors": digests,
    }
    (aside / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def _file_facts(path: Path) -> dict[str, Any]:
    """Size and SHA-256; of weights the size alone, since each tensor was hashed while written."""
    facts: dict[str, Any] = {"num_bytes": path.stat().st_size}
    if path.suffix != ".safetensors":
        facts["sha256"] = file_digest(path)
    return facts
