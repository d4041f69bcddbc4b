"""A recipe as a file: read strictly, written so that it reads back equal.

    method: ties
    base: {llama: ../llama}
    members: {math: ../math-v3, code: ../code-v1}
    weights: {math: 0.7, code: 0.3}
    options: {density: 0.5}     # a list is one number per member
    dtype: bfloat16
    seed: 0
    tokenizer: refuse           # or union, base: bring vocabularies that differ to one

In place of weights, `groups: [{name, match, weights, options}, ...]`, where match is a regex, the
first that is found wins, and a group's own options go before the recipe's. Paths are kept as they
stand; relative ones are meant from the file's own folder. s3://, gs://, az://, hf:// and file://
may stand in place of a path.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from recycler.errors import Problem, did_you_mean, raise_problems
from recycler.io.strict_yaml import KeyPath, YamlDocument, dump_yaml, load_yaml, parse_model
from recycler.location import parse_location
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
    """The recipe in a file, and the folder of each checkpoint that it names.

    The file may have been read already, or be given as `text`. Raises UsageError with every problem
    and its file:line.
    """
    document = load_yaml(path, text)
    entry = parse_model(_RecipeFile, document)
    raise_problems(_problems(entry, document))
    groups = entry.groups
    if groups is None:
        groups = [_GroupEntry(name="all", weights=entry.weights or {})]
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
    return Path(place) if parse_location(place).is_url else folder / place


def _options(entry: _RecipeFile) -> Options:
    """The recipe's options, then those of its groups as NAME@GROUP."""
    pairs = list(entry.options.items())
    for group in entry.groups or []:
        pairs += [(f"{name}@{group.name}", value) for name, value in group.options.items()]
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
            _group_data(recipe, group, row) for group, row in zip(recipe.groups, rows, strict=True)
        ]
    options = {name: _plain_option(value) for name, value in recipe.options if "@" not in name}
    if options:
        data["options"] = options
    data |= {"dtype": recipe.dtype, "seed": recipe.seed}
    if tokenizer != "refuse":
        data["tokenizer"] = tokenizer
    return dump_yaml(data)


def _group_data(recipe: Recipe, group: Group, row: Mapping[str, float]) -> dict[str, Any]:
    """One entry of `groups`, with the options that are the group's own."""
    data: dict[str, Any] = {"name": group.name, "match": group.match, "weights": row}
    own = {}
    for name, value in recipe.options:
        bare, _, group_name = name.partition("@")
        if group_name == group.name:
            own[bare] = _plain_option(value)
    if own:
        data["options"] = own
    return data


def open_recipe(path: Path | str | YamlDocument) -> tuple[Recipe, Pool]:
    """The recipe in a file, ours or mergekit's, and the pool of checkpoints that it names.

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
    """True when a file's data are mergekit's: they have a key that no file of ours has."""
    return isinstance(data, dict) and "merge_method" in data


def _plain_option(value: OptionValue) -> Any:
    return list(value) if isinstance(value, tuple) else value


# ---------------------------------------------------------------- mistakes


def _problems(entry: _RecipeFile, document: YamlDocument) -> list[Problem]:
    """Every mistake in a file that has the right keys, with its line."""
    return [
        *_method_problems(entry, document),
        *_word_problems(entry, document),
        *_checkpoint_problems(entry, document),
        *_group_problems(entry, document),
        *_weight_problems(entry, document),
    ]


def _method_problems(entry: _RecipeFile, document: YamlDocument) -> list[Problem]:
    """Mistakes in the method, its base, and its options."""
    places = {group.name: index for index, group in enumerate(entry.groups or [])}

    def where(key_path: KeyPath) -> str:
        """The line of the method, or of an option: its group's, where the file has that group."""
        if key_path[0] != "options":
            return document.where(("method",))
        bare, _, group = str(key_path[1]).partition("@")
        if group in places:
            return document.where(("groups", places[group], "options", bare))
        return document.where(key_path)

    return method_problems(
        entry.method,
        FILE_WORDS,
        has_base=bool(entry.base),
        num_members=len(entry.members),
        options=_options(entry),
        groups=list(places),
        where=where,
    )


def _word_problems(entry: _RecipeFile, document: YamlDocument) -> Iterator[Problem]:
    """Mistakes in the words for the dtype and for the tokenizer."""
    if entry.dtype not in DTYPES:
        yield Problem(
            thing=f"dtype {entry.dtype!r}",
            cause="unknown",
            remedy=did_you_mean(entry.dtype, DTYPES),
            where=document.where(("dtype",)),
        )
    if entry.tokenizer not in POLICIES:
        yield Problem(
            thing=f"tokenizer {entry.tokenizer!r}",
            cause="is no policy for vocabularies that differ",
            remedy=f"Write one of {', '.join(POLICIES)}",
            where=document.where(("tokenizer",)),
        )


def _checkpoint_problems(entry: _RecipeFile, document: YamlDocument) -> Iterator[Problem]:
    """Mistakes in the names of the members and of the base."""
    if not entry.members:
        yield Problem(
            thing="members",
            cause="empty",
            remedy="Name at least one: {name: folder}",
            where=document.where(("members",)),
        )
    if entry.base and (len(entry.base) != 1 or entry.base.keys() & entry.members.keys()):
        yield Problem(
            thing="base",
            cause="is not exactly one checkpoint with a name of its own",
            remedy="Write base: {name: folder}",
            where=document.where(("base",)),
        )


def _group_problems(entry: _RecipeFile, document: YamlDocument) -> Iterator[Problem]:
    """Mistakes in the groups: none or too many of them, their names, their regexes."""
    groups = entry.groups or []
    if (entry.weights is None) == (entry.groups is None) or entry.groups == []:
        yield Problem(
            thing="weights and groups",
            cause="exactly one of them is needed",
            remedy="weights: for one row, groups: for more",
            where=document.where(()),
        )
    names = [group.name for group in groups]
    for name in set(names):
        if "@" in name or names.count(name) > 1:
            yield Problem(
                thing=f"group {name!r}",
                cause="has a name with an @, or that another group has",
                remedy="Give each group a word of its own",
                where=document.where(("groups",)),
            )
    for index, group in enumerate(groups):
        try:
            re.compile(group.match)
        except re.error as error:
            yield Problem(
                thing=f"match {group.match!r}",
                cause=f"is not a regular expression ({error})",
                remedy="Escape special characters with a backslash",
                where=document.where(("groups", index, "match")),
            )


def _weight_problems(entry: _RecipeFile, document: YamlDocument) -> Iterator[Problem]:
    """Mistakes in the rows of weights: strangers, missing members, numbers that are not finite."""
    rows: list[tuple[KeyPath, dict[str, float]]] = []
    if entry.weights is not None:
        rows.append((("weights",), entry.weights))
    for index, group in enumerate(entry.groups or []):
        rows.append((("groups", index, "weights"), group.weights))
    for key_path, row in rows:
        for name in row.keys() ^ entry.members.keys():
            cause, remedy = "has no weight", "Give 0 to leave it out"
            if name in row:
                cause, remedy = "is no member", did_you_mean(name, entry.members)
            where = document.where((*key_path, name))
            yield Problem(thing=f"{name!r}", cause=cause, remedy=remedy, where=where)
        for name, value in row.items():
            if not math.isfinite(value):
                yield Problem(
                    thing=f"weight of {name!r}",
                    cause=f"is {value}",
                    remedy="Give a finite number",
                    where=document.where((*key_path, name)),
                )
