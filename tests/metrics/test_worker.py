"""Metrics from a worker (setting ``allocator_metrics_port``)."""

from __future__ import annotations

import socket

import psutil
import pytest

from celery_allocator.ledger import Ledger
from tests.metrics.scrape import scrape
from tests.security.environment import environment, produce
from tests.support.processes import free_port
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until
from tests.support.workers import WorkerFleet, WorkerProcess

pytestmark = pytest.mark.timeout(300)


def listeners(worker: WorkerProcess, port: int) -> set[int]:
    """Which of a worker's processes have the port open."""
    main = psutil.Process(worker.pid)
    return {
        process.pid
        for process in (main, *main.children(recursive=True))
        if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in process.net_connections())
    }


def test_one_worker_of_a_host_serves_and_another_takes_over(
    redis_server: RedisServer, workers: WorkerFleet, pool: str
) -> None:
    port, url = free_port(), redis_server.url
    env = {**environment(pool, broker=url, backend=url, ledger=url), "ALLOCATOR_METRICS_PORT": str(port)}
    at = f"http://127.0.0.1:{port}/metrics"
    first = workers.start("tests.support.allocator_app", "--gpu", "0", "--concurrency", "2", env=env)
    first.wait_for_output(f"serving metrics at {at}")
    second = workers.start("tests.support.allocator_app", "--gpu", "none", "--concurrency", "1", env=env)
    second.wait_for_output("standing by")
    assert produce(env, workers)["sum"] == 3

    def told() -> bool:
        found = scrape(at)
        return found["up"] == 1 and found.series("releases_total", "outcome").get(("success",), 0) >= 1

    wait_until(told, 30, "the task to be counted")
    wait_until(lambda: scrape(at).get("workers", hostname="host1") == 2, 30, "both workers to be seen")
    assert listeners(first, port) == {first.pid}
    with socket.create_connection(("127.0.0.1", port)) as hangs:
        hangs.sendall(b"GET /metr")
        assert first.stop() == 0
    with redis_server.client() as client:
        events = [fields["event"] for _, fields in Ledger(client, pool).events()]
    assert "left" in events and "worker_lost" not in events
    wait_until(lambda: listeners(second, port) == {second.pid}, 30, second.output)
    assert scrape(at)["up"] == 1
    assert second.stop() == 0
    assert "Traceback" not in workers.output()
