"""The documentation's site in a real browser, opened from a file: no server, no network."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.conftest import Browser
from tests.support.docs_site import built
from tests.support.waiting import wait_until

WIDTHS = {"desktop": 1280, "phone": 390}
#: One of each kind: home, snippets, wide tables, drawings, long reference, a file that is shown.
LOOKED_AT = ["index", "howto/gpu-box", "guarantees", "architecture", "reference/cli", "files/configs/redis.conf"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("docs") / "site")


@pytest.mark.parametrize("page", LOOKED_AT)
def test_a_page_asks_the_network_for_nothing_and_complains_of_nothing(browser: Browser, site: Path, page: str) -> None:
    browser.open((site / f"{page}.html").as_uri())
    assert browser.messages == []
    assert browser.requests
    assert not [url for url in browser.requests if not url.startswith(("file:", "data:", "about:"))]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", WIDTHS)
@pytest.mark.parametrize("page", LOOKED_AT)
def test_no_page_is_wider_than_its_window(browser: Browser, site: Path, page: str, device: str, scheme: str) -> None:
    browser.open((site / f"{page}.html").as_uri(), width=WIDTHS[device], scheme=scheme)
    assert browser.run("return document.documentElement.scrollWidth") <= WIDTHS[device]
    assert browser.run("return document.body.dataset.mdColorScheme") == ("slate" if scheme == "dark" else "default")


def test_the_search_finds_a_page_without_a_server(browser: Browser, site: Path) -> None:
    browser.open((site / "index.html").as_uri())
    browser.run("document.querySelector('[data-md-toggle=search]').click()")
    field = browser.driver.find_element("css selector", "[data-md-component=search-query]")
    field.send_keys("callgrind")  # a word of one page
    links = "return [...document.querySelectorAll('.md-search-result__link')].map(link => link.href)"
    wait_until(lambda: any("benchmarks.html" in link for link in browser.run(links)), 20, "the search finds it")
    assert browser.messages == []


def test_what_is_copied_of_a_console_is_its_commands(browser: Browser, site: Path) -> None:
    browser.open((site / "get-started.html").as_uri())
    copied = browser.run(
        """const blocks = [...document.querySelectorAll('.language-console code')];
        const code = blocks.find(block => block.innerText.includes('status'));
        code.setAttribute('data-md-copying', '');  // as the button does
        return code.innerText"""
    )
    lines = [line for line in copied.splitlines() if line.strip()]
    assert lines == ["celery -A proj allocator status", "celery -A proj allocator queue"]
