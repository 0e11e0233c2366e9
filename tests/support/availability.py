"""What to do when a server, or the hardware, that a test needs is not there."""

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


def no_device(what: str) -> NoReturn:
    """Skip, in CI too: no command installs a GPU. For tests marked ``device``, which no other test may need."""
    pytest.skip(f"{what}; tests/device runs on a machine with an NVIDIA GPU")
