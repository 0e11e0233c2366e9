"""The exporter in front of a real ledger: in this process, as a command, with the ledger away."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import prometheus_client
import pytest
from celery import Celery

from celery_allocator import install
from celery_allocator.history import Recorder
from celery_allocator.ledger import Ledger
from celery_allocator.metrics.exporter import Exporter, serve_when_free
from celery_allocator.metrics.looking import EVERY_S, FRESH_S
from celery_allocator.metrics.table import COUNTER, HISTOGRAM, METRICS, PREFIX
from celery_allocator.plugin.exposing import MetricsStep
from celery_allocator.settings import Settings
from tests.metrics.scrape import Scrape, scrape
from tests.support.ledger_pool import LedgerPool
from tests.support.processes import OwnedProcess, clean_environment, free_port
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until


@pytest.fixture
def pooled(redis_server: RedisServer, pool: str) -> Iterator[LedgerPool]:
    with redis_server.client() as client:
        made = LedgerPool(client, pool)
        made.at = time.time()
        yield made


@pytest.fixture
def history_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/history.sqlite3"


@pytest.fixture
def exporter(redis_server: RedisServer, pool: str, history_url: str) -> Iterator[Exporter]:
    settings = Settings(backend_url=redis_server.url, pool=pool, history_backend_url=history_url)
    made = Exporter(lambda: Ledger(redis_server.client(), pool), settings, "127.0.0.1", 0)
    made.start()
    wait_until(lambda: made.follower.position, 10, "the follower to know where to begin")
    yield made
    made.stop()


def until(exporter: Exporter, pooled: LedgerPool) -> Scrape:
    """A scrape after all that has happened was counted."""
    newest = pooled.ledger.position()
    wait_until(lambda: exporter.follower.position == newest, 10, "the follower to catch up")
    waiting = pooled.ledger.snapshot().waiting

    def current() -> Scrape | None:
        found = scrape(exporter.url)
        return found if found.get("allocations", state="waiting") == waiting else None

    found = wait_until(current, 10, "a look that is no older than what has happened")
    assert found is not None
    return found


def test_a_scrape_has_every_metric_and_equals_the_ledger(exporter: Exporter, pooled: LedgerPool) -> None:
    pooled.node(gpus=(10_000,))
    _keep_a_date(pooled)
    for number in range(5):
        pooled.submit(4_000, id=f"w{number}")
    found = until(exporter, pooled)
    cluster = pooled.ledger.snapshot()
    for state in ("delayed", "on_hold", "waiting", "granted", "running"):
        assert found.get("allocations", state=state) == getattr(cluster, state)
    assert found.series("events_total", "event") == {(name,): n for name, n in Counter(pooled.happened()).items()}
    # As the parser knows them: with their types and their meanings.
    for metric in METRICS.values():
        name = metric.full_name.removesuffix("_total") if metric.type == COUNTER else metric.full_name
        if metric.name in NOT_MEASURED:
            assert name not in found.families
            continue
        family = found.families[name]
        assert (family.type, family.documentation) == (metric.type, metric.doc)
        for sample in family.samples:
            assert set(sample.labels) == set(metric.labels) | ({"le"} if sample.name.endswith("_bucket") else set())
        if metric.type == HISTOGRAM:
            assert sum(sample.name.endswith("_bucket") for sample in family.samples) == len(metric.buckets) + 1
    assert {family.removeprefix(PREFIX) for family in found.families} <= {
        name.removesuffix("_total") for name in METRICS
    }


def _keep_a_date(pooled: LedgerPool) -> None:
    """One that waited for another, and was promised when it starts."""
    known = pooled.running(10_000)
    pooled.at += 10
    pooled.ledger.release(known.allocation_id, known.token, "success")
    blocks = pooled.running(10_000)
    promised = pooled.submit(10_000).allocation
    pooled.at += 10
    pooled.ledger.release(blocks.allocation_id, blocks.token, "success")
    started = pooled.start(pooled.ledger.get(promised.allocation_id))
    pooled.ledger.release(started.allocation_id, started.token, "success")
    assert pooled.ledger.accuracy().scored == 1


#: Scripts that one look calls.
SCRIPTS = 5
#: What nobody has measured or recorded here.
NOT_MEASURED = {
    "gpu_memory_used_bytes",
    "gpu_memory_foreign_bytes",
    "gpu_utilization_ratio",
    "ram_used_bytes",
    "ram_foreign_bytes",
    "children_recycled_total",
    "recorder_lag_seconds",
    "recorder_gaps_total",
    "recorder_missed_entries_total",
}


def test_open_metrics_are_served_to_who_asks_for_them(exporter: Exporter, pooled: LedgerPool) -> None:
    pooled.node()
    asked = urllib.request.Request(exporter.url, headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        text = answer.read().decode()
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    assert PREFIX + "estimate_error_seconds" in {family.name for family in text_string_to_metric_families(text)}
    assert text.endswith("# EOF\n")


def test_other_paths_and_health(exporter: Exporter) -> None:
    base = exporter.url.removesuffix("/metrics")
    with urllib.request.urlopen(f"{base}/healthz", timeout=10) as answer:
        assert answer.read() == b"ok\n"
    for path in ("/", "/metrics/x", "/../etc/passwd"):
        with pytest.raises(urllib.error.HTTPError, match="404") as error:
            urllib.request.urlopen(base + path, timeout=10)
        error.value.close()
    asked = urllib.request.Request(exporter.url, data=b"x", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="405") as error:
        urllib.request.urlopen(asked, timeout=10)
    error.value.close()


def test_the_librarys_own_registry_is_left_alone(exporter: Exporter) -> None:
    """Flower serves that one on its event loop, to everybody."""
    assert not [f.name for f in prometheus_client.REGISTRY.collect() if f.name.startswith(PREFIX)]


def test_scrapes_within_a_short_while_share_one_look(exporter: Exporter, pooled: LedgerPool) -> None:
    pooled.node()
    scrape(exporter.url)

    def calls() -> int:
        return int(pooled.ledger.client.info("commandstats")["cmdstat_evalsha_ro"]["calls"])

    before, began = calls(), time.monotonic()
    for _ in range(60):
        scrape(exporter.url)
    # However slow the machine is: one for each time that a look has grown old, one of its own accord every two seconds.
    took = time.monotonic() - began
    looks = took / FRESH_S + took / EVERY_S + 2
    assert calls() - before <= SCRIPTS * looks


def test_while_the_ledger_is_away_a_scrape_answers_with_the_last_counters(
    redis_server: RedisServer, exporter: Exporter, pooled: LedgerPool
) -> None:
    pooled.node()
    pooled.submit(1_000)
    before = until(exporter, pooled)
    assert before["up"] == 1
    redis_server.kill()
    wait_until(lambda: scrape(exporter.url)["up"] == 0, 15, "the ledger to be missed")
    away = scrape(exporter.url)
    assert away.get("allocations", state="granted") is None
    assert away.series("events_total", "event") == before.series("events_total", "event")
    assert away.series("info", "version")
    assert exporter.healthy
    redis_server.ensure()
    wait_until(lambda: scrape(exporter.url)["up"] == 1, 15, "the ledger to be back")


def test_a_ledger_that_hangs_holds_a_scrape_up_no_longer_than_it_may_take(
    redis_server: RedisServer, exporter: Exporter, pooled: LedgerPool
) -> None:
    pooled.node()
    assert scrape(exporter.url)["up"] == 1
    redis_server.process.send(signal.SIGSTOP)
    try:
        wait_until(lambda: scrape(exporter.url)["up"] == 0, 30, "the ledger to be missed")
    finally:
        redis_server.process.send(signal.SIGCONT)
    wait_until(lambda: scrape(exporter.url)["up"] == 1, 30, "the ledger to be back")


def test_the_recorders_progress_where_there_is_a_history(
    exporter: Exporter, pooled: LedgerPool, redis_server: RedisServer, history_url: str
) -> None:
    pooled.node()
    assert scrape(exporter.url).get("recorder_lag_seconds") is None
    settings = Settings(pool=pooled.ledger.pool, history_backend_url=history_url)
    Recorder(lambda: Ledger(redis_server.client(), pooled.ledger.pool), settings).run(threading.Event(), once=True)

    def lag() -> float | None:
        exporter._recorded.look()
        return scrape(exporter.url).get("recorder_lag_seconds")

    wait_until(lambda: lag() == 0, 10, "a look at the history")
    assert scrape(exporter.url)["recorder_gaps_total"] == 0
    then = pooled.ledger.position()
    wait_until(lambda: time.time() * 1000 > int(then.partition("-")[0]) + 5, 5)
    pooled.submit(1_000)
    wait_until(lambda: (lag() or 0) > 0, 10, "the recorder to be behind")


def test_an_exporter_ends_at_once_though_a_client_hangs(exporter: Exporter) -> None:
    with socket.create_connection(("127.0.0.1", exporter.port)) as client:
        client.sendall(b"GET /metr")
        assert scrape(exporter.url)["up"] == 1
        exporter.stop()
    with socket.socket() as again:  # the port is free
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", exporter.port))


def test_a_forked_child_does_not_keep_the_port(exporter: Exporter) -> None:
    release, held = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(held)
        os.read(release, 1)
        os._exit(0)
    try:
        exporter.stop()
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", exporter.port))
            again.listen()
    finally:
        os.close(held)
        os.close(release)
        os.waitpid(pid, 0)


def test_who_finds_the_port_taken_stands_by(
    exporter: Exporter, redis_server: RedisServer, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celery_allocator.metrics.exporter._PORT_S", 0.05)
    settings = Settings(backend_url=redis_server.url, pool=pool)
    second = Exporter(lambda: Ledger(redis_server.client(), pool), settings, "127.0.0.1", exporter.port)
    stop = threading.Event()
    waiting = threading.Thread(target=serve_when_free, args=(second, stop))
    waiting.start()
    exporter.stop()
    waiting.join(20)
    assert not waiting.is_alive()
    assert scrape(second.url)["up"] == 1
    second.stop()


# --- the command


def command(redis_server: RedisServer, pool: str, tmp_path: Path, *args: str) -> OwnedProcess:
    env = clean_environment({"ALLOCATOR_BACKEND_URL": redis_server.url, "ALLOCATOR_POOL": pool})
    argv = [sys.executable, "-m", "celery_allocator", "exporter", *args]
    return OwnedProcess(argv, tmp_path / "exporter.log", env=env)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_it_is_told_to_stop(
    redis_server: RedisServer, pool: str, pooled: LedgerPool, tmp_path: Path, number: signal.Signals
) -> None:
    pooled.node()
    port = free_port()
    with command(redis_server, pool, tmp_path, "--port", str(port)) as process:
        process.wait_for_output(f"metrics of pool {pool} at http://127.0.0.1:{port}/metrics")
        assert scrape(f"http://127.0.0.1:{port}/metrics").get("workers", hostname="n1") == 2
        assert process.stop(number) == 0


def test_the_command_in_json_and_a_port_that_is_taken(
    redis_server: RedisServer, pool: str, tmp_path: Path, exporter: Exporter
) -> None:
    with command(redis_server, pool, tmp_path / "one", "--port", "0", "--json") as process:
        process.wait_for_output("}\n")
        told = json.loads(process.output())
        assert (told["success"], told["pool"]) == (True, pool)
        assert scrape(told["url"])["up"] == 1
    taken = command(redis_server, pool, tmp_path / "two", "--port", str(exporter.port))
    taken.start()
    assert taken.wait(30) == 1
    assert f"port {exporter.port} of 127.0.0.1 cannot be had" in taken.output()
    assert "Traceback" not in taken.output()


@pytest.mark.parametrize("args", ["['exporter', '--port', '0']", "['exporter', '--json']"])
def test_without_the_extra_the_command_says_what_to_install(
    redis_server: RedisServer, pool: str, tmp_path: Path, args: str
) -> None:
    code = "import sys\nsys.modules['prometheus_client'] = None\n"
    code += f"from celery_allocator.surfaces.cli import allocator\nallocator({args})"
    env = clean_environment({"ALLOCATOR_BACKEND_URL": redis_server.url, "ALLOCATOR_POOL": pool})
    process = OwnedProcess([sys.executable, "-c", code], tmp_path / "log", env=env)
    process.start()
    assert process.wait(30) == 1
    assert "pip install 'celery-allocator[metrics]'" in process.output()
    assert "Traceback" not in process.output()
    assert ('"code": "metrics_extra"' in process.output()) == ("--json" in args)


def test_a_worker_without_the_extra_works_on(
    redis_server: RedisServer, pool: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "celery_allocator.metrics.exporter")
    app = install(Celery("app", set_as_current=False))
    app.conf.update(allocator_backend_url=redis_server.url, allocator_pool=pool, allocator_metrics_port=free_port())
    parent = SimpleNamespace(app=app)
    step = MetricsStep(parent)
    assert step.include_if(parent)
    step.start(parent)
    step.shutdown(parent)
    assert "no metrics from here" in caplog.text
