"""The report's page in a real browser, from a file: what a person gets who opens it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from celery_allocator.history import open_history
from celery_allocator.report import Report, make_report
from celery_allocator.settings import Settings
from celery_allocator.surfaces.report import html_page
from tests.browser import busy
from tests.browser.conftest import Browser
from tests.history.told import window, write
from tests.support.processes import ROOT

#: Where the pictures of the docs are. ``UPDATE_SCREENSHOTS=1`` writes them anew.
PICTURES = ROOT / "docs" / "images"
LARGEST_PICTURE = 150_000


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    url = f"sqlite:///{tmp_path_factory.mktemp('history') / 'history.sqlite3'}"
    with open_history(Settings(history_backend_url=url, history_days=0)) as history:
        write(history, busy.entries())
        return make_report(history, window(0, busy.HOURS))


@pytest.fixture(scope="module")
def url(report: Report, tmp_path_factory: pytest.TempPathFactory) -> str:
    page = tmp_path_factory.mktemp("page") / "report.html"
    page.write_text(html_page(report), encoding="utf-8")
    return page.as_uri()


def save(browser: Browser, name: str, tmp_path: Path) -> None:
    """Take a picture; it must be small, and not be of one colour."""
    path = browser.picture((PICTURES if os.environ.get("UPDATE_SCREENSHOTS") else tmp_path) / name)
    assert 10_000 < path.stat().st_size <= LARGEST_PICTURE


def test_it_asks_the_network_for_nothing_and_complains_of_nothing(browser: Browser, url: str) -> None:
    browser.open(url)
    assert browser.messages == []
    assert browser.requests == [url]
    assert browser.run("return performance.getEntriesByType('resource').length") == 0
    assert browser.run("return document.compatMode") == "CSS1Compat"


def test_the_log_of_the_browser_would_show_what_a_page_asks_for(browser: Browser, tmp_path: Path) -> None:
    """The test above must be able to fail."""
    page = tmp_path / "bad.html"
    page.write_text("<img src='other.png'><script>console.error('oh')</script>", encoding="utf-8")
    browser.open(page.as_uri())
    assert (tmp_path / "other.png").as_uri() in browser.requests
    assert any("oh" in message for message in browser.messages)


def test_its_numbers_are_those_of_the_json(browser: Browser, url: str, report: Report) -> None:
    browser.open(url)
    told = json.loads(json.dumps(report.as_dict()))
    rows: list[dict[str, Any]] = browser.run(
        "return [...document.querySelectorAll('#groups tbody tr, #groups tfoot tr')].map(row => ({"
        "  heads: [...row.querySelectorAll('th')].map(th => th.textContent),"
        "  figures: [...row.querySelectorAll('data')].map(d => [d.dataset.figure, d.value, d.textContent])}))"
    )
    assert len(rows) == len(told["groups"]) + 1 == 8
    for row, group in zip(rows, [*told["groups"], told["totals"]], strict=True):
        assert row["heads"] == ([group["name"], group["tenant"]] if "name" in group else ["Total"])
        assert len(row["figures"]) == 18
        for name, value, shown in row["figures"]:
            assert value == ("" if group[name] is None else str(group[name])), name
            assert shown == "-" if group[name] is None else shown
    tiles = browser.run("return [...document.querySelectorAll('#totals data')].map(d => [d.dataset.figure, d.value])")
    assert tiles == [[name, str(told["totals"][name])] for name, _ in tiles] and len(tiles) == 7


def test_a_name_that_is_markup_is_text(browser: Browser, url: str) -> None:
    browser.open(url)
    name = "<script>alert(document.domain)</script>"
    assert browser.run("return document.scripts.length") == 0
    assert name in browser.run("return [...document.querySelectorAll('#groups th')].map(th => th.textContent)")
    assert name in browser.run("return document.body.innerText")


def test_the_plots_can_be_read_without_seeing_them(browser: Browser, url: str) -> None:
    browser.open(url)
    plots = browser.run(
        "return [...document.querySelectorAll('section:has(svg)')].map(s => ({"
        "  role: s.querySelector('svg').getAttribute('role'), label: s.querySelector('svg').ariaLabel,"
        "  title: s.querySelector('svg > title').textContent, rows: s.querySelectorAll('details tr').length,"
        "  bars: s.querySelectorAll('svg rect').length}))"
    )
    assert [plot["role"] for plot in plots] == ["img"] * 4
    assert all(plot["label"].startswith(plot["title"]) and plot["rows"] > 3 and plot["bars"] > 3 for plot in plots)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(browser: Browser, url: str, scheme: str, tmp_path: Path) -> None:
    browser.open(url, scheme=scheme, height=1300)
    worst = browser.run(_CONTRAST)
    assert worst["ratio"] >= 4.5, worst
    lightness = browser.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(lightness) > 600) is (scheme == "light")
    save(browser, f"report-{scheme}.png", tmp_path)


def test_on_a_phone_only_what_is_wide_scrolls(browser: Browser, url: str, tmp_path: Path) -> None:
    browser.open(url, width=390, height=844, zoom=2)
    assert browser.run("return document.documentElement.scrollWidth") <= 390
    assert browser.run("return Math.max(...[...document.querySelectorAll('.wide')].map(e => e.scrollWidth))") > 390
    smallest = browser.run(
        "return Math.min(...[...document.querySelectorAll('svg text')]"
        ".map(t => t.getScreenCTM().a * parseFloat(getComputedStyle(t).fontSize)))"
    )
    assert smallest >= 8
    save(browser, "report-phone.png", tmp_path)


#: The lowest contrast of any text with what is behind it, as WCAG counts it.
_CONTRAST = """
const rgb = c => c.match(/[\\d.]+/g).map(Number);
const light = c => rgb(c).slice(0, 3).map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const behind = e => { for (; e; e = e.parentElement) {
  const c = getComputedStyle(e).backgroundColor; if ((rgb(c)[3] ?? 1) > 0) return c; } return 'rgb(255,255,255)'; };
let worst = {ratio: 99};
for (const e of document.querySelectorAll('h1,h2,p,dt,dd,th,td,li,summary,footer,text')) {
  const style = getComputedStyle(e), front = e.tagName == 'text' ? style.fill : style.color;
  const [a, b] = [light(front), light(behind(e))].sort((x, y) => y - x);
  const ratio = (a + .05) / (b + .05);
  if (ratio < worst.ratio) worst = {ratio, element: e.tagName, text: e.textContent.slice(0, 40)};
}
return worst;
"""
