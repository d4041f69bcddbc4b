"""A real headless Chromium over synthetic runs."""

from urllib.parse import urlsplit

import pytest

from service_runs import EVIL, make_run, served


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
    # Imported here: a test module that imports browsing is skipped where there is no browser, and
    # a conftest cannot be.
    from playwright.sync_api import sync_playwright

    from browsing import CHROMIUM, FLAGS, TIMEOUT_MS

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=CHROMIUM,
            headless=True,
            args=FLAGS,
            viewport={"width": 1280, "height": 860},
        )
        context.set_default_timeout(TIMEOUT_MS)
        yield context
        context.close()


@pytest.fixture
def page(browser, address):
    """A page that fails the test when it logs an error or asks anybody but the service."""
    page, wrong = browser.new_page(), []
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
