"""Rules about how tasks end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase

from celery_allocator.gate.evidence import Evidence
from celery_allocator.gate.registry import Measurement, rule
from celery_allocator.history.outcomes import FAILURES, SUCCESS

#: Classes of errors that say that memory did not suffice. Any GPU framework's is called one of these.
OUT_OF_MEMORY = ["MemoryError", "*OutOfMemory*", "ResourceExhaustedError"]


@rule("success_rate", unit="ratio")
def success_rate(evidence: Evidence) -> Measurement:
    """Share of successes among the tasks that ended well or wrong in the window.

    Wrong: failure, lost, unreported, parked, rejected. What was cancelled, revoked, expired, ignored, retried or
    given back by hand counts as neither.
    """
    ended = _ended(evidence)
    good, bad = _sum(ended, SUCCESS), _sum(ended, FAILURES)
    return Measurement(good / (good + bad) if good + bad else None, good + bad, _told(ended))


@rule("failure_rate", unit="ratio")
def failure_rate(evidence: Evidence) -> Measurement:
    """Share of failures among the tasks that ended well or wrong in the window: what `success_rate` leaves."""
    ended = _ended(evidence)
    good, bad = _sum(ended, SUCCESS), _sum(ended, FAILURES)
    return Measurement(bad / (good + bad) if good + bad else None, good + bad, _told(ended))


@rule("oom_rate", unit="ratio")
def oom_rate(evidence: Evidence, *, errors: list[str] = OUT_OF_MEMORY) -> Measurement:
    """Share of the tasks that ended well or wrong in the window whose error says that memory did not suffice.

    By the class of the exception, which the event stream records (glob patterns in `errors`). A process that the
    kernel kills for memory says nothing: add "WorkerLostError" to count every lost process.
    """
    out_of_memory: Counter[str] = Counter()
    counted = 0
    for event in evidence.events("released"):
        outcome = event.text("outcome")
        if outcome in SUCCESS or outcome in FAILURES:
            counted += 1
            if outcome in FAILURES and _any(event.text("error"), errors):
                out_of_memory[event.text("error")] += 1
    told = tuple(f"{count} × {error}" for error, count in out_of_memory.most_common(5))
    return Measurement(sum(out_of_memory.values()) / counted if counted else None, counted, told)


@rule("expired_rate", unit="ratio")
def expired_rate(evidence: Evidence) -> Measurement:
    """Share of the allocations that ended in the window because their expiry passed before they started."""
    return _share(evidence, "expired")


@rule("cancelled_rate", unit="ratio")
def cancelled_rate(evidence: Evidence) -> Measurement:
    """Share of the allocations that ended in the window because somebody cancelled or revoked them."""
    return _share(evidence, "cancelled", "revoked")


@rule("throughput", unit="tasks/h")
def throughput(evidence: Evidence) -> Measurement:
    """Successes per hour of the window. Its samples are all that ended, so `min_samples = 0` lets silence fail."""
    ended = _ended(evidence)
    hours = evidence.window.seconds / 3600
    return Measurement(_sum(ended, SUCCESS) / hours, sum(ended.values()))


def _share(evidence: Evidence, *outcomes: str) -> Measurement:
    ended = _ended(evidence)
    every = sum(ended.values())
    return Measurement(_sum(ended, frozenset(outcomes)) / every if every else None, every)


def _ended(evidence: Evidence) -> Counter[str]:
    """How often each outcome came in the window."""
    return Counter(row.outcome or "" for row in evidence.allocations("outcome", by="ended_at"))


def _sum(ended: Counter[str], outcomes: frozenset[str]) -> int:
    return sum(ended[outcome] for outcome in outcomes)


def _any(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _told(ended: Counter[str]) -> tuple[str, ...]:
    wrong = [f"{ended[outcome]} × {outcome}" for outcome in sorted(FAILURES) if ended[outcome]]
    return (", ".join(wrong),) if wrong else ()
