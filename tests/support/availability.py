"""What to do when a server that a test needs is not installed."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(what: str, remedy: str) -> NoReturn:
    """Skip on a developer's machine, fail where ``CI=true``: there, a missing server hides untested code."""
    text = f"{what} is not available: {remedy}"
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)
