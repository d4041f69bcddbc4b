"""A real headless Chromium over synthetic runs: fixtures and gestures that the dashboard's tests
share.
"""

import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("fastapi", reason="needs recycler[service]")
pytest.importorskip("plotly", reason="needs recycler[service]")
pytest.importorskip("playwright", reason="needs playwright, see the test extra")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("needs Chromium: apt-get install chromium", allow_module_level=True)

from playwright.sync_api import expect, sync_playwright
from service_runs import EVIL, make_run, served

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TIMEOUT_MS = 60_000  # of one expectation; machines that run tests are busy
SCREENSHOTS = (
    Path(os.environ["RECYCLER_SCREENSHOTS"]) if "RECYCLER_SCREENSHOTS" in os.environ else None
)
expect.set_options(timeout=TIMEOUT_MS)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    make_run(root, "demo", checkpoints=True, suites=True)
    make_run(root, "evil", merges=3, label=EVIL)
    make_run(root, "live", merges=8, finished=False)
    return root


@pytest.fixture(scope="module")
def address(root):
    with served(root) as address:
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=CHROMIUM,
            headless=True,
            args=FLAGS,
            viewport={"width": 1280, "height": 860},
        )
        yield context
        context.close()


@pytest.fixture
def page(browser, address):
    """A page that fails the test when it logs an error or asks anybody but the service."""
    page, wrong = browser.new_page(), []
    page.set_default_timeout(TIMEOUT_MS)
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on(
        "console",
        lambda message: (
            wrong.append(f"console: {message.text}") if message.type == "error" else None
        ),
    )
    page.on(
        "request",
        lambda request: (
            wrong.append(f"asked {request.url}")
            if urlsplit(request.url).scheme not in ("data", "blob")
            and urlsplit(request.url).hostname != "127.0.0.1"
            else None
        ),
    )
    yield page
    page.close()
    assert not wrong, wrong  # pytest explains asserts in test modules only


def opened_front(page, address, run="demo", fragment=""):
    page.goto(f"{address}/jobs/{run}/front{fragment}")
    page.wait_for_selector("body[data-ready='1']")
    return page


def shot(page, name):
    if SCREENSHOTS:
        page.screenshot(path=SCREENSHOTS / f"{name}.png")


def rows(page):
    return page.eval_on_selector_all(
        "#table tbody tr", "rows => rows.map(row => +row.dataset.trial)"
    )


def bright(page):
    """Numbers of the trials that the scatter shows bright; None when nothing is dimmed."""
    return page.evaluate("""() => { const traces = document.getElementById('scatter').data.slice(0, 6);
        return traces.some(t => t.selectedpoints) ? traces.flatMap(t => (t.selectedpoints ?? []).map(i => t.customdata[i])) : null; }""")


def press_until(page, selector):
    """Tab from where the focus is until an element that fits has it."""
    for _ in range(400):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"no way to {selector} by keyboard")
