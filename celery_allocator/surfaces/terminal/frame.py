"""One look at the ledger: what a frame of the screen shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from celery_allocator.ledger import Ledger
from celery_allocator.model import Allocation, iso_utc
from celery_allocator.overview import Match, Overview, Page, Reason, Waiting, read_overview, read_waiting

#: What the lower table can show, in the order of its key.
VIEWS = ("waiting", "on_hold", "delayed")
#: Allocations per page of it.
PAGE = 100
#: Allocations that are read at once while one is looked for.
_CHUNK = 1000


@dataclass(frozen=True)
class Ask:
    """Which part of what does not run is looked at. ``text``: part of a name or an id, in any case of letters."""

    view: str = VIEWS[0]
    offset: int = 0
    limit: int = PAGE
    text: str = ""


@dataclass(frozen=True)
class Frame:
    """The pool at one look. ``page``: what ``ask`` says of what does not run. ``url``: without user and password."""

    url: str
    overview: Overview
    ask: Ask
    page: Page

    @property
    def now(self) -> float:
        """The ledger's clock, in seconds since the epoch."""
        return self.overview.cluster.at

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON-ready data: that of the overview, and the page."""
        return {
            "url": self.url,
            **self.overview.as_dict(),
            "queue": {
                "view": self.ask.view,
                "offset": self.ask.offset,
                "total": self.page.total,
                "matched": self.page.matched,
                "rows": [_row(row) for row in self.page.rows],
            },
        }


def look(ledger: Ledger, ask: Ask, page: Page | None = None) -> Frame:
    """Read a frame; with ``page`` that one is kept. Raises :class:`~celery_allocator.errors.LedgerError`."""
    overview = read_overview(ledger)
    return Frame(ledger.url, overview, ask, page or _read(ledger, overview, ask))


def _read(ledger: Ledger, overview: Overview, ask: Ask) -> Page:
    cluster = overview.cluster
    match = Match(ask.text) if ask.text else None
    if ask.view == "waiting":
        return read_waiting(ledger, cluster, overview.outlook, limit=ask.limit, offset=ask.offset, match=match)
    on_hold = ask.view == "on_hold"
    rows, reason = (ledger.on_hold, _held_by) if on_hold else (ledger.delayed, _due)
    total = cluster.on_hold if on_hold else cluster.delayed
    if match is None:
        found = rows(ask.limit, ask.offset)
        return Page(total, total, tuple(Waiting(row, reason(row)) for row in found))
    meant = [row for row in _all(rows) if match(row)]
    shown = meant[ask.offset : ask.offset + ask.limit]
    return Page(total, len(meant), tuple(Waiting(row, reason(row)) for row in shown))


def _all(rows: Callable[[int, int], tuple[Allocation, ...]]) -> list[Allocation]:
    found: list[Allocation] = []
    while chunk := rows(_CHUNK, len(found)):
        found += chunk
    return found


def _held_by(allocation: Allocation) -> Reason:
    by = allocation.on_hold_by or "operator"
    told = "the circuit breaker of its name" if by == "breaker" else by
    return Reason("on_hold", f"On hold by {told}.")


def _due(allocation: Allocation) -> Reason:
    return Reason("delayed", f"Its ETA is {iso_utc(allocation.eta_at)}.")


def _row(row: Waiting) -> dict[str, Any]:
    allocation = row.allocation
    return {
        **allocation.to_wire(),
        "queue_position": allocation.queue_position,
        "estimated_start_at": allocation.estimated_start_at,
        "estimated_start_p90_at": allocation.estimated_start_p90_at,
        "holds_reservation": row.kept is not None,
        "eta_at": allocation.eta_at,
        "on_hold_by": allocation.on_hold_by,
        "reason": asdict(row.reason),
    }
