"""Pages of the site that are made from the code, and from the files at the top of the repository.

mkdocs calls `on_config`, `on_files` and `on_page_markdown` (see `hooks:` in mkdocs.yml). Nothing
heavy is imported: the commands come from the parser, everything else is read and not run.

    index contributing changelog security   README.md, CONTRIBUTING.md, ...
    commands                                build_parser()
    http-api                                the decorators of the routes
    shipped                                 search_spaces/ and eval_suites/
    reference/                              a page for each public module
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
TOP_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
SERVICE = ROOT / "recycler/service"
HTTP_VERBS = ("get", "post", "put", "patch", "delete")
USAGE_COLUMNS = 88

# ---------------------------------------------------------------- what mkdocs calls


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in the lists of modules and of design pages."""
    sections = {name: pages for section in config.nav for name, pages in section.items()}
    _fill(sections["Reference"], "Python", reference_nav())
    _fill(sections["Inside"], "Design", design_pages())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that no file in docs/ holds."""
    for uri, text in generated_pages().items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead links to the files at the top of the repository to their pages."""
    up = "../" * page.file.src_uri.count("/")
    for name, uri in TOP_PAGES.items():
        markdown = markdown.replace(f"](../{up}{name}", f"]({up}{uri}")
    return markdown


# ---------------------------------------------------------------- all of them


def generated_pages() -> dict[str, str]:
    """Markdown of every generated page by its place below docs/."""
    pages = {uri: top_page(name) for name, uri in TOP_PAGES.items()}
    pages["commands.md"] = commands_page()
    pages["http-api.md"] = http_page()
    pages["shipped.md"] = shipped_page()
    pages["reference/index.md"] = reference_index()
    for module in public_modules():
        text = f"# {module}\n\n{exports(module)}::: {module}\n"
        pages[reference_page(module)] = text
    return pages


def top_page(name: str) -> str:
    """A file at the top of the repository, with its links as seen from docs/."""
    text = (ROOT / name).read_text()
    text = re.sub(r"\]\(docs/", "](", text)
    for other, uri in TOP_PAGES.items():
        text = text.replace(f"]({other}", f"]({uri}")
    return text


def design_pages() -> list[str]:
    """The pages of docs/design/, by name."""
    return [f"design/{path.name}" for path in sorted((ROOT / "docs/design").glob("*.md"))]


# ---------------------------------------------------------------- Python


@cache
def public_modules() -> dict[str, Path]:
    """Every module without a leading underscore by its dotted name, packages before their modules.

    `recycler.search` is a package and a module of its own: its page is that of its `__init__`.
    """
    modules = {}
    for path in (ROOT / "recycler").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if not any(part.startswith("_") for part in parts):
            modules[".".join(parts)] = path
    return dict(sorted(modules.items()))


def reference_page(module: str) -> str:
    """Place of a module's page; that of a package is the index of its folder."""
    place = module.replace(".", "/")
    is_package = public_modules()[module].name == "__init__.py"
    return f"reference/{place}/index.md" if is_package else f"reference/{place}.md"


def reference_nav() -> list[Any]:
    """The pages of all modules by their last names, those of a package in a section of its own."""
    nav: list[Any] = ["reference/index.md", {"recycler": reference_page("recycler")}]
    sections = {"recycler": nav}
    for module, path in public_modules().items():
        if module == "recycler":
            continue
        parent, _, name = module.rpartition(".")
        entry: Any = reference_page(module)
        if path.name == "__init__.py":
            entry = sections[module] = [entry]
        sections[parent].append({name: entry})
    return nav


def exports(module: str) -> str:
    """Links to names that a module loads on first use from the homes that it lists."""
    homes = lazy_names(public_modules()[module])
    if not homes:
        return ""
    lines = ["| import | defined in |", "|---|---|"]
    for name, home in homes.items():
        lines.append(f"| `from {module} import {name}` | [{home}.{name}][] |")
    return "\n".join(lines) + "\n\n"


def lazy_names(path: Path) -> dict[str, str]:
    """The table `_HOMES` of a module: names that it exports, by the modules that define them."""
    for node in ast.parse(path.read_text()).body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if any(getattr(target, "id", "") == "_HOMES" for target in targets):
            return dict(ast.literal_eval(node.value))
    return {}


def reference_index() -> str:
    """A map: each module with the first sentence of its docstring."""
    lines = [
        "# Python",
        "",
        "The names that `recycler.search` exports are for use in other programs and keep their "
        "meaning between versions. Everything else may move with a release; the changelog tells "
        "when. Names with a leading underscore are not listed.",
        "",
        "| module | |",
        "|---|---|",
    ]
    for module, path in public_modules().items():
        page = reference_page(module).removeprefix("reference/")
        lines.append(f"| [`{module}`]({page}) | {_prose(_first_sentence(path))} |")
    return "\n".join(lines) + "\n"


def _first_sentence(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(docstring.partition("\n\n")[0].split())


# ---------------------------------------------------------------- commands


def commands_page() -> str:
    """Every command with its arguments, as `build_parser()` has them."""
    from recycler.cli import build_parser

    parser = build_parser()
    lines = [
        "# Commands",
        "",
        "`recycler COMMAND --help` says the same in a terminal. Data goes to standard output, and "
        "everything else to standard error.",
        "",
        _prose(parser.epilog or ""),
        "",
    ]
    for name, command in subcommands(parser).items():
        lines += _command_section(name, command)
    return "\n".join(lines)


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands of a parser by name, in its order."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _command_section(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=USAGE_COLUMNS)
    yield from (f"## recycler {name}", "", _prose(parser.description or ""), "")
    yield from ("```text", parser.format_usage().removeprefix("usage: ").rstrip(), "```", "")
    yield from ("| argument | meaning |", "|---|---|")
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            yield f"| {_spelling(action)} | {_meaning(action)} |"
    yield ""


def _spelling(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    value = "" if action.nargs == 0 else f" {_value(action)}"
    return ", ".join(f"`{flag}{value}`" for flag in action.option_strings).replace("|", "\\|")


def _value(action: argparse.Action) -> str:
    if action.choices:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return str(action.metavar or action.dest.upper())


def _meaning(action: argparse.Action) -> str:
    text = _prose(action.help or "")
    if action.required and action.option_strings:
        text = f"{text} (required)" if text else "required"
    if "default" in text or action.default in (None, False, [], argparse.SUPPRESS):
        return text
    return f"{text} (default: `{action.default}`)".strip()


def _prose(text: str) -> str:
    """Text of a help line as Markdown that shows it as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", text)


# ---------------------------------------------------------------- HTTP


def http_page() -> str:
    """Every route of the service, as its decorator has it."""
    lines = [
        "# HTTP API",
        "",
        "Served by `recycler serve`; [Service and dashboard](service.md#api) says what the answers "
        "hold, and who may ask. `/api/v1/openapi.json` is the machine-readable description.",
        "",
        "| request | what it is |",
        "|---|---|",
    ]
    lines += [f"| `{verb} {path}` | {_prose(summary)} |" for verb, path, summary in routes()]
    return "\n".join(lines) + "\n"


def routes() -> list[tuple[str, str, str]]:
    """(verb, path, summary) of every route under recycler/service, read from the source.

    Routers are included by the one that has the prefix; routes of the application have none.
    """
    trees = [ast.parse(path.read_text()) for path in sorted(SERVICE.glob("*.py"))]
    prefix = next(filter(None, map(_router_prefix, trees)), "")
    found = []
    for tree in trees:
        for call in _route_calls(tree):
            owner = getattr(call.func.value, "id", "")
            path = ast.literal_eval(call.args[0])
            place = f"{prefix}{path}" if owner == "router" else path
            found.append((call.func.attr.upper(), place, _summary(call)))
    return found


def _route_calls(tree: ast.Module) -> Iterator[ast.Call]:
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from filter(_is_route, function.decorator_list)


def _is_route(decorator: ast.expr) -> bool:
    return (
        isinstance(decorator, ast.Call)
        and isinstance(decorator.func, ast.Attribute)
        and decorator.func.attr in HTTP_VERBS
    )


def _router_prefix(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "APIRouter":
            for keyword in node.keywords:
                if keyword.arg == "prefix":
                    return str(ast.literal_eval(keyword.value))
    return ""


def _summary(decorator: ast.Call) -> str:
    for keyword in decorator.keywords:
        if keyword.arg == "summary":
            return str(ast.literal_eval(keyword.value))
    return ""


# ---------------------------------------------------------------- shipped files


def shipped_page() -> str:
    """The search spaces and suites that come with recycler, by their own descriptions."""
    lines = ["# What ships with it", "", "Copy a file beside your job and edit it.", ""]
    for folder, title in (("search_spaces", "Search spaces"), ("eval_suites", "Suites")):
        lines += [f"## {title}", "", "| name | description |", "|---|---|"]
        for path in sorted((ROOT / folder).glob("*.yaml")):
            description = " ".join(yaml.safe_load(path.read_text())["description"].split())
            lines.append(f"| `{path.stem}` | {_prose(description)} |")
        lines.append("")
    return "\n".join(lines)


# ---------------------------------------------------------------- nav


def _fill(section: list[dict[str, Any]], name: str, pages: list[str]) -> None:
    for entry in section:
        if name in entry:
            entry[name] = pages
