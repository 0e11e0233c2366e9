"""Plain text for people: aligned columns, ages, sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from celery_allocator.model import Allocation, iso_between, iso_utc


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Aligned columns; a column of numbers is aligned to the right. ``None`` shows as ``-``."""
    body = [[*row] for row in rows]
    texts = [[_cell(value) for value in row] for row in body]
    right = [
        bool(body) and all(isinstance(row[i], (int, float)) or row[i] is None for row in body)
        for i in range(len(heads))
    ]
    widths = [max(len(line[i]) for line in [list(heads), *texts]) for i in range(len(heads))]
    lines = []
    for line in [list(heads), *texts]:
        cells = [
            text.rjust(width) if r else text.ljust(width) for text, width, r in zip(line, widths, right, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def pairs(rows: Iterable[tuple[str, Any]]) -> str:
    """Names and values, one per line."""
    listed = [(name, _cell(value)) for name, value in rows]
    width = max((len(name) for name, _ in listed), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in listed)


def span(seconds: float | None) -> str:
    """A length of time in its largest two units: ``3 s``, ``2 min 5 s``, ``1 h 4 min``, ``2 d 3 h``."""
    if seconds is None:
        return "-"
    left = max(0, int(seconds))
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def dates(half: float | None, most: float | None) -> str:
    """An estimated start as its p50 and p90: ``2026-01-01T12:00:00Z … 12:05:00Z``; seconds since the epoch."""
    return iso_between(half, most) or "not known yet"


class Asked(Protocol):
    """What asks for resources: requirements, or the history's row of them."""

    @property
    def gpu_memory_mb(self) -> int | None: ...

    @property
    def cpu_cores(self) -> int | None: ...

    @property
    def ram_mb(self) -> int | None: ...


def shape(asked: Asked) -> str:
    """``2048 MB GPU, 2 cores, 4096 MB RAM``; what is not asked for, or not known, is left out."""
    words = []
    if asked.gpu_memory_mb:
        count = getattr(asked, "gpu_count", 1) or 1  # an old row of the history tells none
        words.append(f"{count} × {asked.gpu_memory_mb} MB GPU" if count > 1 else f"{asked.gpu_memory_mb} MB GPU")
    if asked.cpu_cores:
        words.append(f"{asked.cpu_cores} core{'s' if asked.cpu_cores != 1 else ''}")
    if asked.ram_mb:
        words.append(f"{asked.ram_mb} MB RAM")
    return ", ".join((*words, *getattr(asked, "besides", ())))


def described(allocation: Allocation) -> str:
    """One allocation, everything that is known of it."""
    cores = ", ".join(str(core) for core in allocation.cpu_cores)
    rows: list[tuple[str, Any]] = [
        ("allocation", allocation.allocation_id),
        ("task", allocation.task_id),
        ("name", allocation.task_name),
        ("state", allocation.state.value),
        ("kind", allocation.kind.value),
        ("asks for", shape(allocation.requirements)),
        ("priority", allocation.priority),
        ("tenant", allocation.requirements.tenant or None),
        ("strategy", allocation.strategy.value),
        ("position", allocation.queue_position or None),
        ("device", allocation.place or None),
        ("GPU", ", ".join(allocation.gpu_uuids) or None),
        ("cores", cores or None),
        ("worker", allocation.worker),
        ("token", allocation.token or None),
        ("submitted", iso_utc(allocation.submitted_at)),
        ("granted", iso_utc(allocation.granted_at)),
        ("started", iso_utc(allocation.started_at)),
        ("estimated start", _when(allocation)),
        ("ETA", iso_utc(allocation.eta_at)),
        ("expires", iso_utc(allocation.expires_at)),
        ("workers lost", allocation.losses or None),
        ("claim grown", allocation.oom_retries or None),
        ("on hold by", allocation.on_hold_by),
    ]
    return pairs((name, value) for name, value in rows if value is not None)


def _when(a: Allocation) -> str | None:
    return None if a.estimated_start_at is None else dates(a.estimated_start_at, a.estimated_start_p90_at)


def _cell(value: Any) -> str:
    return "-" if value is None or value == "" else str(value)
