"""Load and brush times of the Front page in headless Chromium, over a synthetic run of many trials.

    python benchmarks/dashboard/run.py --trials 5000 --repeats 5

Prints one JSON line: seconds from the address to a page that is drawn (`cold`: the service has just
started; `warm`: it has the run in memory; a new page each, no cache), seconds until its table,
parallel coordinates and pairs are, before Plotly's scatter (`usable`), what of it the service took,
and milliseconds of each brush until all three views show it. Needs the test extra and Debian's
chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from playwright.sync_api import sync_playwright  # noqa: E402

BOUNDS = (0.9, 0.7, 0.5, 0.3, 0.55, 0.8)
DRAG = """async (high) => {
    const field = document.querySelector('[aria-label$="math/exact_match to"]');
    field.value = high;
    field.dispatchEvent(new Event('change'));
    const frame = next => requestAnimationFrame(next);
    await new Promise(done => frame(() => frame(() => setTimeout(done, 0))));
}"""
MEASURES = (
    "name => performance.getEntriesByType('measure').filter(m => m.name === name).map(m => "
    "m.duration)"
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def opened(browser, address: str, run: str) -> tuple[object, float, float]:
    """(page, seconds until it is drawn, milliseconds that the service took for its trials) with an
    empty cache.
    """
    page = browser.new_context(viewport={"width": 1280, "height": 860}).new_page()
    page.set_default_timeout(240_000)
    began = time.monotonic()
    page.goto(f"{address}/jobs/{run}/front")
    page.wait_for_selector("body[data-ready='1']")
    seconds = time.monotonic() - began
    waited = page.evaluate(
        "performance.getEntriesByType('resource').filter(e => "
        "/api.*(trials|table)$/.test(e.name)).map(e => e.responseEnd - e.startTime).reduce((a, "
        "b) => a + b, 0)"
    )
    return page, seconds, waited


def brushed(page) -> list[float]:
    page.wait_for_timeout(3000)  # what comes after the first paint is not a brush
    for high in BOUNDS:
        page.evaluate(DRAG, high)
        page.wait_for_timeout(700)
    return page.evaluate(MEASURES, "brush")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    from service_runs import make_run, served

    with tempfile.TemporaryDirectory() as root, sync_playwright() as playwright:
        make_run(Path(root), "large", merges=arguments.trials, items=8)
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"),
            headless=True,
            args=FLAGS,
        )
        loads, brushes, waits, draws, usable = [], [], [], [], []
        with served(Path(root)) as address:
            for _ in range(arguments.repeats + 1):
                page, seconds, waited = opened(browser, address, "large")
                loads.append(seconds)
                waits.append(waited)
                usable += page.evaluate(MEASURES, "usable")[:1]
                draws += page.evaluate(MEASURES, "draw")[:1]
                brushes += brushed(page)
                page.close()
        browser.close()
    print(
        json.dumps(
            {
                "trials": arguments.trials,
                "load_cold_s": round(loads[0], 2),
                "load_warm_s": [round(value, 2) for value in loads[1:]],
                "usable_s": [round(value / 1000, 2) for value in usable],
                "service_ms": [round(value) for value in waits],
                "draw_ms": [round(value) for value in draws],
                "brush_ms": {
                    "median": round(statistics.median(brushes), 1),
                    "p95": round(sorted(brushes)[int(0.95 * len(brushes))], 1),
                    "max": round(max(brushes), 1),
                },
                "num_brushes": len(brushes),
                "load_average": round(os.getloadavg()[0], 1),
            }
        )
    )


if __name__ == "__main__":
    main()
