"""The form of an update: what other systems send, and what they are answered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from celery_allocator.errors import LabelError, UpdateError
from celery_allocator.model import label

#: Kinds of objects, and what can be done to one.
OBJECTS = ("node", "device", "allocation", "task", "tenant", "setting")
OPERATIONS = ("update", "delete")
#: Largest update, in bytes of JSON.
MAX_BYTES = 65_536
#: Longest idempotency key, in characters: keys for the single actions of an update are made from it.
MAX_KEY = 200

_KEYS = ("object", "id", "op", "fields", "actor", "idempotency_key")


@dataclass(frozen=True)
class Update:
    """One update: ``object`` and ``id`` name what is meant, ``fields`` how it should be, ``actor`` who wants that.

    ``idempotency_key`` stands for this update alone: sent again under the same key it has no effect.
    """

    object: str
    id: str
    op: str
    fields: Mapping[str, Any]
    actor: str
    idempotency_key: str

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON-ready data."""
        return asdict(self)

    def digest(self) -> str:
        """Equal for updates that say the same, whoever sends them."""
        said = json.dumps([self.object, self.id, self.op, self.fields], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()

    @classmethod
    def parse(cls, body: bytes) -> Update:
        """Read the JSON of an update. Raises :class:`UpdateError` saying what is wrong with it."""
        values = _json(body)
        if missing := [key for key in _KEYS if key not in values]:
            raise UpdateError(f"the update lacks {', '.join(missing)}; it has exactly {', '.join(_KEYS)}")
        if unknown := [_shown(key) for key in values if key not in _KEYS]:
            raise UpdateError(f"the update has {', '.join(unknown[:5])}; it has exactly {', '.join(_KEYS)}")
        _one_of("object", values["object"], OBJECTS)
        _one_of("op", values["op"], OPERATIONS)
        if not isinstance(values["fields"], dict):
            raise UpdateError(f"fields={_shown(values['fields'])}: it must be an object")
        try:
            for key in ("id", "actor", "idempotency_key"):
                label(key, values[key])
        except LabelError as error:
            raise UpdateError(str(error)) from error
        if len(values["idempotency_key"]) > MAX_KEY:
            raise UpdateError(f"idempotency_key has {len(values['idempotency_key'])} characters, of at most {MAX_KEY}")
        return cls(**values)


@dataclass(frozen=True)
class Reply:
    """What became of an update.

    ``update``: its id in the stream. ``status``: ``applied``; ``partial`` (something was refused after something else
    was done); ``rejected``; ``duplicate`` (an update of this key was answered before: the rest is as it was then);
    ``malformed`` (it is parked). ``entries``: numbers in the journal. ``unchanged``: how many objects were so already.
    ``skipped``: how many of a tenant's allocations had moved on meanwhile.
    """

    update: str
    status: str
    idempotency_key: str = ""
    reason: str = ""
    code: str = ""
    entries: tuple[int, ...] = ()
    unchanged: int = 0
    skipped: int = 0
    #: The update that was answered first, for a duplicate.
    first: str = ""
    #: What it was about, as it was sent.
    about: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON-ready data."""
        return {**asdict(self), "entries": list(self.entries)}


def _json(body: bytes) -> dict[str, Any]:
    if len(body) > MAX_BYTES:
        raise UpdateError(f"the update has {len(body)} bytes, of at most {MAX_BYTES}")
    try:
        values = json.loads(body.decode(), object_pairs_hook=_object, parse_constant=_constant)
    except UpdateError:
        raise
    except (ValueError, RecursionError) as error:
        raise UpdateError(f"the update is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UpdateError(f"the update is {_shown(values)}: it must be a JSON object")
    return values


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise UpdateError("the update is not clear: it has a key twice")
    return values


def _constant(name: str) -> Any:
    raise UpdateError(f"the update is not JSON: {name} is no value")


def _one_of(key: str, value: Any, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise UpdateError(f"{key}={_shown(value)}: it must be one of {', '.join(allowed)}")


def _shown(value: Any, limit: int = 80) -> str:
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or nested too deep
        return f"<{type(value).__name__}>"
    return text if len(text) <= limit else f"{text[:limit]}…"
