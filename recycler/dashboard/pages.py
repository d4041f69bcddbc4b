"""HTML shells and static files.

A shell holds a title, the navigation and one script; all data comes from the API.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import lru_cache
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, HTMLResponse, Response

from recycler.errors import NotFoundError, Problem, UsageError

STATIC = Path(__file__).parent / "static"
TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
PLOTLY = "plotly.min.js"
TABS = {"progress": "Progress", "front": "Front", "compare": "Compare", "pool": "Pool"}
FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}
JobId = Annotated[str, PathParameter(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]

SHELL = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="{static}/icon.svg">
<link rel="stylesheet" href="{static}/style.css">
<script src="{static}/theme.js"></script>
{preloads}<script type="module" src="{static}/{script}.js"></script>
{plotly}</head>
<body data-job="{job}" data-ledger="{ledger}">
<a class="skip" href="#main">Skip to content</a>
<header>
<a class="brand" href="/">recycler</a>
<nav aria-label="Pages">{tabs}</nav>
<button type="button" id="theme" aria-pressed="false">Dark</button>
</header>
<main id="main" tabindex="-1"><h1>{heading}</h1>
<p id="notice" role="status" aria-live="polite"></p><div id="page"></div>
<noscript>
This page draws its charts with scripts of this server; please allow them.
</noscript>
</main>
</body>
</html>
"""


def pages_router(has_ledger: Callable[[str], bool]) -> APIRouter:
    """Serve pages and static files.

    `has_ledger` returns whether the driver of a job has opened its ledger, and raises NotFoundError
    for an id that is no job.
    """
    files = {
        path.name: path.read_bytes() for path in sorted(STATIC.iterdir()) if path.suffix in TYPES
    }
    plotly = plotly_file()
    version = hashlib.sha256(
        b"".join(files.values()) + str(plotly.stat().st_size).encode()
    ).hexdigest()[:12]
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    def jobs() -> HTMLResponse:
        return _page(version, "jobs", "Jobs", None)

    @router.get("/jobs/{job}")
    def overview(job: JobId) -> HTMLResponse:
        return page(job, "progress")

    @router.get("/jobs/{job}/{tab}")
    def page(job: JobId, tab: str) -> HTMLResponse:
        if tab not in TABS:
            raise NotFoundError(
                Problem(thing="page", cause="unknown", remedy=f"Pages: {', '.join(TABS)}")
            )
        return _page(version, tab, f"{job}: {TABS[tab].lower()}", job, has_ledger=has_ledger(job))

    @router.get("/static/{given}/{name}")
    def static(given: str, name: str) -> Response:
        headers = FOREVER if given == version else {"Cache-Control": "no-cache"}
        if name == PLOTLY:
            return FileResponse(plotly, media_type=TYPES[".js"], headers=headers)
        if name not in files:
            raise NotFoundError(Problem(thing="file", cause="unknown", remedy="Reload the page"))
        return Response(files[name], headers={**headers, "Content-Type": TYPES[Path(name).suffix]})

    return router


def plotly_file() -> Path:
    """plotly.min.js of the installed plotly package, found without importing it.

    Raises UsageError.
    """
    spec = find_spec("plotly")
    path = Path(spec.origin).parent / "package_data" / PLOTLY if spec and spec.origin else None
    if path is None or not path.is_file():
        raise UsageError(
            Problem(thing="plotly", cause="not installed", remedy="pip install 'recycler[service]'")
        )
    return path


@lru_cache
def _modules(name: str) -> tuple[str, ...]:
    """Imports of a module, direct and indirect: the browser asks for all at once."""
    found: dict[str, None] = {}
    waiting = [name]
    while waiting:
        for other in re.findall(r'from "\./([\w.-]+)"', (STATIC / waiting.pop()).read_text()):
            if other not in found:
                found[other] = None
                waiting.append(other)
    return tuple(found)


def _page(
    version: str, script: str, heading: str, job: str | None, *, has_ledger: bool = False
) -> HTMLResponse:
    static = f"/static/{version}"
    tabs = [("/", "Jobs", script == "jobs")] + (
        [(f"/jobs/{job}/{tab}", name, tab == script) for tab, name in TABS.items()] if job else []
    )
    links = "".join(
        f'<a href="{escape(address)}"{" aria-current=page" if current else ""}>{escape(name)}</a>'
        for address, name, current in tabs
    )
    plotly = (
        f'<link rel="preload" as="script" href="{static}/{PLOTLY}" id="plotly">\n'
        if script in TABS
        else ""
    )
    preloads = "".join(
        f'<link rel="modulepreload" href="{static}/{name}">\n' for name in _modules(f"{script}.js")
    )
    return HTMLResponse(
        SHELL.format(
            title=escape(f"{heading} · recycler"),
            static=static,
            script=script,
            job=escape(job or ""),
            ledger="1" if has_ledger else "",
            tabs=links,
            heading=escape(heading),
            plotly=plotly,
            preloads=preloads,
        )
    )
