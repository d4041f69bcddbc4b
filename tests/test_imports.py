"""The CLI starts at once, and arrows point downward."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "ray", "vllm", "optuna", "transformers", "pandas", "lm_eval", "scipy", "numpy")
ROOT = Path(__file__).resolve().parent.parent / "recycler"
FLOORS = (
    {"types", "errors", "digest"},
    {
        "yamls",
        "shipped",
        "job",
        "costs",
        "space",
        "suite",
        "pareto",
        "stats",
        "wholefolder",
        "redact",
    },
    {"pool", "merge", "engines", "scoring", "evaluate", "cluster", "ledger", "search"},
    {
        "bundle",
        "prepare",
        "report",
        "report_html",
        "run",
        "runs",
        "started",
        "export",
        "score",
        "plan",
        "insight",
        "earlier",
        "notices",
        "without",
        "refine",
        "priced",
    },
    {"cli", "service", "dashboard", "demo", "testing", "__main__"},
)


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


def _floor(module: str) -> int:
    return next(index for index, names in enumerate(FLOORS) if module in names)


def test_imports_go_down_only():
    upward = []
    for path in ROOT.rglob("*.py"):
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [node.module]
                if isinstance(node, ast.ImportFrom) and node.module
                else [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            for name in names:
                target = name.split(".")
                if target[0] == "recycler" and len(target) > 1 and _floor(target[1]) > _floor(part):
                    upward.append(f"{path.relative_to(ROOT)} imports {name}")
    assert upward == []
