"""What the report's page is made of: elements that escape all text, numbers for people, pictures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_allocator.surfaces.report import charts
from celery_allocator.surfaces.report.elements import element, html
from celery_allocator.surfaces.report.numbers import duration, hours, share
from tests.support.page import Page


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_elements_escape_any_text(text: str) -> None:
    page = Page(html(element("p", text, title=text)))
    assert [tag for tag, _ in page.elements] == ["p"]
    kept = "".join(sign if sign >= " " or sign in "\n\t" else "\ufffd" for sign in text)
    assert page.elements[0][1]["title"] == kept
    assert "".join(page.words).strip("\n") == kept.strip("\n")


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (duration(0), "0 s"),
        (duration(0.254), "0.25 s"),
        (duration(-61), "-1 min 1 s"),
        (duration(59.7), "1 min"),
        (duration(3600 * 26), "1 d 2 h"),
        (duration(3661), "1 h 1 min"),
        (hours(0), "0"),
        (hours(1234.5), "1234"),
        (hours(0.0123), "0.012"),
        (hours(0.00001), "1.0e-05"),
        (share(1), "100 %"),
        (share(0.9999), ">99.9 %"),
        (share(0.0001), "<0.1 %"),
        (share(0.935), "93.5 %"),
    ],
)
def test_numbers_as_people_read_them(shown: str, expected: str) -> None:
    assert shown == expected


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=70))
def test_columns_stay_in_the_picture(values: list[float]) -> None:
    picture = charts.stacked_columns("t", "d", [str(i) for i in range(len(values))], [("a", "s0", values)])
    for bar in picture.iter("rect"):
        x, y, width, height = (float(bar.get(name, "nan")) for name in ("x", "y", "width", "height"))
        assert x >= 0 and x + width <= charts.WIDTH + 1 and y >= 0 and y + height <= 221
