"""Names that tests take from a program, read off their text before any box is started.

A program may not put its own in place of what judges it. So builtins, modules of the standard
library that tests look into, and functions that the prompt gave (HumanEval's `poly`,
`encode_cyclic`) are the tests' own, whatever the program calls by these names.
"""

from __future__ import annotations

import ast
import builtins
import symtable
import sys
from dataclasses import dataclass
from functools import lru_cache

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True, slots=True)
class Names:
    """Names that tests take from a program, and code that is the tests' own.

    `wanted` of the program; `modules` among them that are the tests' own where the program has such
    a name at all; `given` is code that the tests' side runs before them.
    """

    wanted: tuple[str, ...]
    modules: tuple[str, ...]
    given: str


@lru_cache(maxsize=4096)
def names_of(tests: str, given: str) -> Names:
    """Names that tests want of a program that begins with the trusted text `given`.

    Tests that are no Python want nothing: they say so when run.
    """
    code = _without_the_task(given)
    own = _module_names(symtable.symtable(ast.unparse(code), "<given>", "exec"))
    try:
        tree, table = ast.parse(tests), symtable.symtable(tests, "<tests>", "exec")
    except (SyntaxError, ValueError, RecursionError):
        return Names((), (), ast.unparse(code))
    looked_into = {
        node.value.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    wanted = _taken(table) - _module_names(table) - {*dir(builtins), "__builtins__"}
    if not wanted:
        asserted = [node.test for node in ast.walk(tree) if isinstance(node, ast.Assert)]
        wanted = {_called(test) for test in asserted} - {""}
    return Names(
        tuple(sorted(wanted - own)),
        tuple(sorted(looked_into & sys.stdlib_module_names)),
        ast.unparse(code),
    )


def _without_the_task(text: str) -> ast.Module:
    """The prompt's own code without what is to be written; nothing where it is no Python.

    To be written are functions of nothing but a docstring, pass or ..., else the last definition.
    """
    for tail in ("", "\n    pass\n"):
        try:
            tree = ast.parse(text + tail)
        except (SyntaxError, ValueError, RecursionError):
            continue
        kept = [node for node in tree.body if not _is_empty(node)]
        ends_in_definition = kept and isinstance(kept[-1], _DEFINITIONS)
        if len(kept) == len(tree.body) and ends_in_definition:
            kept.pop()
        return ast.Module(kept, [])
    return ast.Module([], [])


def _is_empty(node: ast.stmt) -> bool:
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and all(
        isinstance(part, ast.Pass)
        or isinstance(part, ast.Expr)
        and isinstance(part.value, ast.Constant)
        for part in node.body
    )


def _module_names(table: symtable.SymbolTable) -> set[str]:
    """Names that a module binds for itself."""
    return {
        symbol.get_name()
        for symbol in table.get_symbols()
        if symbol.is_assigned() or symbol.is_imported()
    }


def _taken(table: symtable.SymbolTable) -> set[str]:
    """Names that a module and what it defines load from outside functions."""
    here = {
        symbol.get_name()
        for symbol in table.get_symbols()
        if symbol.is_referenced() and (symbol.is_global() or table.get_type() == "module")
    }
    return here.union(*map(_taken, table.get_children()))


def _called(node: ast.AST) -> str:
    """The innermost function that is called by name in the first part of an assertion.

    Tests that take nothing else from the program are of that one, though it be called as a builtin
    is (MBPP 126, `assert sum(10, 15) == 6`).
    """
    inner = ""
    while True:
        if isinstance(node, ast.Compare):
            node = node.left
        elif isinstance(node, ast.UnaryOp):
            node = node.operand
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            inner = node.func.id
            if not node.args:
                return inner
            node = node.args[0]
        else:
            return inner
