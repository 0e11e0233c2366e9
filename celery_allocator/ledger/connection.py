"""From settings to a ledger: which server, and whether it is fit to hold state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.exceptions import RedisError, ResponseError

from celery_allocator.embedded import EmbeddedServer, default_directory
from celery_allocator.errors import LedgerSchemaError, LedgerUnavailable, SettingsError
from celery_allocator.ledger import keys, servers
from celery_allocator.ledger.announcer import Announcer
from celery_allocator.ledger.client import Ledger
from celery_allocator.ledger.replies import Options
from celery_allocator.ledger.strategies import read_strategies
from celery_allocator.settings import Settings


def resolve_url(settings: Settings, broker_url: str | None = None, result_backend: str | None = None) -> str | None:
    """URL of the ledger: as set, else broker or result backend if one is Redis; ``None``: the embedded server."""
    for candidate in (settings.backend_url, broker_url, result_backend):
        if not candidate:
            continue
        if servers.is_server_url(candidate):
            return candidate
        if candidate == settings.backend_url:
            scheme = urlsplit(candidate).scheme
            raise SettingsError(
                f"allocator_backend_url has the scheme {scheme!r}: the ledger needs "
                f"{', '.join(f'{name}://' for name in servers.SCHEMES)}"
            )
    return None


def connect(
    settings: Settings | None = None,
    broker_url: str | None = None,
    result_backend: str | None = None,
    *,
    celery_options: Callable[[str], tuple[Mapping[str, Any], Any]] | None = None,
) -> Ledger:
    """A ledger client for these settings; starts the embedded server when nothing else is configured.

    ``celery_options`` gives, for the URL chosen, the app's transport options (``master_name``, ``sentinel_kwargs``) and
    its ``use_ssl``. The client connects lazily and must not be shared across a fork.
    """
    settings = settings or Settings.load()
    url = resolve_url(settings, broker_url, result_backend)
    transport_options, use_ssl = celery_options(url) if celery_options and url else ({}, None)
    if url is None:
        url = EmbeddedServer(default_directory(settings)).ensure()
    options = Options(
        events_maxlen=settings.events_maxlen,
        start_deadline_s=settings.start_deadline_s,
        max_losses=settings.max_losses,
        runtime_decay=settings.runtime_decay,
        recommend_margin=settings.recommend_margin,
        ttl_s=settings.ttl_s,
        max_waiting=settings.max_waiting,
        journal_maxlen=settings.journal_maxlen,
        backfill=settings.backfill,
        max_bypass=settings.max_bypass,
        max_bypass_s=settings.max_bypass_s,
        age_weight=settings.age_weight,
        affinity_s=settings.affinity_s,
        affinity_wait_s=settings.affinity_wait_s,
        affinity_keeps=settings.affinity_keeps,
        strategies=read_strategies(settings.strategies),
    )
    announcer = Announcer(settings.pool, options)
    client = servers.open_client(
        url,
        key=keys.prefix(settings.pool),
        on_connect=announcer,
        transport_options=transport_options,
        use_ssl=use_ssl,
    )
    return Ledger(client, settings.pool, options=options, announcer=announcer)


def check_schema(ledger: Ledger) -> None:
    """Mark a new ledger with this version's schema; raise :class:`LedgerSchemaError` if it has another one's."""
    meta = keys.key(ledger.pool, "meta")
    try:
        ledger.client.hsetnx(meta, "schema", str(keys.SCHEMA))
        found = ledger.client.hget(meta, "schema")
    except RedisError as error:
        raise LedgerUnavailable(f"the ledger at {ledger.url} cannot be reached: {error}") from error
    if not isinstance(found, bytes) or found != str(keys.SCHEMA).encode():
        shown = found.decode() if isinstance(found, bytes) else found
        raise LedgerSchemaError(
            f"the ledger of pool {ledger.pool!r} at {ledger.url} has schema {shown}, this version of celery-allocator "
            f"speaks {keys.SCHEMA}: run the same version everywhere, or use another pool (allocator_pool)"
        )


def durability_warnings(ledger: Ledger) -> list[str]:
    """What the server's configuration risks, each with what to set; empty when it is fit to hold state.

    Raises :class:`LedgerUnavailable` when the server does not answer.
    """
    try:
        info = ledger.client.info()
    except RedisError as error:
        raise LedgerUnavailable(f"the ledger at {ledger.url} cannot be reached: {error}") from error
    found = []
    policy = info.get("maxmemory_policy") or _config(ledger.client, "maxmemory-policy")
    if policy and policy != "noeviction":
        found.append(
            f"the ledger at {ledger.url} may evict keys (maxmemory-policy {policy}): "
            "set 'maxmemory-policy noeviction', or slots and waiting tasks can vanish"
        )
    if not info.get("aof_enabled"):
        found.append(
            f"the ledger at {ledger.url} does not append to a file: set 'appendonly yes', "
            "or a restart of the server forgets waiting tasks"
        )
    return found


def _config(client: redis.Redis, name: str) -> str | None:
    try:
        reply = client.config_get(name)
    except ResponseError:  # managed services forbid CONFIG
        return None
    return str(reply.get(name)) if isinstance(reply, dict) and name in reply else None
