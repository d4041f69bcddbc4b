"""The documentation site builds without a warning, is complete, and loads nothing foreign."""

from __future__ import annotations

import ast
import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from places import ROOT
from recycler.cli import build_parser
from recycler.specs.job import (
    BudgetSpec,
    CostSpec,
    EngineSpec,
    FidelitySpec,
    JobSpec,
    ObjectiveSpec,
    PoolSpec,
)
from recycler.specs.space import SpaceSpec
from recycler.specs.suite import TaskSpec

pytestmark = pytest.mark.long

LOADED = (  # what a browser fetches by itself when it shows a page
    r'<(?:script|img|iframe|source|audio|video|embed|input)\b[^>]*?\bsrc(?:set)?\s*=\s*["\']?([^"\'\s>]+)',
    r'<link\b(?=[^>]*\brel="?[^">]*(?:stylesheet|preload|prefetch|preconnect|icon|manifest))'
    r'[^>]*?\bhref\s*=\s*["\']?([^"\'\s>]+)',
    r'@import\s+(?:url\()?["\']?([^"\')\s;]+)',
    r'\burl\(\s*["\']?([^"\')\s]+)',
)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site as `make docs` builds it, in a folder of the test's own."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (the extra `docs` brings it)")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_the_site_asks_no_other_machine_for_anything(site):
    pages = [path for path in site.rglob("*") if path.suffix in (".html", ".css", ".svg")]
    assert len(pages) > 200
    foreign = [
        f"{path.relative_to(site)}: {address}"
        for path in pages
        for address in loaded_addresses(path.read_text())
        if re.match(r"(?:[a-z][a-z0-9+.-]*:)?//", address, re.IGNORECASE)
    ]
    assert foreign == []


@pytest.mark.parametrize(
    "text, address",
    [
        ('<script src="https://a.example/x.js">', "https://a.example/x.js"),
        ('<img alt="a" src=//a.example/x.png>', "//a.example/x.png"),
        ('<link rel="stylesheet" href="https://a.example/x.css">', "https://a.example/x.css"),
        ('<link href="https://a.example/x.css" rel="stylesheet">', "https://a.example/x.css"),
        ('@import url("https://a.example/x.css");', "https://a.example/x.css"),
        ("@import 'https://a.example/x.css';", "https://a.example/x.css"),
        ("src: url(https://a.example/x.woff2)", "https://a.example/x.woff2"),
    ],
)
def test_every_way_of_asking_another_machine_is_seen(text, address):
    assert address in loaded_addresses(text)


def loaded_addresses(text: str) -> list[str]:
    """Addresses that a browser fetches without being asked when it shows `text`."""
    return [address for pattern in LOADED for address in re.findall(pattern, text, re.IGNORECASE)]


def test_every_command_and_flag_is_on_the_site(site):
    text = (site / "commands.html").read_text()
    commands = build_parser()._subparsers._group_actions[0].choices
    missing = []
    for name, parser in commands.items():
        section = text.partition(f'id="recycler-{name}"')[2].partition("<h2")[0]
        for action in parser._actions[1:]:
            spellings = action.option_strings or [action.metavar or action.dest]
            missing += [f"{name} {each}" for each in spellings if f"<code>{each}" not in section]
    assert missing == [] and len(commands) > 20


def test_every_job_key_is_on_the_site(site):
    keys = [
        *JobSpec.model_fields,
        *SpaceSpec.model_fields,
        *ObjectiveSpec.model_fields,
        *CostSpec.model_fields,
        *(f"pool.{key}" for key in PoolSpec.model_fields),
        *(f"engine.{key}" for key in EngineSpec.model_fields),
        *(f"budget.{key}" for key in BudgetSpec.model_fields),
        *(f"fidelity.{key}" for key in FidelitySpec.model_fields),
    ]
    text = code_words(site / "job.html")
    assert [key for key in keys if key not in text] == []
    assert set(TaskSpec.model_fields) <= code_words(site / "suites.html")


def test_every_method_sampler_and_scorer_is_on_the_site(site):
    from recycler.merge.methods.registry import MERGE_METHODS
    from recycler.scoring.scorers import SCORERS

    samplers = JobSpec.model_fields["sampler"].annotation.__args__
    assert set(MERGE_METHODS) <= code_words(site / "methods.html")
    assert set(samplers) <= code_words(site / "design/search.html")
    assert set(SCORERS) <= code_words(site / "suites.html")


def code_words(page: Path) -> set[str]:
    """Words that stand as code on a page: those of `{suite, task?}` are suite and task."""
    spans = re.findall(r"<code>(.*?)</code>", page.read_text(), re.DOTALL)
    found = set()
    for span in map(html.unescape, spans):
        found |= {span, *re.findall(r"[\w.@+-]+", span)}
    return found


def test_every_http_route_is_on_the_site(site, tmp_path):
    pytest.importorskip("fastapi")
    from recycler.service.app import create_app

    paths = create_app(tmp_path, token=None).openapi()["paths"]
    wanted = {f"{verb.upper()} {path}" for path, verbs in paths.items() for verb in verbs}
    text = (site / "http-api.html").read_text()
    assert [each for each in sorted(wanted) if f"<code>{each}</code>" not in text] == []


def test_every_public_name_is_in_the_reference(site):
    """Functions, classes, and public methods of classes, each with a link of its own."""
    missing = []
    for path in sorted((ROOT / "recycler").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if any(part.startswith("_") for part in parts):
            continue
        module, place = ".".join(parts), "/".join(parts)
        is_package = path.name == "__init__.py"
        page = site / "reference" / (f"{place}/index.html" if is_package else f"{place}.html")
        text = page.read_text()
        names = [f"{module}.{name}" for name in public_names(ast.parse(path.read_text()))]
        missing += [name for name in names if f'id="{name}"' not in text]
    assert missing == []


def public_names(tree: ast.Module | ast.ClassDef) -> list[str]:
    """Public functions and classes that are defined here, those of a class as CLASS.NAME."""
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            found.append(node.name)
            if isinstance(node, ast.ClassDef):
                found += [f"{node.name}.{name}" for name in public_names(node)]
    return found


def test_names_to_import_lead_to_their_pages(site):
    import recycler.search

    text = (site / "reference/recycler/search/index.html").read_text()
    rows = re.findall(r"from recycler\.search import (\w+)</code></td>\s*<td><a [^>]*href=", text)
    assert sorted(rows) == recycler.search.__all__
