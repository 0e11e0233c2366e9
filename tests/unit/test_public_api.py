"""What ``import celery_allocator`` offers."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import pytest

import celery_allocator


@pytest.mark.parametrize("name", sorted(set(celery_allocator.__all__) - {"__version__"}))
def test_every_exported_name_is_there(name: str) -> None:
    """And is the very object of the module that defines it."""
    home = import_module(celery_allocator._EXPORTS[name])
    assert getattr(celery_allocator, name) is getattr(home, name)
    assert name in dir(celery_allocator)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As of any module."""
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = celery_allocator.no_such_name


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import celery_allocator", {"celery", "redis", "psutil", "click", "celery_allocator.model"}),
        ("from celery_allocator import Requirements, AllocatorError", {"celery", "redis", "psutil", "click"}),
        ("import celery_allocator.settings", {"celery", "redis", "psutil", "click"}),
        ("import celery_allocator.ledger", {"celery", "pynvml"}),
    ],
)
def test_an_import_brings_only_what_it_needs(statement: str, absent: set[str]) -> None:
    """In a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not absent & set(done.stdout.split())


def test_the_version_is_the_installed_one() -> None:
    """Where it is installed; a bare checkout has none to compare."""
    try:
        installed = version("celery-allocator")
    except PackageNotFoundError:
        installed = celery_allocator.__version__
    assert installed == celery_allocator.__version__
