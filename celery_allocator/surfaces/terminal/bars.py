"""A bar of one amount, as pieces of text with the name of their style. It can be read without colours."""

from __future__ import annotations

from celery_allocator.overview import Bar

#: Text and the name of its style (see ``STYLES`` of the app).
Piece = tuple[str, str]
Pieces = tuple[Piece, ...]

#: What each part of a bar is drawn with, in its order.
MARKS = {"used": "█", "over": "!", "unused": "▒", "leftover": "▪", "foreign": "╳", "free": "·"}
_WORDS = {"used": "used", "over": "over", "unused": "promised", "leftover": "idle", "foreign": "foreign"}


def legend(*, narrow: bool = False) -> Pieces:
    """What the marks mean; the one for what is free speaks for itself. ``narrow``: not of what is seldom."""
    found: list[Piece] = []
    for name, word in _WORDS.items():
        if narrow and name == "leftover":
            continue
        found += [(MARKS[name], name), (f" {word} ", "dim")]
    return tuple(found)


def drawn(bar: Bar, width: int) -> Pieces:
    """``bar`` in ``width`` columns. What is used beyond the promise, or by others, takes one at least."""
    if width <= 0:
        return ()
    amounts = {
        "used": bar.within,
        "over": bar.overused,
        "unused": bar.unused,
        "leftover": bar.leftover,
        "foreign": bar.foreign or 0,
    }
    whole = max(bar.capacity, sum(amounts.values()), 1)
    share = {name: round(amount * width / whole) for name, amount in amounts.items()}
    for name in ("used", "over", "unused", "leftover", "foreign"):
        if amounts[name] and not share[name]:
            share[name] = 1
    while (much := sum(share.values()) - width) > 0:
        largest = max(share, key=lambda name: share[name])
        share[largest] -= min(much, max(1, share[largest] - 1))
    share["free"] = width - sum(share.values())
    return tuple((MARKS[name] * count, name) for name, count in share.items() if count > 0)


def gauge(bar: Bar, figure: str, width: int) -> Pieces:
    """A bar and what it comes to; where there is no room for both, the figure alone."""
    room = width - len(figure) - 1
    text: Piece = (figure if room < 3 else f" {figure}", "plain")
    return (*drawn(bar, room), text) if room >= 3 else (text,)
