"""A shape as keys and events write it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_allocator.model import Kind, Shape

AMOUNT = st.integers(0, 10**9 - 1)


@given(st.builds(Shape, AMOUNT, AMOUNT, AMOUNT, st.sampled_from(Kind)))
def test_it_comes_back_as_it_was(shape: Shape) -> None:
    assert Shape.parse(str(shape)) == shape


@pytest.mark.parametrize(
    "text", ["", "1:2:3", "1:2:3:x", "1:2:3:t:", "-1:2:3:t", "1:2:x:t", "1:2:1000000000:t", "١:2:3:t"]
)
def test_what_is_no_shape(text: str) -> None:
    assert Shape.parse(text) is None


@given(st.text(max_size=30))
def test_any_text_is_a_shape_or_none(text: str) -> None:
    found = Shape.parse(text)
    assert found is None or isinstance(found, Shape)
