"""Rooms of a package, the arrows between them, and the floors they stand on.

A room is a folder at the top of the package, with everything below it, or a file that lies loose
there. An arrow leads from one room to another that it imports, once however often. `import a.b` and
`from a import b` point to the file of `b`, not to the packages on the way. `FLOORS` is the one list
of floors, for this tool and for the tests of imports.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from graphlib import TopologicalSorter

FLOORS = (
    {"__init__", "types", "location", "errors", "digest"},
    {"io", "objectives", "recipe_json"},
    {"specs"},
    {"ledger", "pool"},
    {"merge", "search"},
    {"engines"},
    {"scoring"},
    {"cluster", "results"},
    {"run"},
    {"export"},
    {"service", "dashboard", "demo"},
    {"cli", "testing", "__main__"},
)
"""Rooms from the ground up: each may import rooms of its own floor and of the floors below it."""

Arrows = Mapping[str, set[str]]
"""From each node to the nodes it points to; never to itself."""
ImportNode = ast.Import | ast.ImportFrom


def room_of(path: str, package: str) -> str:
    """The room of a file: `pool` for `recycler/pool/storage/pack.py`, `types` for a loose file."""
    return path.removeprefix(f"{package}/").split("/")[0].removesuffix(".py")


def folder_of(path: str, package: str) -> str:
    """The innermost folder of a file below the package, or the name of a loose file."""
    inside = path.removeprefix(f"{package}/")
    return inside.rpartition("/")[0] or inside.removesuffix(".py")


def floor_of(room: str) -> int | None:
    """The number of the floor a room stands on; None where `FLOORS` has no line for it."""
    for number, rooms in enumerate(FLOORS):
        if room in rooms:
            return number
    return None


def file_arrows(imports: Mapping[str, Iterable[ImportNode]], package: str) -> Arrows:
    """Arrows between the files of a package, found from the import statements of each path."""
    paths = {_module(path, package): path for path in imports}
    arrows = {}
    for path, nodes in imports.items():
        targets: set[str] = set()
        for node in nodes:
            targets.update(_targets(node, path, package, paths))
        arrows[path] = targets - {path}
    return arrows


def merged(arrows: Arrows, name: Callable[[str], str]) -> Arrows:
    """The arrows between groups of nodes: `name` gives the group of a node."""
    groups: dict[str, set[str]] = {}
    for node, targets in arrows.items():
        group = groups.setdefault(name(node), set())
        group.update(map(name, targets))
    for group, targets in groups.items():
        targets.discard(group)
    return groups


def upward(arrows: Arrows) -> list[str]:
    """Arrows between rooms that lead to a higher floor; rooms on no floor are left out."""
    found = []
    for room, targets in sorted(arrows.items()):
        for target in sorted(targets):
            below, above = floor_of(room), floor_of(target)
            if below is not None and above is not None and above > below:
                found.append(f"{room} -> {target}")
    return found


def circles(arrows: Arrows) -> list[list[str]]:
    """Strongly connected components of two nodes and more, the largest first."""
    reach = {node: _reachable(node, arrows) for node in arrows}
    found = set()
    for node, reached in reach.items():
        circle = frozenset(other for other in reached if node in reach[other])
        if circle:
            found.add(circle)
    return sorted(map(sorted, found), key=lambda circle: (-len(circle), circle))


def longest_chain(arrows: Arrows) -> int:
    """The number of nodes on the longest chain of arrows; a circle stands on one floor."""
    head = {node: circle[0] for circle in circles(arrows) for node in circle}
    floors = merged(arrows, lambda node: head.get(node, node))
    heights: dict[str, int] = {}
    for node in TopologicalSorter(floors).static_order():
        heights[node] = 1 + max((heights[target] for target in floors[node]), default=0)
    return max(heights.values(), default=0)


def _reachable(start: str, arrows: Arrows) -> set[str]:
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        new = arrows[waiting.pop()] - reached
        reached |= new
        waiting.extend(new)
    return reached


def _module(path: str, package: str) -> str:
    """The dotted name of a file: `recycler.pool` for `recycler/pool/__init__.py`."""
    root = package.rpartition("/")[2]
    inside = root + path.removeprefix(package)
    return inside.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _targets(node: ImportNode, path: str, package: str, paths: Mapping[str, str]) -> set[str]:
    """The files of the package that one import statement of `path` points to."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        origin = _origin(node, path, package)
        names = [f"{origin}.{alias.name}" for alias in node.names]
    targets = set()
    for name in names:
        while name not in paths and "." in name:
            name = name.rpartition(".")[0]
        if name in paths:
            targets.add(paths[name])
    return targets


def _origin(node: ast.ImportFrom, path: str, package: str) -> str:
    """The absolute name that `from ... import` reads from; leading dots are resolved."""
    if not node.level:
        return node.module or ""
    here = _module(path, package).split(".")
    if not path.endswith("/__init__.py"):
        here = here[:-1]
    base = here[: len(here) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)
