"""The kinds of rules: what each measures, in which unit, and what may be said to it. Open for more.

A kind is a function from :class:`~celery_allocator.gate.evidence.Evidence` to a :class:`Measurement`::

    @rule("night_failures", unit="count", filters=("task",))
    def night_failures(evidence, *, before_hour: int = 6):
        "Tasks that failed in the night."
        …
        return Measurement(float(count), samples)

Its docstring documents it (``celery-allocator gate --list``); its keyword-only parameters are options that the gate's
file may set. A file names the modules of such kinds under ``imports``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from celery_allocator.gate.evidence import Evidence

#: What allocations may be chosen by.
FILTERS = ("task", "tenant", "device")
#: Keys of every rule in a gate's file; no option may have such a name.
RESERVED = ("kind", "min", "max", "window", "min_samples", "severity", *FILTERS)
#: Kinds of values that options may have.
OPTION_TYPES: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,), "list[str]": (list,)}
)


@dataclass(frozen=True)
class Measurement:
    """What a rule found: its value, how many samples that rests on, and lines that explain it.

    ``value`` is ``None`` where nothing can be said; ``unknown`` then says why.
    """

    value: float | None
    samples: int
    details: tuple[str, ...] = ()
    unknown: str = ""


Measure = Callable[..., Measurement]
M = TypeVar("M", bound=Measure)


@dataclass(frozen=True)
class Option:
    """One option of a kind: its type, as written in the code, and its default."""

    name: str
    type: str
    default: Any


@dataclass(frozen=True)
class RuleKind:
    """A kind of rule. ``live``: it is measured in the ledger, as it is now, and needs no history."""

    name: str
    unit: str
    doc: str
    measure: Measure
    filters: tuple[str, ...]
    options: Mapping[str, Option]
    live: bool

    @property
    def summary(self) -> str:
        """The docstring's first paragraph, on one line."""
        return " ".join(self.doc.split("\n\n")[0].split())

    def __call__(self, evidence: Evidence, options: Mapping[str, Any]) -> Measurement:
        return self.measure(evidence, **options)


_kinds: dict[str, RuleKind] = {}


def rule(name: str, *, unit: str, filters: tuple[str, ...] = FILTERS, live: bool = False) -> Callable[[M], M]:
    """Register a function as a kind of rule.

    ``unit`` is shown with its values (``s``, ``%``, ``count``, ``tasks/h``); ``filters`` are those of :data:`FILTERS`
    that have a meaning for it. Raises :class:`ValueError` for a name that another function has, a function without a
    docstring, or an option that cannot be written in a file.
    """

    def register(measure: M) -> M:
        doc = inspect.getdoc(measure)
        if not doc:
            raise ValueError(f"the rule {name!r} has no docstring: it is what `gate --list` shows")
        if unknown := set(filters) - set(FILTERS):
            raise ValueError(f"the rule {name!r} names filters that there are not: {', '.join(sorted(unknown))}")
        known = _kinds.get(name)
        if known is not None and not _same(known.measure, measure):
            raise ValueError(f"the rule {name!r} is registered already, by {known.measure.__module__}")
        _kinds[name] = RuleKind(name, unit, doc, measure, filters, _options(name, measure), live)
        return measure

    return register


def kinds() -> Mapping[str, RuleKind]:
    """Every kind that is registered now, by name."""
    return MappingProxyType(_kinds)


def unregister(name: str) -> None:
    """Forget a kind (for tests of rules)."""
    _kinds.pop(name, None)


def _same(first: Measure, second: Measure) -> bool:
    """A module that is loaded again brings the same function again."""
    return (first.__module__, first.__qualname__) == (second.__module__, second.__qualname__)


def _options(name: str, measure: Measure) -> Mapping[str, Option]:
    options = {}
    for parameter in list(inspect.signature(measure).parameters.values())[1:]:
        written = parameter.annotation
        kind = written if isinstance(written, str) else getattr(written, "__name__", str(written))
        if (
            parameter.kind is not parameter.KEYWORD_ONLY
            or parameter.default is parameter.empty
            or kind not in OPTION_TYPES
            or parameter.name in RESERVED
        ):
            raise ValueError(
                f"the rule {name!r}: {parameter.name!r} is no option. Options are keyword-only, have a default and one "
                f"of the types {', '.join(OPTION_TYPES)}, and are named otherwise than {', '.join(RESERVED)}"
            )
        options[parameter.name] = Option(parameter.name, kind, parameter.default)
    return MappingProxyType(options)
