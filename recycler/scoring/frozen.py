"""Frozen suites on disk: build once, look at, compare.

JSON lines: a header with the digest, then one item a line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from recycler.digest import canonical_json
from recycler.errors import NotFoundError, Problem, UnsafeInputError, UsageError
from recycler.io.atomic import atomic_file
from recycler.objectives.stats import minimal_detectable_difference
from recycler.scoring.scorers import item_metrics
from recycler.scoring.suite_file import suite_path
from recycler.scoring.tasks import build_suite, load_tokenizer
from recycler.specs.suite import EvalSuite
from recycler.types import Item

SCHEMA_VERSION = 1
_BYTES_PER_TOKEN = 3.5  # English text; only for estimates of length


def write_frozen(suite: EvalSuite, path: Path) -> None:
    """Write a suite to `path`; the file appears whole or not at all."""
    header = {
        "kind": "recycler-suite",
        "schema_version": SCHEMA_VERSION,
        "name": suite.name,
        "digest": suite.digest,
        "num_items": len(suite.items),
        "test_tasks": suite.test_tasks,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as aside, aside.open("w", encoding="utf-8") as file:
        file.writelines(canonical_json(line) + "\n" for line in (header, *suite.items))
        file.flush()
        os.fsync(file.fileno())


def read_frozen(path: Path) -> EvalSuite:
    """The suite that `write_frozen` wrote.

    Raises NotFoundError, or UnsafeInputError when it is not what its digest says.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise NotFoundError(
            Problem(
                thing=str(path), cause="no such file", remedy="Make it with: recycler suite build"
            )
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise _broken(path, f"cannot be read ({error})") from None
    try:
        header = json.loads(lines[0])
        if header.get("kind") != "recycler-suite" or header.get("schema_version") != SCHEMA_VERSION:
            raise _broken(path, "is not a frozen suite of this version")
        items = tuple(_item(json.loads(line)) for line in lines[1:] if line)
        suite = EvalSuite(name=header["name"], items=items, test_tasks=tuple(header["test_tasks"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(path, f"is damaged ({error})") from None
    if suite.digest != header["digest"] or len(items) != header["num_items"]:
        raise _broken(path, "does not hold what its digest says")
    return suite


def frozen_suites(run_folder: Path) -> list[Path]:
    """The files of the suites that a run asks, by name; none where the run's folder is not on this
    machine.
    """
    return sorted((run_folder / "suites").glob("*.jsonl"))


def searched_test_tasks(run_folder: Path) -> dict[str, tuple[str, ...]] | None:
    """For each suite of a run the tasks whose search items are a published test set, from the
    headers; None without a folder.
    """
    found = {}
    for path in frozen_suites(run_folder):
        try:
            with path.open(encoding="utf-8") as file:
                header = json.loads(file.readline())
            found[header["name"]] = tuple(header["test_tasks"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _broken(path, f"is damaged ({error})") from None
    return found or None


def suite_build(
    name: str, model: Path, out: Path, *, data_folders: Sequence[Path] = ()
) -> EvalSuite:
    """Build a suite (a shipped name or a path) with the tokenizer of `model` and write it to `out`."""
    suite = build_suite(
        suite_path(name, beside=Path(), data_folders=data_folders),
        load_tokenizer(model),
        data_folders=data_folders,
    )
    write_frozen(suite, out)
    return suite


def suite_show(suite: EvalSuite) -> dict[str, Any]:
    """What a suite asks, ready for JSON: for each task and split items, clusters, tokens, metrics,
    and what it can tell apart.

    `smallest_visible_difference` is for two models that disagree on 15 % of the items, at 80 %
    power and level 5 %; clusters count as one item. `tokens` are prompt plus expected answer.
    """
    tasks: dict[str, Any] = {}
    for item in suite.items:
        own = tasks.setdefault(
            item.task,
            {
                "kind": item.kind,
                "scorer": item.scorer,
                "metrics": list(item_metrics(item)),
                "search_is_test_set": item.task in suite.test_tasks,
            },
        )
        split = own.setdefault(item.role, {"items": 0, "clusters": set(), "tokens": 0})
        split["items"] += 1
        split["clusters"].add(item.cluster)
        split["tokens"] += expected_tokens(item)
    for own in tasks.values():
        for role in ("search", "holdout"):
            split = own[role]
            split["clusters"] = len(split["clusters"])
            split["smallest_visible_difference"] = round(
                minimal_detectable_difference(split["clusters"], discordance=0.15), 4
            )
    return {
        "schema_version": SCHEMA_VERSION,
        "name": suite.name,
        "digest": suite.digest,
        "num_items": len(suite.items),
        "tasks": tasks,
    }


def expected_tokens(item: Item) -> int:
    """Tokens that an item costs: prompt plus continuations, or prompt plus an answer somewhat
    longer than the gold one.
    """
    if item.kind == "loglikelihood":
        return sum(len(item.prompt_ids) + len(ids) for ids in item.continuations)
    return len(item.prompt_ids) + min(
        item.max_new_tokens, 16 + round(1.5 * len(item.gold.encode()) / _BYTES_PER_TOKEN)
    )


def suite_check(frozen: Path, name: str, model: Path, *, data_folders: Sequence[Path] = ()) -> None:
    """Build the suite again and compare with the frozen file.

    Raises UsageError with the differences.
    """
    old = read_frozen(frozen)
    refuse_change(
        old,
        build_suite(
            suite_path(name, beside=Path(), data_folders=data_folders),
            load_tokenizer(model),
            data_folders=data_folders,
        ),
    )


def refuse_change(old: EvalSuite, new: EvalSuite) -> None:
    """Raise UsageError that tells how `new` differs from the suite that a job began with."""
    told = suite_difference(old, new)
    if told:
        raise UsageError(
            [
                Problem(
                    thing=f"suite {old.name!r}",
                    cause=f"is not the one the job began with: {line}",
                    remedy="Put the suite, its data and lm-eval back, or start a new run",
                )
                for line in told
            ]
        )


def suite_difference(old: EvalSuite, new: EvalSuite, *, most: int = 10) -> list[str]:
    """Sentences: items gone, new, moved to the other split, or with other fields; empty when the
    digests agree.
    """
    if old.digest == new.digest:
        return []
    before, after = {item.id: item for item in old.items}, {item.id: item for item in new.items}
    lines = []
    for word, names in (
        ("gone", before.keys() - after.keys()),
        ("new", after.keys() - before.keys()),
    ):
        if names:
            lines.append(f"{len(names)} items are {word}, such as {min(names)!r}")
    changed = [
        (
            name,
            [
                field.name
                for field in fields(Item)
                if getattr(before[name], field.name) != getattr(after[name], field.name)
            ],
        )
        for name in sorted(before.keys() & after.keys())
    ]
    changed = [(name, names) for name, names in changed if names]
    lines += [
        f"item {name!r} has other {', '.join(names)}{_shown(before[name], after[name], names[0])}"
        for name, names in changed[:most]
    ]
    if len(changed) > most:
        lines.append(f"and {len(changed) - most} more items have changed")
    return lines or ["the same items stand in another order"]


def _shown(old: Item, new: Item, field: str) -> str:
    texts = [repr(getattr(entry, field)) for entry in (old, new)]
    start = next(
        (place for place, (a, b) in enumerate(zip(*texts)) if a != b), min(map(len, texts))
    )
    begin = max(0, start - 15)
    return (
        " ("
        + ", now ".join(("..." if begin else "") + text[begin : start + 25] for text in texts)
        + ")"
    )


def _item(data: dict[str, Any]) -> Item:
    pairs = {
        "prompt_ids": tuple(data.pop("prompt_ids")),
        "continuations": tuple(map(tuple, data.pop("continuations"))),
        "stop": tuple(data.pop("stop")),
        "detail": tuple((key, value) for key, value in data.pop("detail")),
    }
    return Item(**data, **pairs)


def _broken(path: Path, cause: str) -> UnsafeInputError:
    return UnsafeInputError(
        Problem(thing=str(path), cause=cause, remedy="Make it again with: recycler suite build")
    )
