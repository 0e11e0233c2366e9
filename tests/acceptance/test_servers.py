"""The session's private servers, each killed and brought back as later suites will."""

from __future__ import annotations

import kombu
import psycopg
import pytest
import redis

from tests.support.plain_app import make_app
from tests.support.postgres_server import PostgresServer
from tests.support.rabbitmq_server import RabbitMQServer
from tests.support.redis_server import RedisServer
from tests.support.workers import WorkerFleet


def test_redis_keeps_what_it_acknowledged(redis_server: RedisServer, ledger_client: redis.Redis, pool: str) -> None:
    """SIGKILL, restart, and the client that was there before goes on."""
    ledger_client.set(pool, "kept")
    redis_server.kill()
    with pytest.raises(redis.ConnectionError):
        ledger_client.get(pool)
    redis_server.restart()
    assert ledger_client.get(pool) == b"kept"
    with redis_server.client() as other:
        assert other.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


@pytest.mark.rabbitmq
def test_rabbitmq_comes_back_after_a_kill(rabbitmq_server: RabbitMQServer, rabbitmq_url: str) -> None:
    """With this test's virtual host in place."""

    def there_and_back() -> None:
        with kombu.Connection(rabbitmq_url) as connection, connection.SimpleQueue("box") as box:
            box.put("hello")
            message = box.get(timeout=30)
            message.ack()
            assert message.payload == "hello"

    there_and_back()
    rabbitmq_server.kill()
    rabbitmq_server.restart()
    there_and_back()


def test_postgres_answers(postgres_server: PostgresServer) -> None:
    """As a user who may create what a test needs."""
    with psycopg.connect(postgres_server.url) as connection:
        connection.execute("CREATE TABLE proof (n int)")
        connection.execute("INSERT INTO proof VALUES (7)")
        assert connection.execute("SELECT n FROM proof").fetchone() == (7,)


def test_a_worker_starts_stops_and_starts_again(redis_server: RedisServer, workers: WorkerFleet) -> None:
    """Readiness can be whatever the test says it is."""
    app = make_app(broker_url=redis_server.url, result_backend=redis_server.url)
    asked: list[int] = []

    def answers(worker: object) -> bool:
        asked.append(1)
        return bool(app.control.ping(timeout=5, limit=1))

    env = {"CELERY_BROKER_URL": redis_server.url, "CELERY_RESULT_BACKEND": redis_server.url}
    worker = workers.start("tests.support.plain_app", "-c", "1", env=env, ready=answers)
    assert asked
    assert app.send_task("plain.add", (1, 2)).get(timeout=45) == 3
    # A child of plain Celery waits up to 30 s for its last word to be heard, which main may not do any more.
    assert worker.stop(timeout=90) == 0
    assert not app.control.ping(timeout=0.2)
    assert worker.restart().alive
    app.close()
