"""The finished message as the ledger keeps it: as kombu's Redis transport writes it, less the front with the token.

So a script can deliver it as it is (see ``mailbox.py``), and everybody else can read it back and publish it. The form
is the one that Celery's clients in other languages write, too: a JSON object of headers, properties, content type and
encoding, and the body in base64. The body is the user's data; it is never opened on the way.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from kombu.utils import json

#: Header in which the plugin carries the allocation's id, its requirements and, once started, its grant.
HEADER = "allocator"
#: What is added to that header after it was sent, and is no part of the message.
_ON_THE_WAY = ("queue", "token", "nonce", "grant")
#: What of a received message's properties its sender chose; the rest is its transport's.
_PROPERTIES = ("correlation_id", "reply_to", "priority")


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
        """As bytes for the ledger: a JSON object less its front, up to and with the token (see :func:`head`)."""
        header = {key: value for key, value in self.headers[HEADER].items() if key not in ("queue", "token")}
        rest = {key: value for key, value in self.headers.items() if key != HEADER}
        message = {
            "headers": {HEADER: {"queue": "", "token": 0, **header}, **rest},
            "properties": {
                "priority": 0,
                **self.properties,
                "delivery_mode": self.delivery_mode,
                "delivery_info": {"exchange": "", "routing_key": ""},
                "delivery_tag": header["id"],
                "body_encoding": "base64",
            },
            "content-type": self.content_type,
            "content-encoding": self.content_encoding,
            "body": base64.b64encode(self.body).decode(),
        }
        text: str = json.dumps(message)
        assert text.startswith(_FRONT)
        return text[len(_FRONT) :].encode()

    @classmethod
    def unpack(cls, data: bytes) -> Envelope:
        """The inverse of :meth:`pack`. Raises ``ValueError`` on anything else."""
        try:
            message = json.loads(_FRONT + data.decode())
            headers, properties = message["headers"], message["properties"]
            for key in ("delivery_info", "delivery_tag", "body_encoding"):
                del properties[key]
            mode = properties.pop("delivery_mode")
            del headers[HEADER]["queue"], headers[HEADER]["token"]
            body = base64.b64decode(message["body"], validate=True)
            content_type, encoding = message["content-type"], message["content-encoding"]
            _check_texts(headers[HEADER]["id"], headers["id"], headers["task"], content_type, encoding)
            return cls(body, content_type, encoding, headers, properties, mode)
        # What the JSON reader raises on anything else, and what kombu's readers of times, decimals and UUIDs do.
        except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ValueError(f"not a message of this version of celery-allocator: {error!r}") from error

    @classmethod
    def of(cls, message: Any) -> Envelope:
        """From a message as a worker received it. Raises ``LookupError`` or ``TypeError`` if it is not one of ours."""
        own = {key: value for key, value in message.headers[HEADER].items() if key not in _ON_THE_WAY}
        body = message.body
        return cls(
            body.encode() if isinstance(body, str) else bytes(body),
            message.content_type,
            message.content_encoding,
            {**message.headers, HEADER: own},
            {key: message.properties[key] for key in _PROPERTIES if message.properties.get(key) is not None},
            message.properties.get("delivery_mode"),
        )


def _check_texts(*values: Any) -> None:
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{value!r:.80} stands where an id, a task's name or a type belongs")


def own_header(headers: Any) -> dict[str, Any]:
    """The plugin's header among a message's, or an empty one; a user's own header of that name is the user's."""
    header = headers.get(HEADER) if isinstance(headers, dict) else None
    return header if isinstance(header, dict) and isinstance(header.get("id"), str) else {}


def head(queue: str) -> str:
    """The front of a message for ``queue``, up to the grant's token."""
    return f'{{"headers": {{"{HEADER}": {{"queue": {json.dumps(queue)}, "token": '


#: The front of every packed message: for no queue, with a token that no grant has.
_FRONT = head("") + "0"
