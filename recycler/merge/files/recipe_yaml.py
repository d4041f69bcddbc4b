"""A recipe as a file: what to merge, where it lies, how; read strictly, written so that it reads
back equal.

    method: ties
    base: {llama: ../llama}
    members: {math: ../math-v3, code: ../code-v1}
    weights: {math: 0.7, code: 0.3}      # or groups: [{name, match, weights, options}, ...]; match is a regex, the first that is found wins
    options: {density: 0.5}              # a list is one number a member; a group's own options go before these
    dtype: bfloat16
    seed: 0
    tokenizer: refuse                    # vocabularies that differ: union and base bring the embeddings' rows to one

Paths are kept as they stand; relative ones are meant from the file's own folder. s3://, gs://,
az://, hf:// and file:// may stand in place of a path.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from recycler.errors import Problem, did_you_mean, raise_problems
from recycler.io.strict_yaml import KeyPath, YamlDocument, dump_yaml, load_yaml, parse_model
from recycler.merge.files.mergekit_yaml import read_mergekit, read_tokenizer_policy
from recycler.merge.methods.options import DTYPES, Options
from recycler.merge.methods.problems import MethodWords, method_problems
from recycler.pool.catalog import open_checkpoint
from recycler.pool.tokens.aligned import POLICIES, TokenizerPolicy, align_vocabularies
from recycler.types import Group, OptionValue, Pool, Recipe

FILE_WORDS = MethodWords(
    no_base="there is no base",
    add_base="Add base: {name: folder}",
    members="members, the recipe has",
    change_members="Name exactly that many",
)


class _GroupEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    match: str = ""
    weights: dict[str, float]
    options: dict[str, bool | int | float | str | list[float]] = {}


class _RecipeFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    method: str
    members: dict[str, str]
    base: dict[str, str] | None = None
    weights: dict[str, float] | None = None
    groups: list[_GroupEntry] | None = None
    options: dict[str, bool | int | float | str | list[float]] = {}
    dtype: str = "bfloat16"
    seed: int = 0
    tokenizer: str = "refuse"


def read_recipe(
    path: Path | str | YamlDocument, text: str | None = None
) -> tuple[Recipe, dict[str, Path]]:
    """The recipe in a file (read already, or in `text`), and the folder of each checkpoint it
    names.

    Raises UsageError with every problem and its file:line.
    """
    document = load_yaml(path, text)
    entry = parse_model(_RecipeFile, document)
    raise_problems(_problems(entry, document))
    groups = (
        entry.groups
        if entry.groups is not None
        else [_GroupEntry(name="all", weights=entry.weights or {})]
    )
    recipe = Recipe(
        method=entry.method,
        members=tuple(entry.members),
        base=next(iter(entry.base), None) if entry.base else None,
        groups=tuple(Group(name=group.name, match=group.match) for group in groups),
        weights=tuple(tuple(group.weights[member] for member in entry.members) for group in groups),
        options=_options(entry),
        dtype=entry.dtype,
        seed=entry.seed,
    )
    folder = Path(document.path).parent
    return recipe, {
        name: _beside(folder, place) for name, place in (entry.members | (entry.base or {})).items()
    }


def _beside(folder: Path, place: str) -> Path:
    """A path as it is meant in a file of `folder`; a URL stands for itself."""
    return Path(place) if "://" in place else folder / place


def _options(entry: _RecipeFile) -> Options:
    """The recipe's options, then those of its groups as NAME@GROUP."""
    pairs = [
        *entry.options.items(),
        *(
            (f"{name}@{group.name}", value)
            for group in entry.groups or []
            for name, value in group.options.items()
        ),
    ]
    return tuple(
        (name, tuple(value) if isinstance(value, list) else value) for name, value in pairs
    )


def recipe_to_yaml(
    recipe: Recipe, sources: Mapping[str, str | Path], *, tokenizer: str = "refuse"
) -> str:
    """The recipe as YAML text that `read_recipe` reads back equal.

    Raises KeyError for a checkpoint without a source.
    """
    data: dict[str, Any] = {"method": recipe.method}
    if recipe.base is not None:
        data["base"] = {recipe.base: str(sources[recipe.base])}
    data["members"] = {name: str(sources[name]) for name in recipe.members}
    rows = [dict(zip(recipe.members, row, strict=True)) for row in recipe.weights]
    if recipe.groups == (Group(name="all"),):
        data["weights"] = rows[0]
    else:
        data["groups"] = [
            {"name": group.name, "match": group.match, "weights": row}
            for group, row in zip(recipe.groups, rows, strict=True)
        ]
        for entry in data["groups"]:
            if own := {
                name.partition("@")[0]: _plain_option(value)
                for name, value in recipe.options
                if name.partition("@")[2] == entry["name"]
            }:
                entry["options"] = own
    if options := {name: _plain_option(value) for name, value in recipe.options if "@" not in name}:
        data["options"] = options
    return dump_yaml(
        data
        | {"dtype": recipe.dtype, "seed": recipe.seed}
        | ({"tokenizer": tokenizer} if tokenizer != "refuse" else {})
    )


def open_recipe(path: Path | str | YamlDocument) -> tuple[Recipe, Pool]:
    """The recipe in a file, ours or mergekit's (told by its key `merge_method`), and the pool of
    checkpoints it names.

    Vocabularies that differ are brought to one, or refused, as `tokenizer` or mergekit's
    `tokenizer_source` says. Raises UsageError or UnsafeInputError with every problem.
    """
    document = load_yaml(path)
    policy: TokenizerPolicy
    if is_mergekit(document.data):
        recipe, sources = read_mergekit(document)
        policy, origin = read_tokenizer_policy(document, recipe, sources)
    else:
        recipe, sources = read_recipe(document)
        policy, origin = document.data.get("tokenizer", "refuse"), recipe.base
    members = tuple(open_checkpoint(sources[name], name) for name in recipe.members)
    pool = Pool(
        members=members,
        base=open_checkpoint(sources[recipe.base], recipe.base) if recipe.base else None,
    )
    return recipe, align_vocabularies(pool, policy, origin)


def is_mergekit(data: Any) -> bool:
    """Whether a file's data are mergekit's, which has a key that no file of ours has."""
    return isinstance(data, dict) and "merge_method" in data


def _plain_option(value: OptionValue) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _problems(entry: _RecipeFile, document: YamlDocument) -> list[Problem]:
    problems: list[Problem] = []

    def add(key_path: KeyPath, thing: str, cause: str, remedy: str) -> None:
        problems.append(
            Problem(thing=thing, cause=cause, remedy=remedy, where=document.where(key_path))
        )

    places = {group.name: index for index, group in enumerate(entry.groups or [])}

    def where(key_path: KeyPath) -> str:
        """The line of the method, or of an option: its group's, where the file has that group."""
        if key_path[0] != "options":
            return document.where(("method",))
        bare, _, group = str(key_path[1]).partition("@")
        if group in places:
            return document.where(("groups", places[group], "options", bare))
        return document.where(key_path)

    problems += method_problems(
        entry.method,
        FILE_WORDS,
        has_base=bool(entry.base),
        num_members=len(entry.members),
        options=_options(entry),
        groups=list(places),
        where=where,
    )
    if entry.dtype not in DTYPES:
        add(("dtype",), f"dtype {entry.dtype!r}", "unknown", did_you_mean(entry.dtype, DTYPES))
    if entry.tokenizer not in POLICIES:
        add(
            ("tokenizer",),
            f"tokenizer {entry.tokenizer!r}",
            "is no policy for vocabularies that differ",
            f"Write one of {', '.join(POLICIES)}",
        )
    if not entry.members:
        add(("members",), "members", "empty", "Name at least one: {name: folder}")
    if entry.base and (len(entry.base) != 1 or set(entry.base) & set(entry.members)):
        add(
            ("base",),
            "base",
            "is not exactly one checkpoint with a name of its own",
            "Write base: {name: folder}",
        )
    if (entry.weights is None) == (entry.groups is None) or entry.groups == []:
        add(
            (),
            "weights and groups",
            "exactly one of them is needed",
            "weights: for one row, groups: for more",
        )
    rows = [(("weights",), entry.weights)] if entry.weights is not None else []
    for name in {
        group.name
        for group in entry.groups or []
        if "@" in group.name or [other.name for other in entry.groups].count(group.name) > 1
    }:
        add(
            ("groups",),
            f"group {name!r}",
            "has a name with an @, or that another group has",
            "Give each group a word of its own",
        )
    for index, group in enumerate(entry.groups or []):
        rows.append((("groups", index, "weights"), group.weights))
        try:
            re.compile(group.match)
        except re.error as error:
            add(
                ("groups", index, "match"),
                f"match {group.match!r}",
                f"is not a regular expression ({error})",
                "Escape special characters with a backslash",
            )
    for key_path, row in rows:
        for name in row.keys() ^ entry.members.keys():
            cause = "is no member" if name in row else "has no weight"
            add(
                (*key_path, name),
                f"{name!r}",
                cause,
                did_you_mean(name, entry.members) if name in row else "Give 0 to leave it out",
            )
        for name, value in row.items():
            if not math.isfinite(value):
                add((*key_path, name), f"weight of {name!r}", f"is {value}", "Give a finite number")
    return problems
