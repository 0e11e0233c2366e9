"""Who may act from Flower, and under which name the journal has it."""

from __future__ import annotations

from base64 import b64decode
from dataclasses import dataclass
from typing import Any

#: What operators can do from here; the rest is for the command line.
ACTIONS = ("cordon", "uncordon", "drain", "hold", "unhold", "cancel", "priority", "front", "pause", "resume")


@dataclass(frozen=True)
class Permission:
    """``user``: the name for the journal. ``why_not``: a sentence for people, empty where acting is allowed."""

    user: str = ""
    why_not: str = ""

    @property
    def given(self) -> bool:
        """Whether acting is allowed."""
        return not self.why_not


def permission(handler: Any) -> Permission:
    """Whether whoever sent this request may act. Flower has let him in already."""
    options = handler.application.options
    if options.read_only:
        return Permission(why_not="Flower was started with --read_only.")
    if not (options.basic_auth or options.auth):
        return Permission(why_not="To act from here, start Flower with --basic_auth or --auth: it must know who acts.")
    user = _user(handler)
    return Permission(user) if user else Permission(why_not="Flower does not know who you are.")


def _user(handler: Any) -> str:
    known = handler.current_user
    if isinstance(known, str):  # OAuth: the account's address
        return known
    # Flower has checked the password by now, and tells no name.
    kind, _, credentials = handler.request.headers.get("Authorization", "").partition(" ")
    return b64decode(credentials).decode().partition(":")[0] if kind == "Basic" else ""
