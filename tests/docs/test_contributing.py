"""The worked examples of CONTRIBUTING.md are applied to a copy of the code, and their tests run.

A fenced block with a title is a file, or lines for a file that is there already. In those `...`
stands for the rows that a table has, and names are added to a type in the same way.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from places import ROOT
from recycler.types import EngineName, SamplerName

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
BLOCK = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"^(\w+)[^\n]*\{\n    \.\.\.\n(.*?)^\}$", re.MULTILINE | re.DOTALL)
NAMES = re.compile(r"^(\w+) = Literal\[\.\.\., (.*)\]$", re.MULTILINE)
COPIED = ("recycler", "tests", "docs", "search_spaces", "eval_suites", "benchmarks", "deploy")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.png", ".*_cache")


@pytest.mark.long
def test_a_stranger_adds_a_method_a_scorer_a_sampler_and_an_engine_by_the_page(tmp_path):
    for name in COPIED:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=LEFT_OUT)
    for path in (*ROOT.glob("*.md"), ROOT / "pyproject.toml"):
        shutil.copy(path, tmp_path)
    own_tests = apply_page(tmp_path)
    assert len(own_tests) == 4
    check_style(tmp_path)
    done = run_pytest(tmp_path, [*own_tests, *LAWS, "-k", PARTS])
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) > 40


LAWS = (  # tests of what holds for every part
    "tests/merge/methods/test_laws.py",
    "tests/merge/methods/test_methods.py",
    "tests/docs/test_docs.py",
)
PARTS = "median or token_f1 or words or halton or restarted or Cpu or documented"


def run_pytest(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run tests of a copy, with its own package."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
        + arguments,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def check_style(folder: Path) -> None:
    """The files of the page pass `make check`, as far as that is quick."""
    pytest.importorskip("ruff")
    files = [name for name, _ in BLOCK.findall(PAGE) if not (ROOT / name).exists()]
    for command in (["format", "--check"], ["check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", *files],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def apply_page(folder: Path) -> list[str]:
    """Do in `folder` what the page says; return the test files that it adds."""
    added = []
    for name, text in BLOCK.findall(PAGE):
        path = folder / name
        if not path.exists():
            path.write_text(text)
            added += [name] * name.startswith("tests/")
        elif path.suffix == ".md":
            path.write_text(with_row(path.read_text(), text))
        else:
            path.write_text(with_lines(path.read_text(), text))
    return added


def with_lines(source: str, block: str) -> str:
    """`source` with the block's imports, rows of tables and names of types."""
    imports = re.findall(r"^(?:from|import) .*\n", block, re.MULTILINE)
    if imports:
        first = re.search(r"^from recycler", source, re.MULTILINE).start()
        source = source[:first] + "".join(imports) + source[first:]
    for table, rows in TABLE.findall(block):
        opening = re.search(rf"^{table}\b[^\n]*\{{\n", source, re.MULTILINE).end()
        source = source[:opening] + rows + source[opening:]
    for name, word in NAMES.findall(block):
        opening = re.search(rf"^{name} = Literal\[", source, re.MULTILINE).end()
        source = f"{source[:opening]}{word}, {source[opening:]}"
    return source


def with_row(page: str, row: str) -> str:
    """`page` with a row at the top of its first table of that many columns."""
    columns = row.count("|") - 1
    head = re.search(rf"^\|(?:---\|){{{columns}}}\n", page, re.MULTILINE)
    assert head, "no table of so many columns"
    return page[: head.end()] + row + page[head.end() :]


def test_every_path_on_the_page_is_there():
    added = {name for name, _ in BLOCK.findall(PAGE)}
    paths = set(re.findall(r"`((?:recycler|tests|docs|examples|search_spaces)/[\w/.]*)", PAGE))
    assert [path for path in sorted(paths - added) if not (ROOT / path).exists()] == []


def test_names_of_a_job_file_are_rows_of_their_tables():
    pytest.importorskip("optuna")
    from recycler.engines import ENGINES
    from recycler.search.proposer import SAMPLERS

    assert set(get_args(EngineName)) == set(ENGINES)
    assert set(get_args(SamplerName)) == set(SAMPLERS)
