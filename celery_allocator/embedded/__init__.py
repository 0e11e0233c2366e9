"""The embedded server: a private Redis or Valkey of this user on this host, for use with nothing configured."""

from __future__ import annotations

from celery_allocator.embedded.server import EmbeddedServer, ServerStatus, default_directory, ensure_server

__all__ = ["EmbeddedServer", "ServerStatus", "default_directory", "ensure_server"]
