"""Measure every rule of a gate, and judge."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery_allocator.errors import AllocatorError, GateRuleError
from celery_allocator.gate import config, rules
from celery_allocator.gate.config import Gate, Rule, Severity
from celery_allocator.gate.evidence import Evidence, Records
from celery_allocator.gate.registry import Measurement
from celery_allocator.history.window import When, Window, moment
from celery_allocator.ledger import Ledger, connect
from celery_allocator.settings import Settings

if TYPE_CHECKING:
    from celery_allocator.history.store import History

assert rules  # the kinds that come along are registered by its import


class Judgement(str, Enum):
    """What became of a rule, or of a gate."""

    PASSED = "pass"
    WARNED = "warn"  #: broken, and of severity "warn"
    FAILED = "fail"
    NO_DATA = "not enough data"


#: Exit codes of a whole gate. A rule of severity "warn" changes none.
EXIT_CODES = {Judgement.PASSED: 0, Judgement.WARNED: 0, Judgement.FAILED: 1, Judgement.NO_DATA: 2}


@dataclass(frozen=True)
class RuleResult:
    """One rule, measured. ``took_s``: seconds that this took; ``reason``: why it was judged so, in words."""

    rule: Rule
    window: Window
    measurement: Measurement
    judgement: Judgement
    reason: str
    took_s: float

    @property
    def name(self) -> str:
        """The rule's name."""
        return self.rule.name

    @property
    def value(self) -> float | None:
        """What was measured, in the unit of the rule's kind; ``None``: nothing can be said."""
        return self.measurement.value

    @property
    def passed(self) -> bool:
        """Whether its bounds were kept."""
        return self.judgement is Judgement.PASSED

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON-ready data."""
        rule = self.rule
        return {
            "rule": rule.name,
            "kind": rule.kind.name,
            "verdict": self.judgement.value,
            "value": self.value,
            "unit": rule.kind.unit,
            "min": rule.minimum,
            "max": rule.maximum,
            "samples": self.measurement.samples,
            "min_samples": rule.min_samples,
            "severity": rule.severity.value,
            "from": self.window.start.isoformat(),
            "to": self.window.end.isoformat(),
            "filters": {key: list(globs) for key, globs in rule.filters.items()},
            "options": dict(rule.options),
            "reason": self.reason,
            "details": list(self.measurement.details),
            "took_s": round(self.took_s, 6),
        }


@dataclass(frozen=True)
class Verdict:
    """All rules of a gate, measured at ``at``."""

    gate: Gate
    pool: str
    at: datetime
    results: tuple[RuleResult, ...]

    @property
    def judgement(self) -> Judgement:
        """Failed if a rule of severity "fail" did; else not enough data if one of them had too few; else passed."""
        grave = [result.judgement for result in self.results if result.rule.severity is Severity.FAIL]
        for judgement in (Judgement.FAILED, Judgement.NO_DATA):
            if judgement in grave:
                return judgement
        return Judgement.PASSED

    @property
    def passed(self) -> bool:
        """Whether what it guards may go on: every rule of severity "fail" was kept, on enough data."""
        return self.judgement is Judgement.PASSED

    @property
    def exit_code(self) -> int:
        """0 passed, 1 failed, 2 not enough data."""
        return EXIT_CODES[self.judgement]

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON-ready data."""
        return {
            "gate": self.gate.name,
            "pool": self.pool,
            "at": self.at.isoformat(),
            "verdict": self.judgement.value,
            "passed": self.passed,
            "exit_code": self.exit_code,
            "results": [result.as_dict() for result in self.results],
        }


@dataclass
class Sources:
    """Where rules look. Each is opened when a rule first asks for it; ``close()`` closes what was opened here."""

    settings: Settings
    connect_to: Callable[[], Ledger] | None = None
    history: History | None = None
    _ledger: Ledger | None = field(default=None, init=False)
    _records: Records | None = field(default=None, init=False)
    _opened: list[Callable[[], None]] = field(default_factory=list, init=False)

    def ledger(self) -> Ledger:
        """The ledger."""
        if self._ledger is None:
            if self.connect_to is not None:
                self._ledger = self.connect_to()
            else:
                self._ledger = connect(self.settings)
                self._opened.append(self._ledger.client.close)
        return self._ledger

    def records(self) -> Records:
        """The history. Raises :class:`HistoryUnavailable`, and :class:`HistoryExtraMissing` without its libraries."""
        if self._records is None:
            # The first says so if the libraries of the extra are missing; the second needs them.
            from celery_allocator.history import open_history  # type: ignore[attr-defined,unused-ignore]  # isort: skip
            from celery_allocator.gate.recorded import RecordedHistory

            history = self.history
            if history is None:
                history = open_history(self.settings)
                self._opened.append(history.close)
            self._records = RecordedHistory(history)
        return self._records

    def close(self) -> None:
        """Close what was opened."""
        while self._opened:
            self._opened.pop()()


def check(
    file: str | Path,
    *,
    since: When | None = None,
    until: When | None = None,
    settings: Settings | None = None,
    ledger: Ledger | None = None,
    history: History | None = None,
) -> Verdict:
    """Measure the gate that ``file`` describes and judge: a check before something is promoted, say.

    ``since``: a text (``"1h"``, ISO 8601), a moment, a length of time or seconds before now; it takes the place of
    every rule's own window. ``until``: the end of all windows (now). Ledger and history are those of ``settings`` (of
    the environment) unless they are given; each is opened only if a rule needs it.

    Raises :class:`GateConfigError` for a file that cannot be used, :class:`ValueError` for a ``since`` or ``until``
    that means nothing, :class:`LedgerUnavailable`, :class:`HistoryError`, :class:`GateRuleError` for a rule that
    broke down.
    """
    resolved = settings if settings is not None else Settings.load()
    sources = Sources(resolved, None if ledger is None else lambda: ledger, history)
    try:
        return evaluate(config.load(file), sources, since=since, until=until)
    finally:
        sources.close()


def evaluate(
    gate: Gate, sources: Sources, *, since: When | None = None, until: When | None = None, now: datetime | None = None
) -> Verdict:
    """Measure the rules of a gate that was read. See :func:`check`; ``now`` is this host's clock unless given."""
    now = now if now is not None else datetime.now(timezone.utc)
    end = now if until is None else moment(until, now)
    start = None if since is None else moment(since, now)
    if start is not None and start >= end:
        raise ValueError(f"the window ends ({end.isoformat()}) before it begins ({start.isoformat()})")
    results = []
    for rule in gate.rules:
        window = Window(end - rule.window if start is None else start, end)
        results.append(_measure(rule, window, sources))
    return Verdict(gate, sources.settings.pool, now, tuple(results))


def _measure(rule: Rule, window: Window, sources: Sources) -> RuleResult:
    evidence = Evidence(window, rule.filters, records=sources.records, ledger=sources.ledger)
    begun = time.monotonic()
    try:
        measured = rule.kind(evidence, rule.options)
    except AllocatorError:
        raise
    except Exception as error:
        raise GateRuleError(rule.name, rule.kind.name, f"{type(error).__name__}: {error}") from error
    judgement, reason = _judge(rule, measured)
    return RuleResult(rule, window, measured, judgement, reason, time.monotonic() - begun)


def _judge(rule: Rule, measured: Measurement) -> tuple[Judgement, str]:
    if measured.unknown:
        return Judgement.NO_DATA, measured.unknown
    if measured.samples < rule.min_samples or measured.value is None:
        return Judgement.NO_DATA, f"{measured.samples} samples, and at least {max(1, rule.min_samples)} are needed"
    if rule.keeps(measured.value):
        return Judgement.PASSED, ""
    broken = Judgement.FAILED if rule.severity is Severity.FAIL else Judgement.WARNED
    return broken, f"{measured.value:g} is not {rule.bound}"
