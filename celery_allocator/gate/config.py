"""A gate's file: TOML, read strictly. What it does not know it refuses, and says what may have been meant."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from celery.utils.imports import import_from_cwd

from celery_allocator.errors import GateConfigError
from celery_allocator.gate.registry import FILTERS, OPTION_TYPES, RESERVED, RuleKind, kinds
from celery_allocator.history import window

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_WINDOW = timedelta(hours=1)
DEFAULT_MIN_SAMPLES = 1
_TOP = ("name", "window", "min_samples", "imports", "rules")


class Severity(str, Enum):
    """What a rule that is broken means for the verdict."""

    FAIL = "fail"
    WARN = "warn"


@dataclass(frozen=True)
class Rule:
    """One rule of a gate: what to measure, over which allocations and how long, and its bounds (both included)."""

    name: str
    kind: RuleKind
    window: timedelta = DEFAULT_WINDOW
    minimum: float | None = None
    maximum: float | None = None
    min_samples: int = DEFAULT_MIN_SAMPLES
    severity: Severity = Severity.FAIL
    #: Glob patterns by filter; an allocation has to match one of each.
    filters: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def bound(self) -> str:
        """Its bounds in words, without the unit: ``≥ 0.5``, ``≤ 60``, ``0 to 10``."""
        if self.minimum is None:
            return f"≤ {self.maximum:g}"
        return f"≥ {self.minimum:g}" if self.maximum is None else f"{self.minimum:g} to {self.maximum:g}"

    def keeps(self, value: float) -> bool:
        """Whether a value lies within the bounds."""
        above = self.minimum is None or value >= self.minimum
        return above and (self.maximum is None or value <= self.maximum)


@dataclass(frozen=True)
class Gate:
    """A gate: its name and its rules, in the file's order."""

    name: str
    rules: tuple[Rule, ...]


def load(file: str | Path) -> Gate:
    """Read a gate's file, and import the modules that it names.

    Raises :class:`GateConfigError` naming the file, the rule and the key, with what may have been meant.
    """
    path = Path(file)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GateConfigError(str(file), "", "", f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise GateConfigError(str(file), "", "", f"is no TOML: {error}") from error
    return _Reader(str(file)).gate(data, default_name=path.stem)


class _Reader:
    """Reads one file."""

    def __init__(self, file: str) -> None:
        self.file = file

    def gate(self, data: dict[str, Any], default_name: str) -> Gate:
        self._known("", data, _TOP)
        for module in self._texts("", "imports", data.get("imports", [])):
            self._import(module)
        tables = data.get("rules", {})
        if not isinstance(tables, dict) or not tables:
            raise self._wrong("", "rules", "names no rule: write at least one table [rules.NAME]")
        common = {
            "window": self._window("", data["window"]) if "window" in data else DEFAULT_WINDOW,
            "min_samples": self._count("", data.get("min_samples", DEFAULT_MIN_SAMPLES)),
        }
        rules = tuple(self._rule(name, table, common) for name, table in tables.items())
        return Gate(self._text("", "name", data.get("name", default_name)), rules)

    def _rule(self, name: str, table: Any, common: Mapping[str, Any]) -> Rule:
        if not isinstance(table, dict):
            raise self._wrong(name, "", f"is {table!r}: write a table [rules.{name}]")
        kind = self._kind(name, self._text(name, "kind", table.get("kind", name)))
        self._known(name, table, (*RESERVED, *kind.options))
        minimum, maximum = (self._bound(name, key, table.get(key)) for key in ("min", "max"))
        if minimum is None and maximum is None:
            raise self._wrong(name, "", "has no bound: give min, max or both")
        if minimum is not None and maximum is not None and minimum > maximum:
            raise self._wrong(name, "min", f"is {minimum:g}, more than max ({maximum:g}): nothing can pass")
        return Rule(
            name=name,
            kind=kind,
            window=self._window(name, table["window"]) if "window" in table else common["window"],
            minimum=minimum,
            maximum=maximum,
            min_samples=self._min_samples(name, kind, table, common["min_samples"]),
            severity=self._severity(name, table.get("severity", Severity.FAIL.value)),
            filters=MappingProxyType(dict(self._filters(name, kind, table))),
            options=MappingProxyType(
                {key: self._option(name, kind, key, table[key]) for key in kind.options if key in table}
            ),
        )

    def _kind(self, name: str, kind: str) -> RuleKind:
        try:
            return kinds()[kind]
        except KeyError:
            known = f"no kind of rule is called {kind!r}{_meant(kind, kinds())}"
            raise self._wrong(name, "kind", f"{known}; `celery-allocator gate --list` shows all") from None

    def _filters(self, name: str, kind: RuleKind, table: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
        for key in FILTERS:
            if key in table and key not in kind.filters:
                allowed = ", ".join(kind.filters) or "no filter"
                raise self._wrong(name, key, f"means nothing to {kind.name}, which takes {allowed}")
        return [(key, self._texts(name, key, table[key])) for key in FILTERS if key in table]

    def _option(self, name: str, kind: RuleKind, key: str, value: Any) -> Any:
        wanted = kind.options[key].type
        if wanted == "list[str]":
            return list(self._texts(name, key, value))
        if not isinstance(value, OPTION_TYPES[wanted]) or (isinstance(value, bool) and wanted != "bool"):
            raise self._wrong(name, key, f"is {value!r}: it must be of type {wanted}")
        return value

    def _min_samples(self, name: str, kind: RuleKind, table: Mapping[str, Any], common: int) -> int:
        if not kind.live:
            return self._count(name, table["min_samples"]) if "min_samples" in table else common
        if "min_samples" in table:
            raise self._wrong(name, "min_samples", f"means nothing to {kind.name}, which looks once, at the ledger")
        return 1

    def _bound(self, name: str, key: str, value: Any) -> float | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self._wrong(name, key, f"is {value!r}: it must be a number")
        return float(value)

    def _count(self, name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self._wrong(name, "min_samples", f"is {value!r}: it must be a whole number, 0 or more")
        return value

    def _window(self, name: str, value: Any) -> timedelta:
        try:
            return window.length(self._text(name, "window", value))
        except ValueError as error:
            if isinstance(error, GateConfigError):
                raise
            raise self._wrong(name, "window", str(error)) from None

    def _severity(self, name: str, value: Any) -> Severity:
        words = [severity.value for severity in Severity]
        if value not in words:
            raise self._wrong(name, "severity", f"is {value!r}: it must be one of {', '.join(words)}")
        return Severity(value)

    def _text(self, name: str, key: str, value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise self._wrong(name, key, f"is {value!r}: it must be a text")
        return value

    def _texts(self, name: str, key: str, value: Any) -> tuple[str, ...]:
        """A text, or a list of texts."""
        found = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) for item in found):
            raise self._wrong(name, key, f"is {value!r}: it must be a text or a list of texts")
        return tuple(found)

    def _known(self, name: str, table: Mapping[str, Any], allowed: Collection[str]) -> None:
        for key in table:
            if key not in allowed:
                hint = _meant(key, allowed) or f": the keys are {', '.join(allowed)}"
                raise self._wrong(name, key, f"is no key of {'a rule' if name else 'a gate'}{hint}")

    def _import(self, module: str) -> None:
        try:
            import_from_cwd(module)
        except Exception as error:
            what = f"{module!r} cannot be imported: {type(error).__name__}: {error}"
            raise self._wrong("", "imports", what) from error

    def _wrong(self, rule: str, key: str, what: str) -> GateConfigError:
        return GateConfigError(self.file, rule, key, what)


def _meant(word: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
