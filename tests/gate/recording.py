"""What the ledger's own event stream says, put into the history's tables as far as the gate reads them."""

from __future__ import annotations

from typing import Any

from celery_allocator.ledger import Ledger
from tests.gate.book import T0, Book

_ENDINGS = ("released", "cancelled", "expired", "parked")


def record(ledger: Ledger, book: Book) -> None:
    """Every entry so far, and a row for each allocation."""
    rows: dict[str, dict[str, Any]] = {}
    for _, entry in ledger.events(count=100_000):
        fields = dict(entry)
        what, name = fields.pop("event"), fields.pop("id")
        seconds = int(fields.pop("at")) / 1000 - T0.timestamp()
        task = fields.pop("task")
        book.event(what, name, seconds, **fields)
        if fields.get("new"):
            gpu, cores, ram, kind = fields["shape"].split(":")
            rows[name] = {
                "task_id": task,
                "task_name": fields["name"],
                "tenant": fields["tenant"],
                "submitted_at": seconds,
                "gpu_memory_mb": int(gpu),
                "cpu_cores": int(cores),
                "ram_mb": int(ram),
                "kind": "task" if kind == "t" else "manual",
                "state": what,
                "node": None,
                "device": None,
                "queue_position": int(fields.get("position") or 0) or None,
            }
            if fields.get("estimate"):
                rows[name]["estimated_start_at"] = int(fields["estimate"]) / 1000 - T0.timestamp()
                rows[name]["estimated_start_p90_at"] = int(fields["estimate_p90"]) / 1000 - T0.timestamp()
        if name in rows:
            _fold(rows[name], what, seconds, fields)
    for name, row in rows.items():
        book.allocation(name, **row)


def _fold(row: dict[str, Any], what: str, seconds: float, fields: dict[str, str]) -> None:
    if what == "granted":
        row["node"], _, row["device"] = fields["device"].rpartition("/")
        row["granted_at"] = seconds
    elif what == "started":
        row["started_at"] = seconds
        row.setdefault("wait_s", seconds - row["submitted_at"])
    elif what in _ENDINGS or (what == "lost" and fields["again"] == "0"):
        row.update(ended_at=seconds, state="released", outcome=fields.get("outcome", what))
