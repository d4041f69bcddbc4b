"""Tasks of lm-eval that would run what a model wrote, in this very process.

They are refused before anything of theirs is imported, by what is read from their definition:
`unsafe_code`, lm-eval's own mark, and the source of every function that it names, with the modules
beside it that those import. A module that loads `code_eval`, or calls exec, eval, a shell, a
process or sympy's parsers (which call eval), counts as running code, whether or not an answer would
get there: a task too many is refused rather than one too few.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# evaluate's own permission to run programs; never given, and taken away where it stands
ALLOW = "HF_ALLOW_CODE_EVAL"
_CALLS = {
    "exec",
    "eval",
    "__import__",
    "system",
    "popen",
    "Popen",
    "run_path",
    "run_module",
    "check_output",
    "check_call",
    "parse_expr",
    "sympify",
    "execv",
    "execve",
    "spawnv",
    "posix_spawn",
}
_WORDS = ("code_eval", ALLOW)


def runs_code(config: Mapping[str, Any], root: Path) -> str:
    """The reason for which a task may run a model's program; '' when it does not.

    `config` was loaded without its functions imported; `root` is lm-eval's tasks folder.
    """
    if config.get("unsafe_code"):
        return "is marked unsafe_code by lm-eval"
    for entry in config.get("metric_list") or []:
        if str(entry.get("metric")) in _WORDS:  # one of evaluate's own, by its name
            return f"is scored by evaluate's {entry['metric']}"
    seen: set[Path] = set()
    for named in sorted(set(_functions(config))):
        found = _module(Path(named.rpartition(".")[0]), root, seen)
        if found:
            return f"is scored by {found}"
    return ""


def function_name(metric: str) -> str:
    """The name of a metric; of a function the last part of it.

    A definition that is loaded unresolved has functions as '/folder/utils.pass_at_k'.
    """
    return metric.rpartition(".")[2] if metric.startswith("/") else metric


def _functions(value: Any) -> Iterator[str]:
    """'FOLDER/module.function' of every !function of a definition."""
    if isinstance(value, str):
        if value.startswith("/") and "\n" not in value and "." in value.rpartition("/")[2]:
            yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _functions(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _functions(entry)


def _module(stem: Path, root: Path, seen: set[Path]) -> str:
    """The part of the module `stem`.py, or of those it imports, that may run code; '' for nothing.

    Of what it imports, modules of `root` are read.
    """
    path = stem.parent / f"{stem.name.replace('.', '/')}.py"
    if not path.is_file() or path in seen:
        return ""
    seen.add(path)
    source = path.read_text(encoding="utf-8", errors="replace")
    place = f"{path.parent.name}/{path.name}"
    for word in _WORDS:
        if word in source:
            return f"{place}, which uses {word}"
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (name := _called(node.func)) in _CALLS:
            return f"{place}, which calls {name}()"
    for stem in _imported(tree, path.parent, root):
        if found := _module(stem, root, seen):
            return found
    return ""


def _called(function: ast.expr) -> str:
    """The bare name of what is called; '' for exec and eval of another owner than builtins.

    So pandas' `frame.eval` gets the benefit of the doubt.
    """
    if isinstance(function, ast.Name):
        return function.id
    if isinstance(function, ast.Attribute):
        owner = function.value.id if isinstance(function.value, ast.Name) else ""
        if owner == "subprocess":
            return "Popen"
        if function.attr not in ("exec", "eval") or owner == "builtins":
            return function.attr
    return ""


def _imported(tree: ast.Module, folder: Path, root: Path) -> Iterator[Path]:
    """Modules of lm-eval's tasks that are imported, as paths without .py."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            base = (node.module or "").replace(".", "/")
            if node.level:
                start = folder.joinpath(*[".."] * (node.level - 1), base).resolve()
                yield from (start, *(start / alias.name for alias in node.names))
                continue
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.startswith("lm_eval.tasks."):
                yield root / name.removeprefix("lm_eval.tasks.").replace(".", "/")
            elif name and "." not in name:
                yield folder / name
