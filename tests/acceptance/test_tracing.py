"""The way of a task in OpenTelemetry spans: a producer and workers as processes, spans read from a file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import SOON_S, Cluster
from tests.support.process_nodes import WorkerSpec
from tests.support.waiting import wait_until

MODULE = "tests.support.traced_app"
UUID = "GPU-sim-host1-0"
pytestmark = pytest.mark.parametrize("broker_url", ["redis"], indirect=True)

Span = dict[str, Any]
POOLS = {"prefork": ("-c", "2"), "solo": ("-P", "solo"), "threads": ("-P", "threads", "-c", "2")}


class Traced:
    """A cluster of one worker whose spans can be read, and a producer that is a process."""

    def __init__(self, cluster: Cluster, file: Path, pool: str = "prefork", **env: str) -> None:
        self.cluster = cluster
        self._file = file
        self._env = {"TRACE_FILE": str(file), **env}
        args = ("--gpu", "0", *POOLS[pool])
        cluster.start(WorkerSpec(module=MODULE, name="gpu0", args=args, env=self._env))

    def send(self, *arguments: str) -> Any:
        """Send a task from a process of its own; returns its result."""
        run = subprocess.run(
            [sys.executable, "-m", MODULE, *arguments],
            env=self.cluster.environment(self._env),
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout)

    def spans(self, *names: str) -> list[Span]:
        """Wait until there are spans of these names, as often; returns all, by the time of their start."""

        def there() -> list[Span] | None:
            text = self._file.read_text() if self._file.exists() else ""
            lines = text[: text.rfind("\n") + 1].splitlines()  # whole ones
            found = sorted(map(json.loads, lines), key=lambda span: span["start"])
            have = [span["name"] for span in found]
            return found if all(have.count(name) >= names.count(name) for name in names) else None

        found: list[Span] = wait_until(there, SOON_S, lambda: f"spans {names}: {self._file.read_text()}")
        return found


@pytest.fixture
def traced(new_cluster: Callable[..., Cluster], tmp_path: Path) -> Callable[..., Traced]:
    return lambda pool="prefork", **env: Traced(new_cluster(), tmp_path / "spans.jsonl", pool, **env)


def one(spans: list[Span], name: str) -> Span:
    (found,) = [span for span in spans if span["name"] == name]
    return found


WAY = [f"allocator {what} zoo.traced" for what in ("submit", "wait", "dispatch", "run")]


@pytest.mark.parametrize("pool", POOLS)
def test_one_trace_from_the_caller_to_the_task(traced: Callable[..., Traced], pool: str) -> None:
    site = traced(pool)
    assert site.send("zoo.traced") == "done"
    spans = site.spans("user request", *WAY, "user work")
    assert len({span["trace"] for span in spans}) == 1
    request, work = one(spans, "user request"), one(spans, "user work")
    submit, wait, dispatch, run = (one(spans, name) for name in WAY)
    assert (request["parent"], submit["parent"], work["parent"]) == (None, request["id"], run["id"])
    assert {span["parent"] for span in (wait, dispatch, run)} == {submit["id"]}
    assert wait["start"] <= wait["end"] == dispatch["start"] <= dispatch["end"]
    assert run["start"] <= work["start"] <= work["end"] <= run["end"]
    assert submit["attributes"]["celery_allocator.verdict"] == "granted"
    told = run["attributes"]
    assert (told["hw.id"], told["host.name"], told["celery_allocator.device"]) == (UUID, "host1", "gpu_0")
    assert told["celery_allocator.allocation_id"] == submit["attributes"]["celery_allocator.allocation_id"]
    assert (told["celery_allocator.outcome"], run["status"]) == ("success", "UNSET")
    assert (submit["pid"] == run["pid"], run["pid"] == work["pid"]) == (False, True)
    site.cluster.settle()


def test_a_failure_tells_its_class_and_not_its_text(traced: Callable[..., Traced]) -> None:
    site = traced()
    site.send("zoo.traced", "true")
    run = one(site.spans(*WAY, "user work"), "allocator run zoo.traced")
    assert (run["status"], run["attributes"]["error.type"]) == ("ERROR", "ValueError")
    ours = [span for span in site.spans() if span["name"].startswith("allocator")]
    assert "nobody's business" not in json.dumps(ours)
    # What ran before leaves nothing behind in the process.
    site.send("zoo.traced")
    spans = site.spans(*WAY, *WAY)
    assert len({span["trace"] for span in spans}) == 2
    site.cluster.settle()


def test_a_chain_and_a_retry_hang_on_what_sent_them(traced: Callable[..., Traced]) -> None:
    site = traced()
    assert site.send("chain") == 6
    submits, runs = "allocator submit zoo.add", "allocator run zoo.add"
    spans = site.spans(submits, submits, runs, runs)
    first, second = (span for span in spans if span["name"] == submits)
    first_run, second_run = (span for span in spans if span["name"] == runs)
    # The second is sent by the process that ran the first, within it.
    assert (second["parent"], first_run["parent"], second_run["parent"]) == (first_run["id"], first["id"], second["id"])
    assert len({span["trace"] for span in spans}) == 1

    assert site.send("zoo.retry", '"k"', "2")["allocation"]["name"] == "zoo.retry"
    submits, runs = "allocator submit zoo.retry", "allocator run zoo.retry"
    spans = site.spans(submits, submits, runs, runs)
    first, second = (span for span in spans if span["name"] == submits)
    first_run, second_run = (span for span in spans if span["name"] == runs)
    assert (second["parent"], second_run["parent"]) == (first_run["id"], second["id"])
    assert (first_run["attributes"]["celery_allocator.outcome"], first_run["status"]) == ("retry", "UNSET")
    site.cluster.settle()


@pytest.mark.parametrize("order", ["before", "after"])
def test_beside_the_instrumentation_of_celery(traced: Callable[..., Traced], order: str) -> None:
    """Whichever comes first: its spans are the task's, and ours stand beside them in the same trace."""
    site = traced(TRACE_CELERY=order)
    assert site.send("zoo.traced") == "done"
    names = ("apply_async/zoo.traced", "run/zoo.traced", "user work", *WAY[:3])
    spans = site.spans(*names)
    sent, ran = one(spans, names[0]), one(spans, names[1])
    assert len({span["trace"] for span in spans}) == 1
    assert (one(spans, WAY[0])["parent"], ran["parent"]) == (sent["id"], sent["id"])
    assert {one(spans, name)["parent"] for name in WAY[1:3]} == {sent["id"]}
    assert one(spans, "user work")["parent"] == ran["id"]
    assert WAY[3] not in {span["name"] for span in spans}
    assert "detach" not in site.cluster.logs()
    site.send("zoo.traced")
    assert len({span["trace"] for span in site.spans(*names, *names)}) == 2
    site.cluster.settle()


def test_switched_off(traced: Callable[..., Traced]) -> None:
    site = traced(ALLOCATOR_TRACING="off")
    assert site.send("zoo.traced") == "done"
    spans = site.spans("user request", "user work")
    assert {span["name"] for span in spans} == {"user request", "user work"}
    site.cluster.settle()
