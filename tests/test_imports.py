"""The CLI starts at once, arrows point downward, and no module imports itself in a circle.

The floors are those of `benchmarks/house/rooms.py`, which the table of figures reads, too. Imports
in functions and under TYPE_CHECKING count.
"""

import ast
import subprocess
import sys

import pytest

import rooms
from places import ROOT

HEAVY = ("torch", "ray", "vllm", "optuna", "transformers", "pandas", "lm_eval", "scipy", "numpy")
PACKAGE = "recycler"


@pytest.mark.parametrize(
    "statement", ["import recycler", "import recycler.cli; recycler.cli.build_parser()"]
)
def test_start_loads_no_heavy_library(statement):
    code = f"{statement}; import sys; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


@pytest.fixture(scope="module")
def arrows():
    """From each file of the package to the files that it imports, anywhere in its text."""
    imports = {}
    for path in (ROOT / PACKAGE).rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        found = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
        imports[path.relative_to(ROOT).as_posix()] = found
    return rooms.file_arrows(imports, PACKAGE)


@pytest.fixture(scope="module")
def room_arrows(arrows):
    return rooms.merged(arrows, lambda path: rooms.room_of(path, PACKAGE))


def test_every_room_has_its_floor_and_every_floor_its_rooms(room_arrows):
    named = [name for floor in rooms.FLOORS for name in floor]
    assert sorted(named) == sorted(room_arrows)


def test_imports_go_down_only(room_arrows):
    assert rooms.upward(room_arrows) == []


def test_no_circle_of_rooms(room_arrows):
    assert rooms.circles(room_arrows) == []


def test_no_circle_of_modules(arrows):
    assert rooms.circles(arrows) == []


def test_the_arrows_that_the_floors_are_held_to_are_found(arrows):
    """A test that found no import would pass all the others."""
    assert f"{PACKAGE}/types.py" in arrows[f"{PACKAGE}/run/loop.py"]
    assert sum(map(len, arrows.values())) > 500
