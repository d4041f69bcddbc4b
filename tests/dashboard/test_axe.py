"""axe-core finds nothing serious on any page of the dashboard, light or dark, wide or narrow."""

import json

import pytest

pytest.importorskip(
    "axe_playwright_python", reason="needs axe-playwright-python, see the test extra"
)
from axe_playwright_python.sync_playwright import Axe

from browsing import opened_front

pytestmark = pytest.mark.browser
PAGES = {
    "jobs": "/",
    "progress": "/jobs/demo",
    "front": "/jobs/demo/front",
    "compare": "/jobs/demo/compare#trials=0,1",
    "pool": "/jobs/demo/pool",
}
RULES = {
    "resultTypes": ["violations"],
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
}


def findings(page):
    """[(rule, impact, the first element)] of what axe calls serious or critical."""
    found = Axe().run(page, options=RULES).response["violations"]
    return [
        (violation["id"], violation["impact"], violation["nodes"][0]["html"][:200])
        for violation in found
        if violation["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(page, address, name, scheme):
    page.emulate_media(color_scheme=scheme)
    page.goto(address + PAGES[name])
    page.wait_for_selector("body[data-ready='1']")
    for details in page.locator("main details").all()[:6]:
        details.evaluate("details => { details.open = true; }")
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert findings(page) == []


def test_axe_finds_nothing_serious_on_a_phone(page, address):
    page.set_viewport_size({"width": 390, "height": 780})
    opened_front(page, address)
    assert findings(page) == []


def test_axe_would_find_a_button_without_a_name(page, address):
    opened_front(page, address)
    page.evaluate("document.querySelector('main').append(document.createElement('button'))")
    assert "button-name" in {rule for rule, _, _ in findings(page)}, json.dumps(findings(page))
