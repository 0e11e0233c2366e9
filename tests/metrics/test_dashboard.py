"""Real tasks on real workers, the exporter as a process, a real Prometheus that scrapes it, and every shipped query."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from celery_allocator.errors import StaleTokenError
from celery_allocator.overview import read_overview
from tests.browser.conftest import Browser, _driver, browser
from tests.metrics.dashboard import Query, load, panels, queries
from tests.metrics.drawing import page
from tests.metrics.scrape import scrape
from tests.metrics.test_shipped import CONFIGS
from tests.support.cluster import SOON_S, Cluster, worker_spec
from tests.support.fake_nvml import FakeGpu, FakeNvml, nvml_library
from tests.support.processes import ROOT, OwnedProcess, free_port
from tests.support.prometheus_server import PrometheusServer
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

__all__ = ["_driver", "browser", "nvml_library"]  # fixtures

pytestmark = pytest.mark.timeout(300)

GPU_MB = 8192
#: What `$__rate_interval` is here: a few of the many scrapes.
INTERVAL = "5s"
#: Panels whose queries yield nothing here, with the reason.
EMPTY: dict[str, str] = {}
MB = 2**20
DEVICE = '{hostname="host1",gpu="gpu_0",gpu_uuid="GPU-aaaa"}'
WITHHELD = 'celery_allocator_gpu_memory_withheld_bytes{hostname="host1",gpu="gpu_0",why="%s"}'
#: What is to be seen while both holds run and the line waits, and what it comes to at least.
FULL = {
    f"celery_allocator_gpu_memory_used_bytes{DEVICE}": 6000 * MB,
    f"celery_allocator_gpu_memory_foreign_bytes{DEVICE}": 900 * MB,
    WITHHELD % "foreign": 900 * MB,
    WITHHELD % "overuse": (5000 - GPU_MB // 2) * MB,
    'celery_allocator_overuse_bytes{resource="gpu_memory"}': (5000 - GPU_MB // 2) * MB,
    'celery_allocator_allocations{state="waiting"}': 12,
    'celery_allocator_waiting_by_shape{gpu_memory_mb="500"}': 4,
    "celery_allocator_oldest_waiting_age_seconds": 3,
    'celery_allocator_tenant_waiting{tenant="vision"}': 4,
    'celery_allocator_tenant_gpu_memory_held_bytes{tenant="vision"}': GPU_MB * MB,
    'celery_allocator_tenant_share_ratio{tenant="vision"}': 1,
}


@dataclass
class Site:
    """What has happened: the pool at rest again, what Prometheus has seen of it, and when."""

    cluster: Cluster
    prometheus: PrometheusServer
    url: str
    began: float
    ended: float = 0.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, nvml_library: Path) -> Iterator[Site]:
    """One GPU with others' processes on it, a worker for it and one for CPU work; every kind of ending, and a queue."""
    directory = tmp_path_factory.mktemp("site")
    server = RedisServer(directory / "redis").start()
    nvml = FakeNvml(nvml_library, directory)
    environ = nvml.environ([gpu()])
    host = {
        **{key: environ[key] for key in ("LD_LIBRARY_PATH", "FAKE_NVML_SCRIPT")},
        "ALLOCATOR_NODE": "host1",
        "ALLOCATOR_DEVICES": "auto",
        "ALLOCATOR_CPU_CORES": "8",
        "ALLOCATOR_RAM_MB": "16384",
        "ALLOCATOR_MEASURE_S": "0.2",
        "ALLOCATOR_HEARTBEAT_S": "0.2",
        "ALLOCATOR_RECORDER": "true",
        "ALLOCATOR_HISTORY_BACKEND_URL": f"sqlite:///{directory}/history.sqlite3",
    }
    cluster = Cluster(server.url.replace("/0", "/1"), server, directory / "workers", host=host)
    port = free_port()
    argv = [sys.executable, "-m", "celery_allocator", "exporter", "--port", str(port)]
    exporter = OwnedProcess(argv, directory / "exporter.log", env=cluster.environment())
    prometheus = PrometheusServer(directory / "prometheus", f"127.0.0.1:{port}", [CONFIGS / "alerts.yml"])
    url = f"http://127.0.0.1:{port}/metrics"
    try:
        exporter.start()
        wait_until(lambda: answers(url), SOON_S, exporter.output)
        prometheus.start()
        found = Site(cluster, prometheus, url, time.time())
        cluster.start(worker_spec("gpu0", "0", "--concurrency", "2"), worker_spec("cpu", "none", "--concurrency", "1"))
        run(found, nvml, environ)
        cluster.settle()
        wait_until(lambda: equal_counts(found), SOON_S, "the exporter to have counted everything")
        wait_until(lambda: scrape(url).get("recorder_lag_seconds") == 0, SOON_S, "the recorder to have caught up")
        linger(2)
        # Scraped once more, after that.
        newest = scrape(url).series("events_total", "event")
        total = "sum(celery_allocator_events_total)"
        wait_until(
            lambda: float(prometheus.query(total)[0]["value"][1]) >= sum(newest.values()), SOON_S, "the last scrape"
        )
        found.ended = time.time()
        yield found
    finally:
        exporter.kill()
        prometheus.kill()
        cluster.close()
        server.kill()


def gpu(*processes: tuple[int, int | None]) -> FakeGpu:
    return FakeGpu("GPU-aaaa", memory_mb=GPU_MB, processes=processes, utilization=60)


def answers(url: str) -> bool:
    try:
        return scrape(url)["up"] == 1
    except OSError:
        return False


def run(site: Site, nvml: FakeNvml, environ: dict[str, str]) -> None:
    """A stretch of life."""
    cluster, send = site.cluster, site.cluster.app.send_task
    ends = [send("zoo.sleep", (0.05,)) for _ in range(20)]
    ends += [send("zoo.no_memory") for _ in range(2)]
    ends += [send("zoo.fail"), send("zoo.cpu_add", (1, 2)), send("zoo.requeue", (cluster.key(),))]
    for end in ends:
        end.get(timeout=SOON_S, propagate=False)
    with pytest.raises(StaleTokenError):  # as a gate does, of a delivery that comes once more
        cluster.ledger.start("alloc_gone", 1, "gpu0", "", "", repeatable=False)
    keys = [cluster.key(), cluster.key()]
    for key in keys:
        send(
            "zoo.hold",
            (key,),
            resources={"gpu_memory_mb": GPU_MB // 2, "cpu_cores": 2, "ram_mb": 1, "tenant": "vision"},
        )
    children = [cluster.held_in(key) for key in keys]
    # What a process held when its task was first seen is not held against the task.
    wait_until(lambda: len(judged(cluster)) == len(keys), SOON_S, "the worker to have seen both tasks")
    nvml.change(environ, [gpu((children[0], 5000), (children[1], 1000), (psutil.Process().pid, 900))])
    tenants = ("vision", "speech", "")
    line = [
        send("zoo.sleep", (0.3,), resources={"gpu_memory_mb": 500 * (n % 3 + 1), "tenant": tenants[n // 4]})
        for n in range(12)
    ]
    line += [send("zoo.where", countdown=3), send("zoo.where", countdown=600)]
    wait_until(lambda: overuse_is_seen(cluster), SOON_S, "a task to be seen over its promise")
    wait_until(
        lambda: not unseen(site.prometheus), SOON_S, lambda: f"Prometheus to have seen {unseen(site.prometheus)}"
    )
    # What its process still holds would be the next task's.
    nvml.change(environ, [gpu()])
    wait_until(lambda: not overuse_is_seen(cluster), SOON_S, "no task to be over its promise")
    cluster.let_go(*keys)
    for end in line[:-1]:
        end.get(timeout=SOON_S)
    line[-1].revoke()
    cluster.until(cluster.idle, "the pool to be idle")


def unseen(prometheus: PrometheusServer) -> list[str]:
    """What of :data:`FULL` its newest samples do not show."""
    return [
        expression
        for expression, least in FULL.items()
        if not any(float(one["value"][1]) >= least for one in prometheus.query(expression))
    ]


def judged(cluster: Cluster) -> list[int]:
    """By how many MB each running task is over its promise, as its worker has judged."""
    uses = [one.use for one in read_overview(cluster.ledger).running if one.use is not None]
    return [use.gpu_memory_over_mb for use in uses if use.gpu_memory_over_mb is not None]


def overuse_is_seen(cluster: Cluster) -> bool:
    return any(over > 0 for over in judged(cluster))


def linger(scrapes: float) -> None:
    """Let Prometheus see it for a while: its samples are of moments."""
    end = time.monotonic() + scrapes
    wait_until(lambda: time.monotonic() > end, scrapes + 5)


def equal_counts(site: Site) -> bool:
    counted = scrape(site.url).series("events_total", "event")
    return counted == {(name,): n for name, n in Counter(e["event"] for e in events(site)).items()}


def events(site: Site) -> list[dict[str, str]]:
    return [fields for _, fields in site.cluster.ledger.events(count=100_000)]


def test_the_counters_are_the_ledgers_events(site: Site) -> None:
    found, told = scrape(site.url), events(site)
    started = [e["id"] for e in told if e["event"] == "started"]
    assert found["queue_wait_seconds_count"] == len(set(started)) >= 37
    assert found["placement_latency_seconds_count"] == len(started) > len(set(started))
    assert found.series("grants_total", "hostname", "gpu") == devices(e for e in told if e["event"] == "granted")
    ended = Counter(e["outcome"] for e in told if e["event"] in ("released", "cancelled"))
    assert found.series("releases_total", "outcome") == {(outcome,): n for outcome, n in ended.items()}
    assert found.series("out_of_memory_total", "hostname", "gpu") == {("host1", "gpu_0"): 2}
    assert (
        found.series("regrants_total", "reason")
        == {("requeued",): sum(e["event"] == "requeued" for e in told)}
        == {("requeued",): 2}
    )
    assert found.series("deliveries_rejected_total", "reason") == {("ended",): 1}
    episodes = found.series("overuse_episodes_total", "resource")
    assert episodes["gpu_memory",] == 1
    acted = Counter((e["resource"].removesuffix("_mb"), e["action"]) for e in told if e["event"] == "overuse")
    assert found.series("overuse_actions_total", "resource", "action") == acted
    assert acted["gpu_memory", "warn"] == 1
    assert found.get("estimate_error_seconds_bucket", le="+Inf") == sum(
        bool(e.get("estimate")) and e.get("new") == "1" and e["id"] in started for e in told
    )
    assert found["stream_gaps_total"] == found["recorder_gaps_total"] == 0


def devices(some: Iterator[dict[str, str]]) -> dict[tuple[str, ...], float]:
    return dict(Counter(tuple(e["device"].split("/")) for e in some))


def test_every_query_of_the_dashboard_has_an_answer(site: Site) -> None:
    silent = {}
    for panel in panels(load()):
        for query in queries(panel):
            if not seen(site, query):
                silent[f"{query.panel}: {query.legend}"] = query.filled(INTERVAL)
    assert set(silent) == set(EMPTY), silent


def seen(site: Site, query: Query) -> bool:
    series = site.prometheus.query_range(query.filled(INTERVAL), site.began, site.ended, 0.25)
    return any(not math.isnan(float(value)) for one in series for _, value in one["values"])


def test_the_variables_choose_nodes_and_devices(site: Site) -> None:
    for panel in panels(load()):
        for query in queries(panel):
            if "$gpu" in query.expression:
                other = query.filled(INTERVAL, gpu="none_of_these")
                assert site.prometheus.query_range(other, site.began, site.ended, 1) == [], query.panel


def test_prometheus_saw_what_the_ledger_held(site: Site) -> None:
    def most(expression: str) -> float:
        (one,) = site.prometheus.query_range(expression, site.began, site.ended, 0.25)
        return max(float(value) for _, value in one["values"])

    assert most(f"celery_allocator_gpu_memory_capacity_bytes{DEVICE}") == GPU_MB * MB
    assert most(f"celery_allocator_gpu_memory_allocated_bytes{DEVICE}") == GPU_MB * MB
    for expression, least in FULL.items():
        counted = expression.endswith("seconds") or 'state="waiting"' in expression or "by_shape" in expression
        assert most(expression) >= least if counted else most(expression) == least, expression
    # They waited for what was known to run briefly and did not: each was promised a date, and each was scored.
    assert most("celery_allocator_dates_scored_total") >= 12
    # The label by which it joins what celery-exporter tells of queues.
    queue = f"allocator.{site.cluster.pool}.host1.gpu_0"
    assert most(f'celery_allocator_worker_slots_capacity{{queue_name="{queue}"}}') == 2


def test_every_alert_is_evaluated(site: Site) -> None:
    wait_until(lambda: all(rule["health"] != "unknown" for rule in site.prometheus.rules()), 30)
    assert [rule["name"] for rule in site.prometheus.rules() if rule["health"] != "ok"] == []


def test_the_dashboard_can_be_looked_at(site: Site, browser: Browser, tmp_path: Path) -> None:
    """Drawn from the shipped JSON and Prometheus' answers by a renderer of ours; Grafana itself is not here."""
    file = tmp_path / "dashboard.html"
    file.write_text(page(load(), site.prometheus, INTERVAL, site.began, site.ended), encoding="utf-8")
    browser.open(file.as_uri(), width=1500, height=3280)
    drawn: list[Any] = browser.run("return [...document.querySelectorAll('section')].map(s => s.dataset.drawn)")
    assert len(drawn) == len(panels(load()))
    assert drawn.count("0") == len(EMPTY)
    assert browser.messages == []
    folder = ROOT / "docs" / "images" if os.environ.get("UPDATE_SCREENSHOTS") else tmp_path
    assert browser.picture(folder / "dashboard.png").stat().st_size > 20_000


def test_no_task_is_named(site: Site) -> None:
    text = scrape(site.url).text
    ids = {e["id"] for e in events(site)} | {e["task"] for e in events(site)}
    assert not [i for i in ids if len(i) > 12 and i in text]
    assert "zoo." not in text
