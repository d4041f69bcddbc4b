"""Measures of one Python file: its lines, functions, imports, docstrings and comments."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from dataclasses import dataclass, field

QUESTIONS = ("What", "Whether", "How", "Which")
COLUMN = 100
"""First sentences of docstrings end at this column or before it."""
_SENTENCE = re.compile(r".*?[.!?][)\"'`]*(?=\s+[^a-z\s]|\s*$)")
_QUOTES = re.compile(r"[rRuU]*(\"\"\"|'''|\"|')")
_TYPE_IGNORE = re.compile(r"#\s*type:\s*ignore(\[[^\]]*\])?")
_NOQA = re.compile(r"#\s*(?:ruff:\s*)?noqa\b(:\s*[A-Z]+[0-9]+(?:[,\s]+[A-Z]+[0-9]+)*)?")
_BOUND = re.compile(r"_?(MOST|LEAST|MAX|MIN)_")
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Documented = ast.Module | ast.ClassDef | _Function


@dataclass(frozen=True)
class Function:
    """A function and its number of lines, from `def` to its end, without its docstring."""

    name: str
    lines: int


@dataclass(frozen=True)
class Import:
    """An import statement; `explained` where a comment says why it stands there."""

    node: ast.Import | ast.ImportFrom
    type_checking: bool
    explained: bool


@dataclass
class Measures:
    """Everything counted in one file; sums and shares are taken over all files at once."""

    path: str
    widths: list[int] = field(default_factory=list)
    num_blank: int = 0
    num_comments: int = 0
    """Lines that carry a comment, alone or behind code."""
    functions: list[Function] = field(default_factory=list)
    imports: list[Import] = field(default_factory=list)
    bounds: set[str] = field(default_factory=set)
    """Names assigned that open with MOST_, LEAST_, MAX_ or MIN_."""
    counts: Counter[str] = field(default_factory=Counter)
    """By kind: conditional, comprehension, parameter, annotated, docstring, question, late,
    delayed, unexplained, type_ignore, type_ignore_bare, noqa, noqa_bare."""
    places: list[tuple[str, str]] = field(default_factory=list)
    """Kind and `path:line` of what is question, late or unexplained."""


def measure(path: str, text: str) -> Measures:
    """The measures of one file; SyntaxError names the file that this Python cannot parse."""
    lines = text.splitlines()
    comments = _comments(text)
    measures = Measures(path=path, widths=[len(line) for line in lines])
    measures.num_blank = sum(not line.strip() for line in lines)
    measures.num_comments = len(comments)
    for comment in comments.values():
        measures.counts.update(_ignores(comment))
    _Reader(measures, lines, comments).visit(ast.parse(text, filename=path))
    return measures


def _comments(text: str) -> dict[int, str]:
    """The comment of each line that has one."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}


def _ignores(comment: str) -> list[str]:
    kinds = []
    for kind, pattern in (("type_ignore", _TYPE_IGNORE), ("noqa", _NOQA)):
        for match in pattern.finditer(comment):
            kinds.append(kind)
            if not match.group(1):
                kinds.append(f"{kind}_bare")
    return kinds


def _says_why(comment: str) -> bool:
    """Words are left once the directives to linters are taken out."""
    words = _NOQA.sub("", _TYPE_IGNORE.sub("", comment))
    return re.search(r"[A-Za-z]", words) is not None


class _Reader(ast.NodeVisitor):
    """Walks one tree in the order of its text and fills `measures`."""

    def __init__(self, measures: Measures, lines: list[str], comments: dict[int, str]) -> None:
        self._measures = measures
        self._lines = lines
        self._comments = comments
        self._scopes: list[ast.ClassDef | _Function] = []
        self._type_checking = False

    def visit_Module(self, node: ast.Module) -> None:
        self._docstring(node)
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._docstring(node)
        self._enter(node)

    def visit_FunctionDef(self, node: _Function) -> None:
        names = [scope.name for scope in self._scopes] + [node.name]
        size = node.end_lineno - node.lineno + 1 - self._docstring(node)
        self._measures.functions.append(Function(".".join(names), size))
        for parameter in self._parameters(node):
            self._measures.counts["parameter"] += 1
            self._measures.counts["annotated"] += parameter.annotation is not None
        self._enter(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def _enter(self, node: ast.ClassDef | _Function) -> None:
        self._scopes.append(node)
        self.generic_visit(node)
        self._scopes.pop()

    def _parameters(self, node: _Function) -> list[ast.arg]:
        """The parameters, `self` and `cls` of methods left out."""
        named = [*node.args.posonlyargs, *node.args.args]
        in_class = bool(self._scopes) and isinstance(self._scopes[-1], ast.ClassDef)
        if in_class and named and named[0].arg in ("self", "cls"):
            named = named[1:]
        rest = [node.args.vararg, node.args.kwarg]
        return [*named, *node.args.kwonlyargs, *filter(None, rest)]

    def _docstring(self, node: _Documented) -> int:
        """Judge the docstring and return its number of lines; 0 where there is none."""
        text = ast.get_docstring(node, clean=False)
        if not text or not text.strip():
            return 0
        literal = node.body[0].value
        opening = re.match(r"\w*", text.strip()).group()
        self._measures.counts["docstring"] += 1
        if opening in QUESTIONS:
            self._mark("question", literal)
        if self._end_column(literal, text) > COLUMN:
            self._mark("late", literal)
        return literal.end_lineno - literal.lineno + 1

    def _mark(self, kind: str, node: ast.expr | ast.stmt) -> None:
        self._measures.counts[kind] += 1
        self._measures.places.append((kind, f"{self._measures.path}:{node.lineno}"))

    def _end_column(self, literal: ast.Constant, text: str) -> int:
        """The column where the first sentence ends, or would end were it not wrapped."""
        column = literal.col_offset
        if not text.startswith("\n"):
            column += len(_QUOTES.match(self._lines[literal.lineno - 1][column:]).group())
        paragraph = " ".join(re.split(r"\n\s*\n", text.strip())[0].split())
        sentence = _SENTENCE.match(paragraph)
        if sentence is None:
            return column + len(paragraph)
        return column + sentence.end()

    def visit_If(self, node: ast.If) -> None:
        if not ast.unparse(node.test).endswith("TYPE_CHECKING"):
            self.generic_visit(node)
            return
        outer, self._type_checking = self._type_checking, True
        for statement in node.body:
            self.visit(statement)
        self._type_checking = outer
        for statement in node.orelse:
            self.visit(statement)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        in_function = any(not isinstance(scope, ast.ClassDef) for scope in self._scopes)
        explained = self._explained(node)
        if in_function and not self._type_checking:
            self._measures.counts["delayed"] += 1
            if not explained:
                self._mark("unexplained", node)
        self._measures.imports.append(Import(node, self._type_checking, explained))

    visit_ImportFrom = visit_Import

    def _explained(self, node: ast.Import | ast.ImportFrom) -> bool:
        """A comment in its lines, or right above it or its block of imports, has words."""
        for number in range(node.lineno, node.end_lineno + 1):
            if _says_why(self._comments.get(number, "")):
                return True
        above = node.lineno - 1
        previous = self._measures.imports[-1:]
        if previous and previous[0].node.end_lineno == above:
            return previous[0].explained
        while above in self._comments and self._lines[above - 1].lstrip().startswith("#"):
            if _says_why(self._comments[above]):
                return True
            above -= 1
        return False

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store) and _BOUND.match(node.id):
            self._measures.bounds.add(node.id)

    def generic_visit(self, node: ast.AST) -> None:
        self._measures.counts["conditional"] += isinstance(node, ast.IfExp)
        self._measures.counts["comprehension"] += isinstance(node, _COMPREHENSIONS)
        super().generic_visit(node)
