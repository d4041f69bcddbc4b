"""The figures of a made-up package, counted by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from places import ROOT

TOOL = ROOT / "benchmarks" / "house" / "figures.py"
TYPES = '''"""What a value is."""

MAX_ITEMS = 3
_MOST_ROWS: int = 4


def first(items: list, default=None, *more: int) -> int:
    """The first item.

    A second paragraph counts as docstring.
    """
    return items[0] if items else default  # type: ignore[no-any-return]


class Box:
    """A box."""

    def open(self) -> None:
        """How it opens, in a sentence that is wrapped and that would pass column 100 if it
        were not wrapped. Short."""
        return [one for one in self]  # type: ignore
'''
CATALOG = """from __future__ import annotations

from typing import TYPE_CHECKING

from ..types import Box

if TYPE_CHECKING:
    from house.cli import main


def read():
    import json  # noqa: PLC0415

    # numpy is heavy
    import numpy
    import house.merge.stream
"""
STREAM = "from house.pool import catalog\n"
MAIN = "import house.merge, house.types\n\nmain = house.merge  # noqa\n"
EMPTY = ("__init__", "pool/__init__", "merge/__init__")


def _git(root, *words):
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", *identity, *words], cwd=root, check=True, capture_output=True)


@pytest.fixture
def house(tmp_path):
    """A package in a git repository, committed: a circle, an arrow upward, words to mend."""
    files = {f"{name}.py": "" for name in EMPTY}
    files |= {"types.py": TYPES, "pool/catalog.py": CATALOG}
    files |= {"merge/stream.py": STREAM, "cli.py": MAIN}
    for name, text in files.items():
        path = tmp_path / "src" / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    _git(tmp_path, "init", "--quiet")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "--quiet", "-m", "A house")
    return tmp_path


def _figures(root, *words):
    command = [sys.executable, TOOL, "--package", "src/house", *words]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


def _column(root, commit="work tree"):
    words = [] if commit == "work tree" else [commit]
    return json.loads(_figures(root, "--json", *words).stdout)[commit]


def test_sizes_and_density(house):
    column = _column(house, "HEAD")
    written, lines = 27, 41
    assert column["kloc"] == lines / 1000
    assert (column["file_median"], column["file_max"]) == (1, 21)
    assert (column["function_median"], column["function_max"]) == (2, 6)
    assert column["conditionals"] == column["comprehensions"] == round(1000 / written, 3)
    assert column["comments"] == round(100 * 5 / written, 3)
    assert column["over_100"] == 0


def test_words(house):
    column = _column(house, "HEAD")
    assert column["questions"] == 50
    assert column["num_late"] == 1
    assert column["annotated"] == round(200 / 3, 3)
    assert (column["num_type_ignore"], column["num_type_ignore_bare"]) == (2, 1)
    assert (column["num_noqa"], column["num_noqa_bare"]) == (2, 1)
    assert (column["num_most_least"], column["num_max_min"]) == (1, 1)


def test_imports_inside_functions_count_as_arrows_and_a_block_shares_its_comment(house):
    column = _column(house, "HEAD")
    assert (column["num_inner_imports"], column["num_unexplained_imports"]) == (3, 1)
    assert column["places"]["unexplained"] == ["src/house/pool/catalog.py:12"]
    assert column["upward"] == ["pool -> merge"]
    assert column["room_circles"] == [["merge", "pool"]]
    assert column["file_circles"] == [["src/house/merge/stream.py", "src/house/pool/catalog.py"]]


def test_rooms_floors_and_imports_for_type_checkers(house):
    column = _column(house, "HEAD")
    assert column["num_rooms"] == 5
    assert column["num_arrows"] == 5  # pool -> types, merge; merge -> pool; cli -> merge, types
    assert column["num_floors"] == 3
    assert column["num_typing_imports"] == 1
    assert column["typing_circles"] == column["file_circles"]  # nobody imports cli back
    assert [Path(path).name for path in column["loose"]] == ["__init__.py", "cli.py", "types.py"]


def test_work_tree_and_commit_are_told_apart(house):
    catalog = house / "src" / "house" / "pool" / "catalog.py"
    catalog.write_text(CATALOG.replace("    import house.merge.stream\n", ""))
    (house / "src" / "house" / "late.py").write_text("")  # untracked files count, too
    assert _column(house)["file_circles"] == []
    assert _column(house)["homeless"] == ["late"]
    assert len(_column(house, "HEAD")["file_circles"]) == 1


def test_check_fails_until_caps_floors_and_circles_are_met(house):
    package = house / "src" / "house"
    assert _figures(house).returncode == 0
    assert _figures(house, "--check").returncode == 1
    (package / "pool" / "catalog.py").write_text("")
    assert _figures(house, "--check").returncode == 0
    body = "".join(f"    x = {number}\n" for number in range(400))
    (package / "types.py").write_text(f"def tall():\n{body}")
    failed = _figures(house, "--check")
    assert failed.returncode == 1
    assert "src/house/types.py has 401 lines, a file has at most 400" in failed.stdout
    assert "src/house/types.py:tall has 401 lines, a function has at most 60" in failed.stdout


def test_table_has_a_column_for_each_commit(house):
    head, *_ = _figures(house, "HEAD", "HEAD~0").stdout.splitlines()
    assert head == "|  | HEAD | HEAD~0 |"


def test_unknown_commit_is_an_error_in_one_line(house):
    failed = _figures(house, "nowhere")
    assert failed.returncode == 1
    assert "nowhere" in failed.stderr and "Traceback" not in failed.stderr


def test_excuses_are_few_and_needed(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOL.parent))
    monkeypatch.chdir(TOOL.parent)
    import figures  # the line above lets it be found

    excuses = {**figures.LONG_FILES, **figures.LONG_FUNCTIONS}
    assert max(len(figures.LONG_FILES), len(figures.LONG_FUNCTIONS)) <= figures.MAX_EXCUSES
    column = figures.figures(figures.sources(figures.WORK_TREE, "recycler"), "recycler")
    assert set(excuses) <= {*column["long_files"], *column["long_functions"]}
