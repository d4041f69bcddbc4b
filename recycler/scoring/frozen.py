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
    """Write a suite to `path`, an atomic write."""
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

    Raises NotFoundError, or UnsafeInputError when the file does not match its digest.
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
    """Files of a run's suites, by name; none when its folder is not on this machine."""
    return sorted((run_folder / "suites").glob("*.jsonl"))


def searched_test_tasks(run_folder: Path) -> dict[str, tuple[str, ...]] | None:
    """Tasks of each suite of a run whose search items are a published test set.

    They are read from the headers; None when the run's folder is not on this machine.
    """
    found: dict[str, tuple[str, ...]] = {}
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
    """Build a suite with the tokenizer of `model` and write it to `out`.

    `name` is one of the shipped suites, a path, or lm_eval:TASK.
    """
    suite = _build(name, model, data_folders)
    write_frozen(suite, out)
    return suite


def _build(name: str, model: Path, data_folders: Sequence[Path]) -> EvalSuite:
    path = suite_path(name, beside=Path(), data_folders=data_folders)
    return build_suite(path, load_tokenizer(model), data_folders=data_folders)


def suite_show(suite: EvalSuite) -> dict[str, Any]:
    """A summary of a suite, ready for JSON: each task's metrics, and the size of its splits.

    `smallest_visible_difference` is for two models that disagree on 15 % of the items, at 80 %
    power and level 5 %; clusters count as one item. `tokens` are prompt plus expected answer.
    """
    by_task: dict[str, list[Item]] = {}
    for item in suite.items:
        by_task.setdefault(item.task, []).append(item)
    tasks: dict[str, Any] = {}
    for name, items in by_task.items():
        tasks[name] = {
            "kind": items[0].kind,
            "scorer": items[0].scorer,
            "metrics": list(item_metrics(items[0])),
            "search_is_test_set": name in suite.test_tasks,
        }
        for role in dict.fromkeys(item.role for item in items):
            tasks[name][role] = _split_size([item for item in items if item.role == role])
    return {
        "schema_version": SCHEMA_VERSION,
        "name": suite.name,
        "digest": suite.digest,
        "num_items": len(suite.items),
        "tasks": tasks,
    }


def _split_size(items: Sequence[Item]) -> dict[str, Any]:
    num_clusters = len({item.cluster for item in items})
    visible = minimal_detectable_difference(num_clusters, discordance=0.15)
    return {
        "items": len(items),
        "clusters": num_clusters,
        "tokens": sum(map(expected_tokens, items)),
        "smallest_visible_difference": round(visible, 4),
    }


def expected_tokens(item: Item) -> int:
    """Tokens that an item costs: prompt plus continuations, or prompt plus an expected answer.

    An answer is expected to be somewhat longer than the gold one.
    """
    if item.kind == "loglikelihood":
        return sum(len(item.prompt_ids) + len(ids) for ids in item.continuations)
    answer = 16 + round(1.5 * len(item.gold.encode()) / _BYTES_PER_TOKEN)
    return len(item.prompt_ids) + min(item.max_new_tokens, answer)


def suite_check(frozen: Path, name: str, model: Path, *, data_folders: Sequence[Path] = ()) -> None:
    """Build the suite again and compare it with the frozen file.

    Raises UsageError with the differences.
    """
    refuse_change(read_frozen(frozen), _build(name, model, data_folders))


def refuse_change(old: EvalSuite, new: EvalSuite) -> None:
    """Raise UsageError when `new` differs from the suite that a job began with, and say how."""
    problems = [
        Problem(
            thing=f"suite {old.name!r}",
            cause=f"is not the one the job began with: {line}",
            remedy="Put the suite, its data and lm-eval back, or start a new run",
        )
        for line in suite_difference(old, new)
    ]
    if problems:
        raise UsageError(problems)


def suite_difference(old: EvalSuite, new: EvalSuite, *, most: int = 10) -> list[str]:
    """Sentences about items gone, new or changed, at most `most` of the last kind.

    A move to the other split is a change. Empty when the digests agree.
    """
    if old.digest == new.digest:
        return []
    before = {item.id: item for item in old.items}
    after = {item.id: item for item in new.items}
    gone, added = before.keys() - after.keys(), after.keys() - before.keys()
    lines: list[str] = []
    for word, names in (("gone", gone), ("new", added)):
        if names:
            lines.append(f"{len(names)} items are {word}, such as {min(names)!r}")
    changed: list[str] = []
    for name in sorted(before.keys() & after.keys()):
        others = _other_fields(before[name], after[name])
        if others:
            shown = _shown(before[name], after[name], others[0])
            changed.append(f"item {name!r} has other {', '.join(others)}{shown}")
    lines += changed[:most]
    if len(changed) > most:
        lines.append(f"and {len(changed) - most} more items have changed")
    return lines or ["the same items stand in another order"]


def _other_fields(old: Item, new: Item) -> list[str]:
    """Names of the fields that differ."""
    names = [field.name for field in fields(Item)]
    return [name for name in names if getattr(old, name) != getattr(new, name)]


def _shown(old: Item, new: Item, field: str) -> str:
    """The first place where a field differs: ' (old text, now new text)'."""
    texts = [repr(getattr(item, field)) for item in (old, new)]
    start = min(map(len, texts))
    for place, (one, other) in enumerate(zip(*texts, strict=False)):
        if one != other:
            start = place
            break
    begin = max(0, start - 15)
    dots = "..." if begin else ""
    return " (" + ", now ".join(dots + text[begin : start + 25] for text in texts) + ")"


def _item(data: dict[str, Any]) -> Item:
    """An item of a line of the file; JSON has lists where it has tuples."""
    data["prompt_ids"] = tuple(data["prompt_ids"])
    data["continuations"] = tuple(map(tuple, data["continuations"]))
    data["stop"] = tuple(data["stop"])
    data["detail"] = tuple((key, value) for key, value in data["detail"])
    return Item(**data)


def _broken(path: Path, cause: str) -> UnsafeInputError:
    return UnsafeInputError(
        Problem(thing=str(path), cause=cause, remedy="Make it again with: recycler suite build")
    )
