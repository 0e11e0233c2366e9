"""The finished message as the ledger keeps it: one line of JSON (headers and properties), then the body's bytes.

The body is the user's data, serialized by Celery; it is stored and published as it is and never opened on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kombu.utils import json

#: Header in which the plugin carries the allocation's id, its requirements and, once started, its grant.
HEADER = "allocator"
_VERSION = 1


@dataclass(frozen=True)
class Envelope:
    """A task message, ready to be published to whichever queue is granted."""

    body: bytes
    content_type: str
    content_encoding: str
    headers: dict[str, Any]
    properties: dict[str, Any]
    delivery_mode: int | str | None

    def pack(self) -> bytes:
        """As bytes for the ledger."""
        meta = {
            "v": _VERSION,
            "ct": self.content_type,
            "ce": self.content_encoding,
            "h": self.headers,
            "p": self.properties,
            "dm": self.delivery_mode,
        }
        return bytes(json.dumps(meta).encode()) + b"\n" + self.body

    @classmethod
    def unpack(cls, data: bytes) -> Envelope:
        """The inverse of :meth:`pack`. Raises ``ValueError`` on anything else."""
        line, separator, body = data.partition(b"\n")
        meta = json.loads(line.decode()) if separator else None
        if not isinstance(meta, dict) or meta.get("v") != _VERSION:
            raise ValueError("not a message of this version of celery-allocator")
        return cls(body, meta["ct"], meta["ce"], meta["h"], meta["p"], meta["dm"])
