"""Print the figures of the house for any commit: sizes, density, words, rooms and circles.

    python benchmarks/house/figures.py                        # the work tree
    python benchmarks/house/figures.py 7800898 main --json
    python benchmarks/house/figures.py --check                # 1 where a cap or a floor is broken

Run it inside the repository. Lines are those between line breaks, blank ones too, but shares and
figures per 1000 lines are taken over lines that are not blank. A function's size runs from `def`
to its end without its docstring; what is nested in it counts for both. The 95th percentile is the
smallest size that 95 % do not exceed. Rooms, arrows and floors are defined in `rooms.py`.

Definitions were fitted to the first table of this kind, made on 2026-12-01 for 7800898: lines and
expressions per 1000, functions, comments, circles of files, and for the format commit long files
and functions, agree. The rest, with its figures in brackets:

- files, 347 lines at most (348): it counted what follows the last line break as a line;
- parameters annotated, 97.9 % (99 %): private functions count here, public ones alone have 98.9 %;
- arrows upward, 4 (2): by the floors of today, on which 25 rooms of that commit have no place;
- docstrings that open with a question word, 13 % (15 %): it took Where, When, Why and Who as well;
- names MOST_ and LEAST_ 22 (21), MAX_ and MIN_ 40 (35), rooms 44 (46), floors 13 (14), arrows 262
  (278): how it counted is not written down.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import rooms
from measures import Measures, measure

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_EXCUSES = 5
LONG_FILES: dict[str, str] = {}
"""Files that read better whole, as `path: reason in one line`; at most MAX_EXCUSES."""
LONG_FUNCTIONS: dict[str, str] = {}
"""Functions that read better whole, as `path:function: reason in one line`; likewise."""

WORK_TREE = "work tree"
ROWS = (
    ("kLOC", "{kloc:.1f}"),
    ("files: median / p95 / max lines", "{file_median:g} / {file_p95} / {file_max}"),
    (
        "functions: median / p95 / max lines",
        "{function_median:g} / {function_p95} / {function_max}",
    ),
    (
        "lines over 100 / 120 / 160 / 200, per 1000",
        "{over_100:.1f} / {over_120:.1f} / {over_160:.1f} / {over_200:.1f}",
    ),
    ("conditional expressions per 1000 lines", "{conditionals:.1f}"),
    ("comprehensions per 1000 lines", "{comprehensions:.1f}"),
    ("imports inside functions per kLOC", "{inner_imports:.1f}"),
    ("... number / without a comment why", "{num_inner_imports} / {num_unexplained_imports}"),
    ("lines with a comment, %", "{comments:.1f}"),
    ("docstrings that open with What/Whether/How/Which, %", "{questions:.1f}"),
    ("docstrings whose first sentence passes column 100", "{num_late}"),
    ("parameters annotated, %", "{annotated:.1f}"),
    ("type: ignore / without a code", "{num_type_ignore} / {num_type_ignore_bare}"),
    ("noqa / without a code", "{num_noqa} / {num_noqa_bare}"),
    ("names MOST_, LEAST_ / MAX_, MIN_", "{num_most_least} / {num_max_min}"),
    ("rooms / floors", "{num_rooms} / {num_floors}"),
    ("arrows / upward", "{num_arrows} / {num_upward}"),
    ("rooms without a floor", "{num_homeless}"),
    ("circles of rooms / of files", "{num_room_circles} / {num_file_circles}"),
    ("circles of folders at any depth", "{num_folder_circles}"),
    (
        "imports under TYPE_CHECKING / circles of files with them",
        "{num_typing_imports} / {num_typing_circles}",
    ),
    ("files loose at the top", "{num_loose}"),
    ("files over 400 lines / functions over 60", "{num_long_files} / {num_long_functions}"),
)


def sources(commit: str, package: str) -> dict[str, str]:
    """The text of each Python file of the package, at a commit or in the work tree."""
    root = Path(_git("rev-parse", "--show-toplevel").decode().strip())
    if commit == WORK_TREE:
        names = _git("-C", str(root), "ls-files", "-zco", "--exclude-standard", "--", package)
        paths = [name for name in names.decode().split("\0") if name.endswith(".py")]
        there = [path for path in paths if (root / path).is_file()]
        return {path: (root / path).read_text(encoding="utf-8") for path in sorted(set(there))}
    texts = {}
    tape = _git("-C", str(root), "archive", commit, package)
    with tarfile.open(fileobj=io.BytesIO(tape)) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".py"):
                texts[member.name] = archive.extractfile(member).read().decode("utf-8")
    return texts


def _git(*words: str) -> bytes:
    done = subprocess.run(["git", *words], capture_output=True)
    if done.returncode:
        raise SystemExit(f"git {' '.join(words)}: {done.stderr.decode().strip()}")
    return done.stdout


def figures(texts: dict[str, str], package: str) -> dict:
    """Every figure of a package, by name, with the names of what passes a cap or a floor."""
    files = [measure(path, text) for path, text in texts.items()]
    return {**_sizes(files), **_density(files), **_words(files), **_house(files, package)}


def _sizes(files: list[Measures]) -> dict:
    file_lines = {file.path: len(file.widths) for file in files}
    function_lines: dict[str, int] = {}
    for file in files:
        for function in file.functions:
            place = f"{file.path}:{function.name}"
            function_lines[place] = max(function.lines, function_lines.get(place, 0))
    every_function = [function.lines for file in files for function in file.functions]
    long_files = _longer(file_lines, MAX_FILE_LINES)
    long_functions = _longer(function_lines, MAX_FUNCTION_LINES)
    return {
        "kloc": sum(file_lines.values()) / 1000,
        **_spread("file", list(file_lines.values())),
        **_spread("function", every_function),
        "num_long_files": len(long_files),
        "num_long_functions": len(long_functions),
        "long_files": long_files,
        "long_functions": long_functions,
    }


def _longer(lines: dict[str, int], cap: int) -> dict[str, int]:
    """Places above the cap, the longest first."""
    ordered = sorted(lines.items(), key=lambda item: (-item[1], item[0]))
    return {place: size for place, size in ordered if size > cap}


def _spread(kind: str, sizes: list[int]) -> dict:
    ordered = sorted(sizes) or [0]
    rank = -(-95 * len(ordered) // 100)
    return {
        f"{kind}_median": statistics.median(ordered),
        f"{kind}_p95": ordered[rank - 1],
        f"{kind}_max": ordered[-1],
    }


def _density(files: list[Measures]) -> dict:
    widths = [width for file in files for width in file.widths]
    written = len(widths) - sum(file.num_blank for file in files)
    counts = _counts(files)
    overs = {}
    for width in (100, 120, 160, 200):
        wider = sum(one > width for one in widths)
        overs[f"over_{width}"] = _per(1000, wider, written)
    return {
        **overs,
        "conditionals": _per(1000, counts["conditional"], written),
        "comprehensions": _per(1000, counts["comprehension"], written),
        "inner_imports": _per(1000, counts["delayed"], len(widths)),
        "num_inner_imports": counts["delayed"],
        "num_unexplained_imports": counts["unexplained"],
        "comments": _per(100, sum(file.num_comments for file in files), written),
    }


def _per(scale: int, part: int, whole: int) -> float:
    return round(scale * part / whole, 3) if whole else 0.0


def _counts(files: list[Measures]) -> Counter[str]:
    total: Counter[str] = Counter()
    for file in files:
        total.update(file.counts)
    return total


def _words(files: list[Measures]) -> dict:
    counts = _counts(files)
    bounds = set().union(*(file.bounds for file in files))
    old_words = [name for name in bounds if name.lstrip("_").startswith(("MOST", "LEAST"))]
    places: dict[str, list[str]] = {"question": [], "late": [], "unexplained": []}
    for file in files:
        for kind, place in file.places:
            places[kind].append(place)
    ignores = ("type_ignore", "type_ignore_bare", "noqa", "noqa_bare")
    return {
        "questions": _per(100, counts["question"], counts["docstring"]),
        "num_late": counts["late"],
        "annotated": _per(100, counts["annotated"], counts["parameter"]),
        **{f"num_{kind}": counts[kind] for kind in ignores},
        "num_most_least": len(old_words),
        "num_max_min": len(bounds) - len(old_words),
        "places": places,
    }


def _house(files: list[Measures], package: str) -> dict:
    at_start, with_typing = {}, {}
    for file in files:
        at_start[file.path] = [one.node for one in file.imports if not one.type_checking]
        with_typing[file.path] = [one.node for one in file.imports]
    by_file = rooms.file_arrows(at_start, package)
    by_room = rooms.merged(by_file, lambda path: rooms.room_of(path, package))
    by_folder = rooms.merged(by_file, lambda path: rooms.folder_of(path, package))
    lists = {
        "upward": rooms.upward(by_room),
        "homeless": sorted(room for room in by_room if rooms.floor_of(room) is None),
        "room_circles": rooms.circles(by_room),
        "folder_circles": rooms.circles(by_folder),
        "file_circles": rooms.circles(by_file),
        "typing_circles": rooms.circles(rooms.file_arrows(with_typing, package)),
        "loose": sorted(path for path in by_file if path.count("/") == package.count("/") + 1),
    }
    num_typing = sum(one.type_checking for file in files for one in file.imports)
    return {
        **lists,
        **{f"num_{name}": len(found) for name, found in lists.items()},
        "num_rooms": len(by_room),
        "num_floors": rooms.longest_chain(by_room),
        "num_arrows": sum(map(len, by_room.values())),
        "num_typing_imports": num_typing,
    }


def faults(column: dict) -> list[str]:
    """Sentences that `--check` fails on: a cap passed without a reason, a circle, an arrow up."""
    caps = (("file", MAX_FILE_LINES, LONG_FILES), ("function", MAX_FUNCTION_LINES, LONG_FUNCTIONS))
    found = []
    for kind, cap, excuses in caps:
        for place, size in column[f"long_{kind}s"].items():
            if place not in excuses:
                found.append(f"{place} has {size} lines, a {kind} has at most {cap}")
        if len(excuses) > MAX_EXCUSES:
            found.append(f"LONG_{kind.upper()}S has {len(excuses)} lines, at most {MAX_EXCUSES}")
    found.extend(f"{arrow} leads upward" for arrow in column["upward"])
    if column["homeless"]:
        found.append(f"on no floor of FLOORS: {', '.join(column['homeless'])}")
    for kind in ("room", "file"):
        found.extend(f"circle of {kind}s: {', '.join(one)}" for one in column[f"{kind}_circles"])
    return found


def table(columns: dict[str, dict]) -> str:
    """The figures as a Markdown table, one column for each commit."""
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    for label, cell in ROWS:
        lines.append([label, *(cell.format_map(column) for column in columns.values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("commits", nargs="*", metavar="COMMIT", help="default: the work tree")
    parser.add_argument("--package", default="recycler", help="its folder from the root")
    parser.add_argument("--json", action="store_true", help="every figure and name, as JSON")
    parser.add_argument("--check", action="store_true", help="1 where a cap or floor is broken")
    return parser


def main() -> int:
    """Print the table and what passes a cap or a floor; 1 under `--check` where anything does."""
    arguments = _parser().parse_args()
    package = arguments.package.strip("/")
    columns, broken = {}, {}
    for commit in arguments.commits or [WORK_TREE]:
        texts = sources(commit, package)
        if not texts:
            raise SystemExit(f"{commit}: no Python file in {package}/")
        columns[commit] = figures(texts, package)
        broken[commit] = faults(columns[commit])
    if arguments.json:
        print(json.dumps(columns, indent=2))
    else:
        print(table(columns))
        for commit, sentences in broken.items():
            print("\n".join([f"\n{commit}: {len(sentences)} to mend", *sentences]))
            for circle in columns[commit]["folder_circles"]:
                print(f"(circle of folders, no fault inside one room: {', '.join(circle)})")
    return int(arguments.check and any(broken.values()))


if __name__ == "__main__":
    sys.exit(main())
