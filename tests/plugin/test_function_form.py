"""The function form inside an installed app's process: the app's ledger, not the environment's."""

from __future__ import annotations

from celery import Celery

from celery_allocator.allocating.session import default_session
from celery_allocator.plugin import install, is_installed
from tests.support.redis_server import RedisServer


def test_the_function_form_uses_the_apps_ledger_and_settings(redis_server: RedisServer, pool: str) -> None:
    app = Celery("function", set_as_current=False)
    app.conf.update(allocator_backend_url=redis_server.socket_url, allocator_pool=pool)
    assert not is_installed(app)
    install(app)
    assert is_installed(app)
    session = default_session()
    assert session.settings.pool == pool
    assert session.ledger.pool == pool
    assert session.ledger.url == redis_server.socket_url
