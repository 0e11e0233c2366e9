"""How the live screen draws: widths, bars, words. Without a ledger."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_allocator.model import Requirements
from celery_allocator.overview import Bar, Lack, Reason
from celery_allocator.surfaces.terminal import words
from celery_allocator.surfaces.terminal.bars import MARKS, drawn, gauge
from celery_allocator.surfaces.terminal.columns import widths
from celery_allocator.surfaces.terminal.places import PLACES
from celery_allocator.surfaces.terminal.tasks import QUEUE, RUNNING
from celery_allocator.surfaces.terminal.tenancy import TENANTS

AMOUNTS = st.integers(0, 10**7)
BARS = st.builds(Bar, AMOUNTS, AMOUNTS, st.none() | AMOUNTS, st.none() | AMOUNTS)


def plain(bar: Bar, width: int) -> str:
    return "".join(text for text, _ in drawn(bar, width))


@given(BARS, st.integers(0, 200))
def test_a_bar_is_exactly_as_wide_as_it_may_be(bar: Bar, width: int) -> None:
    assert len(plain(bar, width)) == width


@given(BARS, st.integers(8, 200))
def test_what_is_there_is_seen_however_little_it_is(bar: Bar, width: int) -> None:
    shown = plain(bar, width)
    assert (MARKS["over"] in shown) == (bar.overused > 0)
    assert (MARKS["foreign"] in shown) == bool(bar.foreign)
    assert (MARKS["used"] in shown) == (min(bar.used or 0, bar.promised) > 0)


def test_the_parts_of_a_bar_stand_in_order() -> None:
    assert plain(Bar(100, 60, 40, 20), 10) == "████▒▒╳╳··"
    assert plain(Bar(100, 20, 40, None), 10) == "██!!······"
    assert plain(Bar(100, 50), 10) == "▒▒▒▒▒·····"
    assert plain(Bar(0, 0), 4) == "····"
    assert gauge(Bar(8, 3, 3), "3/8", 5) == (("3/8", "plain"),)
    assert "".join(text for text, _ in gauge(Bar(8, 4, 4), "4/8", 8)) == "██·· 4/8"


@pytest.mark.parametrize("columns", [PLACES, RUNNING, QUEUE, TENANTS], ids=["devices", "running", "queue", "tenants"])
@pytest.mark.parametrize("total", [79, 80, 99, 119, 160, 300])
def test_columns_share_all_of_the_width(columns: tuple, total: int) -> None:
    shares = widths(columns, total)
    assert sum(width for _, width in shares) + len(shares) - 1 == total
    assert all(width >= column.width for column, width in shares)


@given(st.text(), st.integers(0, 60), st.booleans())
def test_a_text_takes_just_its_room_and_steers_nothing(text: str, width: int, right: bool) -> None:
    harmless = words.clean(text)
    assert harmless.isprintable()
    assert words.cells(words.fit(harmless, width, right=right)) == width
    assert words.cells(words.end(harmless, max(1, width))) <= max(1, width)


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_two_dates_fit_into_their_column(half: float, more: float) -> None:
    assert 1 <= len(words.starts(half, half + more, 0.0)) <= 9


def test_dates_for_people() -> None:
    assert [words.short_span(s) for s in (-3, 0, 119, 120, 7199, 7200, 172_799, 172_800, 1e12)] == [
        *("0s", "0s", "119s", "2m", "119m", "2h", "47h", "2d", "999d")
    ]
    assert words.starts(None, None, 0) == "-"
    assert words.starts(100, 700, 40) == "60s…11m"
    assert words.starts(30, 700, 40) == "now…11m"
    assert words.starts(30, 35, 40) == words.starts(40, None, 40) == "now"
    assert words.claim(Requirements(40960, 16, 131072, gpu_count=4)) == "4×40G  16c  128G"
    assert len(words.claim(Requirements(81920, 128, 131072, gpu_count=16))) == 16
    assert words.short(Reason("kept", ""), 11) == "kept room"


def test_words() -> None:
    assert [words.size(mb) for mb in (None, 0, 512, 1024, 24576, 131072, 2 * 1024**2)] == [
        *("-", "0M", "512M", "1.0G", "24.0G", "128G", "2.0T")
    ]
    assert [words.span(s) for s in (None, -1, 59, 185, 3899, 90000, 9_000_000)] == [
        *("-", "0s", "59s", "3m05s", "1h04m", "1d01h", "104d")
    ]
    assert words.claim(Requirements(2048, 2, 4096)) == " 2.0G   2c  4.0G"
    assert words.fit("日本語テスト", 5) == "日本…" and words.end("gpu-node-17.example/gpu_0", 9) == "…le/gpu_0"
    lacks = (Lack("gpu_memory_mb", 5, 1, 2), Lack("cpu_cores", 5, 1, 1))
    assert words.short(Reason("room", "", lacks), 20) == "GPU mem,cores"
    assert words.short(Reason("room", "", lacks), 11) == "GPU mem +1"
    assert words.short(Reason("paused", ""), 11) == "paused"
