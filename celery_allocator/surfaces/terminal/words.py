"""Short words for a screen: amounts, spans, claims; and texts of others made harmless."""

from __future__ import annotations

import unicodedata
from datetime import datetime

from celery_allocator.model import Requirements
from celery_allocator.overview import Reason

#: Reasons and what lacks, in a word or two.
_SHORT = {
    "gpu_memory_mb": "GPU mem",
    "cpu_cores": "cores",
    "ram_mb": "RAM",
    "slots": "slots",
    "stopped": "stopped",
    "paused": "paused",
    "no_device": "no device",
    "in_line": "next",
    "cap": "tenant cap",
    "kept": "kept room",
    "behind": "its turn",
    "affinity": "its model",
    "apart": "goes apart",
    "on_hold": "on hold",
    "delayed": "ETA ahead",
}


def clean(text: str) -> str:
    """``text`` with what is not printable spelled out: nothing in it can steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def size(mb: int | None) -> str:
    """MB in at most five characters: ``512M``, ``24.0G``, ``1.2T``; ``-`` for what is not known."""
    if mb is None:
        return "-"
    if mb < 1000:
        return f"{mb}M"
    amount, unit = (mb / 1024, "G") if mb < 1000 * 1024 else (mb / 1024**2, "T")
    return f"{amount:.1f}{unit}" if amount < 99.95 else f"{amount:.0f}{unit}"


def span(seconds: float | None) -> str:
    """A length of time in at most six characters: ``45s``, ``3m05s``, ``1h04m``, ``12d03h``; ``-`` if not known."""
    if seconds is None:
        return "-"
    left = max(0, int(seconds))
    if left < 60:
        return f"{left}s"
    for below, unit, size_s, smaller, smaller_s in (
        (3600, "m", 60, "s", 1),
        (86400, "h", 3600, "m", 60),
        (8640000, "d", 86400, "h", 3600),
    ):
        if left < below:
            return f"{left // size_s}{unit}{left % size_s // smaller_s:02}{smaller}"
    return f"{left // 86400}d"


def short_span(seconds: float) -> str:
    """A length of time in its largest unit with two figures or more, at most four characters: ``45s``, ``119m``."""
    left = max(0, int(seconds))
    for unit, size_s, below in (("s", 1, 120), ("m", 60, 7200), ("h", 3600, 172800)):
        if left < below:
            return f"{left // size_s}{unit}"
    return f"{min(left // 86400, 999)}d"


def starts(half: float | None, most: float | None, now: float) -> str:
    """In how long something starts, p50 and p90: ``3m…12m``; ``-``: not known. At most nine characters."""
    if half is None:
        return "-"
    texts = ["now" if at <= now else short_span(at - now) for at in (half, most or half)]
    return "…".join(dict.fromkeys(texts))


def clock(at: float, now: float) -> str:
    """A time of day, local as that of the head; with its date where that is far away."""
    return datetime.fromtimestamp(at).astimezone().strftime("%H:%M:%S" if abs(at - now) < 72_000 else "%Y-%m-%d %H:%M")


def claim(asked: Requirements) -> str:
    """``2.0G 2c 4.0G``: GPU memory, cores, RAM; ``-`` for what is not asked for.

    ``2×40G``: so much of each of two; ``0.25``: a share of a GPU, ``1`` a whole one.
    """
    gpu, ram = (size(mb) if mb else "-" for mb in (asked.gpu_memory_mb, asked.ram_mb))
    if asked.share:
        gpu = "1" if asked.exclusive else f"{asked.gpu:g}"
    if asked.gpu_count > 1:
        gpu = f"{asked.gpu_count}×{gpu.replace('.0', '')}"
    left = f"{gpu:>5} {asked.cpu_cores:>{min(3, max(0, 8 - len(gpu)))}}c"
    return f"{left} {ram:>{max(0, 15 - len(left))}}"


def short(reason: Reason, width: int) -> str:
    """Why it waits, in a few words: what lacks on most devices first, and ``+1`` for what there is no room to say."""
    if not reason.lacks:
        return _SHORT.get(reason.code, reason.code)
    lacks = sorted(reason.lacks, key=lambda lack: -lack.devices)
    told = [_SHORT.get(lack.dimension, lack.dimension) for lack in lacks]
    for count in range(len(told), 0, -1):
        more = f" +{len(told) - count}" if count < len(told) else ""
        text = ",".join(told[:count]) + more
        if len(text) <= width:
            break
    return text


def cells(text: str) -> int:
    """Columns of a terminal that ``text`` takes."""
    if text.isascii():
        return len(text)
    return sum(_cells(character) for character in text)


def fit(text: str, width: int, *, right: bool = False) -> str:
    """``text`` in exactly ``width`` columns; what is too long ends in ``…``."""
    if width <= 0:
        return ""
    taken = cells(text)
    if taken > width:
        text, taken = _cut(text, width - 1)
        text, taken = text + "…", taken + 1
    blanks = " " * (width - taken)
    return blanks + text if right else text + blanks


def end(text: str, width: int) -> str:
    """The end of ``text``, where it is too long for ``width`` columns: of a device's name that part tells more."""
    if cells(text) <= width:
        return text
    kept, _ = _cut(text[::-1], width - 1)
    return "…" + kept[::-1]


def _cut(text: str, width: int) -> tuple[str, int]:
    taken = 0
    for position, character in enumerate(text):
        step = _cells(character)
        if taken + step > width:
            return text[:position], taken
        taken += step
    return text, taken


def _cells(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
