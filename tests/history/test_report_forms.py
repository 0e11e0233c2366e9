"""A report as table, JSON, CSV and HTML: the same numbers, whatever the names are."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from celery_allocator.history import History
from celery_allocator.history.writer import Hole
from celery_allocator.report import FIGURES, make_report
from celery_allocator.settings import Settings
from celery_allocator.surfaces.cli import allocator
from celery_allocator.surfaces.report import csv_text, html_page
from celery_allocator.surfaces.report.page import MOST_ROWS
from tests.history.made import BEGAN, entry, submitted
from tests.history.told import entries, window, write
from tests.support.page import Page

Run = Callable[..., Any]
WHOLE = ("--since", "2023-11-14T22:13:20Z", "--until", "2023-11-15T10:13:20Z")
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def run(settings: Settings) -> Run:
    """Run the command on this history; the exit code must be ``code``. Returns click's result."""
    assert settings.history_backend_url is not None
    env = {"ALLOCATOR_HISTORY_BACKEND_URL": settings.history_backend_url, "ALLOCATOR_POOL": settings.pool}

    def invoke(*args: str, code: int = 0) -> Any:
        result = CliRunner().invoke(allocator, ["report", *args], env=env, prog_name="celery-allocator")
        assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
        return result

    return invoke


def test_the_table(run: Run, history: History) -> None:
    write(history, entries())
    lines = run(*WHOLE).stdout.splitlines()
    assert lines[0].endswith(", 2023-11-14T22:13:20Z to 2023-11-15T10:13:20Z")
    row = next(line for line in lines if line.startswith("proj.infer"))
    assert row.split() == (
        "proj.infer team 2 1 1 1 50 % 6.00 0.50 1.50 2 h 4 h 1 h 2 h 0 0 -1 h 50 % 50 % 30 min".split()  # noqa: SIM905
    )
    assert next(line for line in lines if line.startswith("TOTAL")).split()[:6] == ["TOTAL", "-", "5", "1", "3", "1"]
    assert "outcomes: 1 cancelled, 1 failure, 3 success" in lines
    dates = [" ".join(line.split()) for line in lines[lines.index("dates that were promised at submit:") + 1 :]]
    uses = dates.index("what was promised, and the most that runs used of it:")
    assert dates[uses + 2 :] == ["proj.infer GPU memory 1 6,144 MB 3,072 MB 3,072 MB 50 % 0 0"]
    assert dates[1 : uses - 1] == [
        "Day 2023-11-15 2 50 % 30 min",
        "Tenant team 2 50 % 30 min",
        "Name proj.infer 2 50 % 30 min",
    ]
    assert "Nothing happened." in run("--since", "2020-01-01", "--until", "2020-01-02").stdout


def test_json_and_csv_have_the_same_numbers(run: Run, history: History, tmp_path: Path) -> None:
    write(history, entries())
    told = json.loads(run(*WHOLE, "--json", "--by", "tenant,device", "--csv", str(tmp_path / "r.csv")).stdout)
    assert (told["by"], told["since"], told["gaps"]) == (["tenant", "device"], "2023-11-14T22:13:20Z", [])
    rows = list(csv.reader(io.StringIO((tmp_path / "r.csv").read_text(encoding="utf-8"))))
    assert rows[0] == ["row", "tenant", "device", *FIGURES]
    assert rows[0] == next(csv.reader(io.StringIO(run("--by", "tenant,device", "--csv", "-").stdout)))
    assert [row[0] for row in rows[1:]] == ["group"] * len(told["groups"]) + ["total"]
    for row, data in zip(rows[1:], [*told["groups"], told["totals"]], strict=True):
        shown = dict(zip(rows[0], row, strict=True))
        for name in FIGURES:
            value = data[name]
            expected = " ".join(f"{k}={v}" for k, v in value.items()) if name == "outcomes" else value
            assert shown[name] == ("" if expected is None else str(expected)), name


def test_the_page_has_the_numbers_of_the_json(run: Run, history: History, tmp_path: Path) -> None:
    write(history, entries())
    told = json.loads(run(*WHOLE, "--json", "--html", str(tmp_path / "r.html")).stdout)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    tiles, table = page.numbers[:7], page.numbers[7:]
    for name, value in tiles:
        expected = told["totals"][name]
        assert value == ("" if expected is None else str(expected)), name
    width = len(table) // (len(told["groups"]) + 1)
    for row, data in enumerate([*told["groups"], told["totals"]]):
        for name, value in table[row * width : (row + 1) * width]:
            assert value == ("" if data[name] is None else str(data[name])), (row, name)
    assert [tag for tag, _ in page.elements].count("svg") == 4
    pictures = re.findall(r"<svg[^>]*role=\"img\"[^>]*><title>[^<]+</title><desc>[^<]+</desc>", text)
    assert len(pictures) == 4
    assert [tag for tag, _ in page.elements].count("details") == 4


def test_a_page_needs_nothing_from_outside_and_runs_nothing(history: History) -> None:
    write(history, entries())
    text = html_page(make_report(history, window(0, 12)))
    page = Page(text)
    assert not {tag for tag, _ in page.elements} & {"script", "link", "img", "iframe", "object", "base", "form", "a"}
    named = {name for _, told in page.elements for name in told}
    assert not {name for name in named if name.startswith("on")} | (named & {"src", "href", "action", "style"})
    assert not re.search(r"https?:|url\(|@import|//", text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


SPECIAL = '<img src=x onerror="alert(1)">&amp;\'</style></title></svg>]]>--><!-- Ümlaut 😀 \u202e\x07'


def test_names_are_text_wherever_they_stand(history: History) -> None:
    told = [
        submitted(1, "granted", "a", name=SPECIAL, tenant=SPECIAL, device=f"n1/{SPECIAL}", token=1, cores="0"),
        entry(9, "released", "a", name=SPECIAL, device=f"n1/{SPECIAL}", token=1, outcome=SPECIAL),
    ]
    write(history, told)
    report = make_report(history, window(0, 1), ("name", "tenant", "device"))
    page = Page(html_page(report))
    assert "img" not in [tag for tag, _ in page.elements]
    shown = SPECIAL.replace("\x07", "\ufffd")
    assert page.words.count(shown) >= 4 and f"n1/{shown}" in page.words
    _, group, _ = csv.reader(io.StringIO(csv_text(report)))
    assert group[1:4] == [SPECIAL, SPECIAL, f"n1/{SPECIAL}"]


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx"])
def test_a_spreadsheet_runs_no_name(history: History, name: str) -> None:
    write(history, [submitted(1, object_id="a", name=name), entry(2, "cancelled", "a", outcome=name, name=name)])
    _, group, _ = csv.reader(io.StringIO(csv_text(make_report(history, window(0, 1), ("name",)))))
    assert group[1] == f"'{name}" and dict(zip(FIGURES, group[2:], strict=True))["outcomes"].startswith("'")


def test_a_page_of_very_many_groups_says_what_it_leaves_out(history: History) -> None:
    told = []
    for number in range(MOST_ROWS + 1):
        name = f"name {number}"
        told += [
            submitted(2 * number, object_id=name, name=name, at=number),
            entry(2 * number + 1, "cancelled", name, name=name, outcome="cancelled", at=number),
        ]
    write(history, told)
    report = make_report(history, window(0, 1), ("name",))
    text = html_page(report)
    assert f"The first {MOST_ROWS} of {MOST_ROWS + 1} groups" in text
    assert csv_text(report).count("\n") == MOST_ROWS + 3
    assert dict(Page(text).numbers)["tasks"] == str(MOST_ROWS + 1)


def test_a_page_of_nothing(history: History) -> None:
    write(history, [])
    page = Page(html_page(make_report(history, window(0, 1))))
    assert "svg" not in [tag for tag, _ in page.elements]
    assert dict(page.numbers)["tasks"] == "0"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--by", "colour"], "'colour' is none of name, tenant, node, device, day"),
        (["--since", "soon"], "since='soon': is neither"),
        (["--since", "1h", "--until", "2h"], "must be before until"),
        (["--json", "--csv", "-"], "only one of --json, --csv - and --html -"),
        (["--html", "-", "--csv", "-"], "only one of"),
    ],
)
def test_wrong_calls(run: Run, history: History, options: list[str], complaint: str) -> None:
    write(history, [])
    assert complaint in run(*options, code=2).stderr


@pytest.mark.parametrize("name", ["no/r.csv", "", "nul\0", "\udcff/r.csv"])
def test_a_file_that_cannot_be_written(run: Run, history: History, tmp_path: Path, name: str) -> None:
    write(history, [])
    assert "cannot be written: " in run("--csv", f"{tmp_path}/{name}", code=1).stderr


@pytest.mark.parametrize(
    ("edges", "by"),
    [
        (("0001-01-01", "2999-12-31"), "name"),  # by day it would be 356,000 rows, and minutes of work
        (("0001-01-01", "2029-12-31"), "day"),
        (("0001-01-01", "0001-01-02"), "day"),
        (("9999-12-31", "9999-12-31T23:59:59Z"), "day"),
    ],
)
def test_windows_may_be_of_any_length(run: Run, history: History, edges: tuple[str, str], by: str) -> None:
    write(history, entries())
    begin, end = edges
    told = json.loads(run("--since", begin, "--until", end, "--json", "--by", by).stdout)
    assert (told["totals"]["tasks"], told["since"][:4]) == (5 if end > "0002" and begin < "2" else 0, begin[:4])
    run("--since", begin, "--until", end, "--html", "-", "--by", by)


def test_gaps_are_on_every_form(run: Run, history: History) -> None:
    write(history, entries(), Hole(f"{BEGAN}-0", f"{BEGAN + 5000}-0", 1, "trimmed"))
    told = "1 entry is missing between 2023-11-14T22:13:20Z and 2023-11-14T22:13:25Z."
    assert told in run(*WHOLE).stdout and told in run(*WHOLE, "--html", "-").stdout
    assert json.loads(run(*WHOLE, "--json").stdout)["gaps"][0]["entries"] == 1
