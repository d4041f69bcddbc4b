"""Gestures in a real headless Chromium; imported without one, the test module is skipped."""

import os
import shutil
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs recycler[service]")
pytest.importorskip("plotly", reason="needs recycler[service]")
expect = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright, see the test extra"
).expect
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("needs Chromium: apt-get install chromium", allow_module_level=True)

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
    return page.evaluate("""() => {
        const traces = document.getElementById('scatter').data.slice(0, 6);
        if (!traces.some(t => t.selectedpoints)) return null;
        return traces.flatMap(t => (t.selectedpoints ?? []).map(i => t.customdata[i])); }""")


def press_until(page, selector):
    """Tab from where the focus is until an element that fits has it."""
    for _ in range(400):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"no way to {selector} by keyboard")
