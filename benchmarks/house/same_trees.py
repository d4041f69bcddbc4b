"""Show that two commits have the same syntax trees, docstrings compared as `inspect` shows them.

python benchmarks/house/same_trees.py BEFORE AFTER
"""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def tree(commit: str, path: str) -> str:
    """The syntax tree of one file, without places and with clean docstrings."""
    module = ast.parse(_git("show", f"{commit}:{path}"))
    for node in ast.walk(module):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body[0].value.value = inspect.cleandoc(ast.get_docstring(node, clean=False))
    return ast.dump(module)


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout


def main(before: str, after: str) -> int:
    """Print the files whose trees differ; 1 where there are any."""
    paths = _git("ls-tree", "-r", "--name-only", before).splitlines()
    python = [path for path in paths if path.endswith(".py")]
    differing = [path for path in python if tree(before, path) != tree(after, path)]
    print("\n".join([*differing, f"{len(python)} files compared, {len(differing)} differ"]))
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
