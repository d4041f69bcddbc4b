"""Search and holdout items of suites: no problem on both sides, and enough problems on each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from recycler.errors import Problem, UsageError, raise_problems
from recycler.io.strict_yaml import YamlDocument
from recycler.objectives.stats import coverage
from recycler.specs.suite import EvalSuite
from recycler.types import Item

_LONG_LINE = 40  # letters of a line that two problems do not share by chance
# independent problems of a task and split: with fewer, stated errors are noticeably too small
FEW_PROBLEMS = 20


def check_splits(
    name: str, items: tuple[Item, ...], tasks: Iterable[str], document: YamlDocument
) -> None:
    """Raise UsageError for an empty split, an id used twice, or a problem in both splits."""
    problems = [
        *_empty_splits(name, items, tasks, document),
        *_repeated_ids(items, document),
        *_shared_problems(name, items, document),
    ]
    raise_problems(problems, UsageError)


def _empty_splits(
    name: str, items: tuple[Item, ...], tasks: Iterable[str], document: YamlDocument
) -> list[Problem]:
    filled = {(item.task, item.role) for item in items}
    problems = []
    for task in tasks:
        for role in ("search", "holdout"):
            if (task, role) in filled:
                continue
            problems.append(
                Problem(
                    thing=f"suite {name!r}, task {task!r}",
                    cause=f"its {role} split is empty",
                    remedy="Widen rows: or where:",
                    where=document.where(("tasks", task, role)),
                )
            )
    return problems


def _repeated_ids(items: tuple[Item, ...], document: YamlDocument) -> list[Problem]:
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            return [
                Problem(
                    thing=f"item {item.id!r}",
                    cause="stands twice",
                    remedy="Give the rows different id fields",
                    where=document.where(("tasks",)),
                )
            ]
        seen.add(item.id)
    return []


def _shared_problems(name: str, items: tuple[Item, ...], document: YamlDocument) -> list[Problem]:
    """Clusters in both splits, else prompts of a task that are the same in both word for word."""
    both = _straddling(items)
    searched = {(item.task, item.prompt) for item in items if item.role == "search"}
    held_out = {(item.task, item.prompt) for item in items if item.role == "holdout"}
    same = sorted(searched & held_out)
    if not both and not same:
        return []
    shown = repr(both[0]) if both else repr(same[0][1][:60])
    return [
        Problem(
            thing=f"suite {name!r}",
            cause=f"{len(both) or len(same)} problems are in search and in holdout, such as "
            f"{shown}",
            remedy="A holdout that was searched on proves nothing; make the splits disjoint",
            where=document.where(("tasks",)),
        )
    ]


def check_across_suites(suites: Sequence[EvalSuite]) -> None:
    """Raise UsageError when a problem is searched on in one suite and held out in another.

    GSM8K test and MGSM share some.
    """
    both = _straddling([item for suite in suites for item in suite.items])
    if both:
        names = sorted(
            {suite.name for suite in suites if any(item.cluster in both for item in suite.items)}
        )
        raise UsageError(
            Problem(
                thing=f"suites {', '.join(names)}",
                cause=f"{len(both)} problems are in search of one and in holdout of another, such "
                f"as {both[0]!r}",
                remedy="Choose rows: so that a problem has one role in all suites of a job",
            )
        )


def alike_warnings(suites: Sequence[EvalSuite]) -> list[str]:
    """One sentence when items of different clusters look like one problem in both splits, or none.

    Two look alike whose prompts differ in spaces and case alone, or, in other tasks, whose last
    long line is the same and stands in no other problem of its task. A translation is not noticed:
    cluster: says it.
    """
    found: dict[tuple[str, str], tuple[Item, Item]] = {}
    items = [item for suite in suites for item in suite.items]
    squeezed = {item.id: "".join(item.prompt.lower().split()) for item in items}
    for keys in (squeezed, _own_lines(items)):
        searched = {
            keys[item.id]: item for item in items if item.role == "search" and keys.get(item.id)
        }
        for item in items:
            twin = searched.get(keys.get(item.id, ""))
            if twin and item.role == "holdout" and twin.cluster != item.cluster:
                found[twin.cluster, item.cluster] = (twin, item)
    if not found:
        return []
    twin, item = next(iter(found.values()))
    return [
        f"{len(found)} problems seem to be searched on and held out, such as {twin.id!r} and "
        f"{item.id!r}, which ask the same. Give both the same cluster:, or choose other rows: "
        "for one"
    ]


def few_problems_warnings(suites: Sequence[EvalSuite]) -> list[str]:
    """One sentence that names the tasks with few independent problems in a split, or none.

    Few are fewer than FEW_PROBLEMS; standard errors that rest on them are too small, see
    `stats.coverage`. Tasks with the same counts are named together.
    """
    named: dict[str, list[str]] = {}
    numbers: set[int] = set()
    for (name, task), splits in sorted(_clusters_of_splits(suites).items()):
        few = {
            role: (len(clusters), len(set(clusters)))
            for role, clusters in sorted(splits.items(), reverse=True)
            if len(set(clusters)) < FEW_PROBLEMS
        }
        if not few:
            continue
        numbers |= {num_problems for _, num_problems in few.values()}
        counts = " and ".join(
            _count(role, num_items, num_problems) for role, (num_items, num_problems) in few.items()
        )
        named.setdefault(f"{counts} problems", []).append(f"{name}:{task}")
    if not named:
        return []
    ends = {f"{100 * coverage(number):.0f}" for number in (min(numbers), max(numbers))}
    shares = " to ".join(sorted(ends, key=float))
    tasks = "; ".join(f"{', '.join(names)} ({counts})" for counts, names in named.items())
    return [
        f"{tasks}: over fewer than {FEW_PROBLEMS} independent problems "
        f"intervals of 1.96 stated errors hold the truth {shares} % of the time at "
        "best, not 95 %. Take more rows"
    ]


def _clusters_of_splits(suites: Sequence[EvalSuite]) -> dict[tuple[str, str], dict[str, list[str]]]:
    """The cluster of each item, by (suite, task) and role."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for suite in suites:
        for item in suite.items:
            splits = found.setdefault((suite.name, item.task), {})
            splits.setdefault(item.role, []).append(item.cluster)
    return found


def _count(role: str, num_items: int, num_problems: int) -> str:
    if num_items == num_problems:
        return f"{num_problems} {role}"
    return f"{num_items} {role} items of {num_problems}"


def _own_lines(items: Iterable[Item]) -> dict[str, str]:
    """The last long line of each item by id, where no other problem of its task has that line.

    Not of choices, whose last line is one of them.
    """
    lines = {
        item.id: (item, _last_long_line(item)) for item in items if len(item.continuations) < 2
    }
    holders: dict[tuple[str, str, str], set[str]] = {}
    for item, line in lines.values():
        holders.setdefault((item.suite, item.task, line), set()).add(item.cluster)
    return {
        name: line
        for name, (item, line) in lines.items()
        if line and len(holders[item.suite, item.task, line]) == 1
    }


def _last_long_line(item: Item) -> str:
    """The words of the prompt's last line of _LONG_LINE letters or more; empty without one."""
    for line in reversed(item.prompt.split("\n")):
        if len(line) >= _LONG_LINE and len(words := _words(line)) >= _LONG_LINE:
            return words
    return ""


def _words(text: str) -> str:
    """Its words in small letters, without a label such as 'Question:' and the tags of a chat."""
    without_tags = re.sub(r"<[^<>\s]{1,40}>", " ", text)
    without_label = re.sub(r"^\s*[\w -]{1,24}:\s", "", without_tags)
    return " ".join(re.findall(r"\w+", without_label.lower()))


def _straddling(items: Iterable[Item]) -> list[str]:
    sides: dict[str, set[str]] = {"search": set(), "holdout": set()}
    for item in items:
        sides[item.role].add(item.cluster)
    return sorted(sides["search"] & sides["holdout"])
