"""Rules about grants that did not lead to an end, and about what the history lacks."""

from __future__ import annotations

from collections import Counter

from celery_allocator.gate.evidence import Event, Evidence
from celery_allocator.gate.registry import Measurement, rule

#: Events that take a grant back and put its task into line again.
_TAKEN_BACK = ["lost", "withdrawn", "requeued", "grown"]


@rule("regrants", unit="count")
def regrants(evidence: Evidence, *, causes: list[str] = _TAKEN_BACK) -> Measurement:
    """Grants that were taken back in the window, so that their tasks had to be granted again.

    Because a process or worker was lost (`lost`), a device was drained or its worker left (`withdrawn`), a worker gave
    the task back (`requeued`), or it ran out of GPU memory (`grown`). Samples are the grants of the window.
    """
    granted, back, told = _grants(evidence, causes)
    return Measurement(float(back), granted, told)


@rule("regrant_rate", unit="ratio")
def regrant_rate(evidence: Evidence, *, causes: list[str] = _TAKEN_BACK) -> Measurement:
    """The same for each grant of the window: 0.1 where one of ten was taken back."""
    granted, back, told = _grants(evidence, causes)
    return Measurement(back / granted if granted else None, granted, told)


@rule("losses", unit="count")
def losses(evidence: Evidence) -> Measurement:
    """How often a task lost its process or worker in the window, granted again or not. Samples are the starts."""
    started, lost, told = _losses(evidence)
    return Measurement(float(lost), started, told)


@rule("loss_rate", unit="ratio")
def loss_rate(evidence: Evidence) -> Measurement:
    """The same for each start of the window."""
    started, lost, told = _losses(evidence)
    return Measurement(lost / started if started else None, started, told)


@rule("history_gaps", unit="count", filters=())
def history_gaps(evidence: Evidence) -> Measurement:
    """Gaps in the history that reach into the window: events were missed. Samples are the window's events."""
    gaps = evidence.gaps()
    told = tuple(f"{start:%Y-%m-%dT%H:%M:%SZ} to {end:%Y-%m-%dT%H:%M:%SZ}" for start, end, _ in gaps[:5])
    seen = evidence.records.count_events(evidence.window.start, evidence.window.end)
    return Measurement(float(len(gaps)), seen, told)


def _grants(evidence: Evidence, causes: list[str]) -> tuple[int, int, tuple[str, ...]]:
    granted = 0
    back: Counter[str] = Counter()
    for event in evidence.events("granted", *_TAKEN_BACK):
        if event.event == "granted":
            granted += 1
        elif event.event in causes and _in_line_again(event):
            back[event.event] += 1
    return granted, sum(back.values()), _told(back)


def _losses(evidence: Evidence) -> tuple[int, int, tuple[str, ...]]:
    started = 0
    lost: Counter[str] = Counter()
    for event in evidence.events("started", "lost"):
        if event.event == "started":
            started += 1
        else:
            lost["granted again" if _in_line_again(event) else "for good"] += 1
    return started, sum(lost.values()), _told(lost)


def _in_line_again(event: Event) -> bool:
    if event.event == "lost":
        return event.text("again") == "1"
    return bool(event.text("device"))  # a parked message that goes into line again held none


def _told(counts: Counter[str]) -> tuple[str, ...]:
    told = ", ".join(f"{count} × {word}" for word, count in sorted(counts.items()))
    return (told,) if told else ()
