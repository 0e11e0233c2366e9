"""One tree of errors, drawn as it is, that survives a result backend."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import re
from typing import Any

import pytest

from celery_allocator import errors
from celery_allocator.errors import AllocatorError

CLASSES = [
    member
    for _, member in inspect.getmembers(errors, inspect.isclass)
    if issubclass(member, AllocatorError) and member.__module__ == errors.__name__
]
#: Arguments of the errors that take more than a text.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "RequirementsError": ("cpu_cores", -1, "must be at least 0"),
    "LabelError": ("task_id", "a\nb", "must be printable"),
    "MessageTooLargeError": ("proj.infer", 2_000_000, 1_048_576),
    "PoolFullError": ("default", 100_000, 100_000),
    "ResourceOveruse": ("gpu_memory_mb", 1000, 3000),
    "DuplicateAction": ("a key", 12),
    "CapExceeded": ("gpu_memory_mb", 9000, 8192),
    "ChangesMissed": ("1-0", "9-0"),
    "TenantCapError": ("vision", "gpu_memory_mb", 99, 24),
    "UnsatisfiableError": ("gpu_memory_mb", 99, 24, "Use a smaller model."),
    "GateConfigError": ("gate.toml", "wait_p95", "max", "is a text"),
    "GateRuleError": ("wait_p95", "wait_p95", "ZeroDivisionError: division by zero"),
    "HistoryQueryError": ("outcome", "sucess", "no allocation has ended so"),
    "TraceError": ("trace.csv", 7, "cpu_cores", "x", "must be a whole number"),
    "DeviceBusyError": ("host/gpu_0", "worker@host", "abc", 3.25),
}


def _make(cls: type[AllocatorError]) -> AllocatorError:
    return cls(*ARGUMENTS.get(cls.__name__, ("what happened",)))


def _drawn() -> list[tuple[str, str | None, str]]:
    """The tree of the docstring as (name, parent, meaning)."""
    rows, parents = [], {-1: None}
    for line in (errors.__doc__ or "").splitlines():
        match = re.fullmatch(r"    ((?:[│ ]   )*)(?:[├└]── )?(\w+)(?:\s{2,}(.*))?", line)
        if match is None:
            continue
        depth = len(match[1]) // 4 + (1 if "── " in line else 0)
        parents[depth] = match[2]
        rows.append((match[2], parents[depth - 1], match[3] or ""))
    return rows


def test_the_docstring_draws_the_whole_tree() -> None:
    """Every class is drawn once, under its direct base."""
    drawn = {name: parent for name, parent, _ in _drawn()}
    assert len(drawn) == len(_drawn())
    assert drawn == {
        cls.__name__: None if cls is AllocatorError else cls.__bases__[0].__name__  # built-in bases come after ours
        for cls in CLASSES
    }


def test_the_drawing_names_built_in_bases() -> None:
    """``(also a LookupError)`` stands where the class is one, and only there."""
    for name, _, meaning in _drawn():
        said = set(re.findall(r"\(also an? (\w+)\)", meaning))
        bases = getattr(errors, name).__bases__[1:]
        assert said == {base.__name__ for base in bases}, name


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_errors_survive_pickling(cls: type[AllocatorError]) -> None:
    """Type, text and fields come back, with every protocol and from a copy."""
    error = _make(cls)
    copies = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for again in [*copies, copy.copy(error)]:
        assert type(again) is cls
        assert str(again) == str(error)
        assert vars(again) == vars(error)
        assert again.as_dict() == error.as_dict()


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_errors_are_json_ready(cls: type[AllocatorError]) -> None:
    """The reply carries code and message, and nothing that JSON cannot hold."""
    reply = _make(cls).as_dict()
    assert json.loads(json.dumps(reply)) == reply
    assert reply["code"] == cls.code
    assert reply["message"]


def test_codes_are_unique() -> None:
    """A code names one class: callers match on it."""
    codes = [cls.code for cls in CLASSES]
    assert len(set(codes)) == len(codes)


def test_a_huge_value_does_not_make_a_huge_message() -> None:
    """Values come from outside; the message shows their beginning."""
    assert len(str(errors.RequirementsError("ram_mb", "x" * 10**6, "must be a whole number"))) < 300
    assert "int" in str(errors.RequirementsError("ram_mb", 10**5000, "must be at most 1"))
