"""A Celery application with the plugin and a task for every behaviour that the suites look at.

Tasks are told what to wait for, and tell what they did, through keys of the result backend (a Redis in every suite), so
that nothing depends on a shared disk. As ``plain_app``: ``make_app(**config)`` for the producer, ``app`` for workers.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import psutil
from celery import Celery
from celery.app.task import Task
from celery.exceptions import Ignore, Reject
from celery.worker.request import Request

from celery_allocator import current_allocation, install
from tests.support.records import Record

GPU = {"gpu_memory_mb": 1024, "cpu_cores": 1}
CPU = {"cpu_cores": 1}

#: Seconds a task waits for what it was told to wait for before it fails.
PATIENCE_S = 60


def witness(app: Celery) -> dict[str, Any]:
    """Where this code runs and what it holds, as plain data."""
    allocation = current_allocation()
    return {
        "pid": os.getpid(),
        "device": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "affinity": sorted(os.sched_getaffinity(0)),
        "allocation": allocation.to_wire() if allocation else None,
    }


def work_on(n: int) -> int:
    """A few milliseconds of real work, with a result that can be checked."""
    digest = str(n).encode()
    for _ in range(1000):
        digest = hashlib.sha256(digest).digest()
    return int.from_bytes(digest[:4], "big")


def _burn(cpu_s: float) -> None:
    """Use so much CPU time in this thread, beside others: hashing much at once holds no lock."""
    until, data = time.thread_time() + cpu_s, bytes(2**20)
    while time.thread_time() < until:
        hashlib.sha256(data).digest()


def count(app: Celery, key: str) -> int:
    """Add one to a counter of the result backend."""
    return int(app.backend.client.incr(key))


class OwnRequest(Request):
    """A user's own request class."""

    def on_timeout(self, soft: bool, timeout: float) -> Any:
        self.app.backend.client.rpush(f"own:{self.id}", f"timeout soft={soft}")
        return super().on_timeout(soft, timeout)


class OwnTask(Task):
    """A user's own base class, with its request class and hooks."""

    Request = OwnRequest

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        self.app.backend.client.rpush(f"own:{task_id}", "before_start")

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        self.app.backend.client.rpush(f"own:{task_id}", "on_success")


def make_app(**config: Any) -> Celery:
    """A fresh application with the zoo; ``plain=True`` leaves the plugin out."""
    plain = config.pop("plain", False)
    app = Celery("zoo", set_as_current=False, include=["pytest_celery.vendors.worker.tasks"])
    app.conf.update(json.loads(os.environ.get("ZOO_CONFIG", "{}")))
    app.conf.update(config)
    if not plain:
        install(app)
    _quiet(app)
    _endings(app)
    _repeaters(app)
    _owners(app)
    return app


def _quiet(app: Celery) -> None:
    """Tasks that end well."""

    @app.task(name="zoo.plain", shared=False)
    def plain(x: Any = None) -> Any:
        return x

    @app.task(name="zoo.add", shared=False, resources=GPU)
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="zoo.cpu_add", shared=False, resources=CPU)
    def cpu_add(x: int, y: int) -> int:
        return x + y

    @app.task(name="zoo.total", shared=False, resources=GPU)
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @app.task(name="zoo.where", shared=False, resources=GPU)
    def where() -> dict[str, Any]:
        return witness(app)

    @app.task(name="zoo.cpu_where", shared=False, resources=CPU)
    def cpu_where() -> dict[str, Any]:
        return witness(app)

    @app.task(name="zoo.affinity", shared=False)
    def affinity() -> dict[str, Any]:
        return witness(app)

    @app.task(name="zoo.hold", shared=False, resources=GPU)
    def hold(key: str) -> str:
        """Run until something is pushed to ``key``; tells that it runs at ``key:in``."""
        client = app.backend.client
        client.rpush(f"{key}:in", os.getpid())
        assert client.blpop([key], timeout=PATIENCE_S), f"nothing came to {key}"
        return key

    @app.task(name="zoo.late_hold", shared=False, resources=GPU, acks_late=True)
    def late_hold(key: str) -> str:
        return hold(key)  # type: ignore[no-any-return]

    @app.task(name="zoo.swell", shared=False, resources=CPU, acks_late=True, reject_on_worker_lost=True)
    def swell(key: str, mb: int, elsewhere: bool = False) -> str:
        """Hold so much RAM, in this process or in one that it starts; tells the ids of both at ``key:pids``."""
        code = "import sys, time; held = b'x' * (int(sys.argv[1]) * 2**20); time.sleep(600)"
        started = subprocess.Popen([sys.executable, "-c", code, str(mb)]) if elsewhere else None
        count(app, f"{key}:runs")
        app.backend.client.rpush(f"{key}:pids", json.dumps([os.getpid(), *([started.pid] if started else [])]))
        held = b"x" * (0 if elsewhere else mb * 2**20)
        hold(key)
        return f"{len(held)} bytes held"

    @app.task(name="zoo.note", shared=False, resources=CPU)
    def note(key: str, value: Any) -> Any:
        app.backend.client.rpush(key, json.dumps(value))
        return value

    @app.task(name="zoo.note_result", shared=False, resources=CPU)
    def note_result(value: Any, key: str) -> Any:
        return note(key, value)

    @app.task(name="zoo.note_error", shared=False, resources=CPU)
    def note_error(request: Any, exc: Any, traceback: Any, key: str) -> None:
        note(key, type(exc).__name__)

    @app.task(name="zoo.count", shared=False, resources=GPU)
    def counted(key: str) -> int:
        return count(app, key)

    @app.task(name="zoo.work", shared=False, bind=True, max_retries=3)
    def work(self: Task, key: str, n: int, nap_s: float, retries: int = 0) -> int:
        """Work a little, and record under ``key`` what was held meanwhile; retry so many times."""
        start = time.monotonic()
        held = current_allocation()
        assert held is not None, "not placed"
        digest = work_on(n)
        time.sleep(nap_s)
        record = Record(
            allocation_id=held.allocation_id,
            token=held.token,
            node=str(held.node),
            device=str(held.device_id),
            gpu_memory_mb=held.gpu_memory_mb,
            ram_mb=held.ram_mb,
            cores=held.cpu_cores,
            start=start,
            end=time.monotonic(),
            pid=os.getpid(),
        )
        app.backend.client.rpush(key, record.to_json())
        if self.request.retries < retries:
            raise self.retry(countdown=0)
        return digest

    @app.task(name="zoo.use", shared=False, resources=CPU)
    def use(mb: int, cpu_s: float) -> dict[str, float]:
        """Hold so much memory for a while, and keep two threads busy for so much CPU time; tells what that came to."""
        began, cpu = time.monotonic(), sum(os.times()[:2])
        kept = bytearray(os.urandom(2**20)) * mb
        resident = psutil.Process().memory_info().rss / 2**20
        del kept
        threads = [threading.Thread(target=_burn, args=(cpu_s / 2,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"ram_mb": resident, "cpu_cores": (sum(os.times()[:2]) - cpu) / (time.monotonic() - began)}

    @app.task(name="zoo.silent", shared=False, resources=GPU, ignore_result=True)
    def silent(key: str) -> int:
        return count(app, key)

    @app.task(name="zoo.stamps", shared=False, resources=GPU, bind=True)
    def stamps(self: Task) -> dict[str, Any]:
        return dict(self.request.stamps or {})


def _endings(app: Celery) -> None:
    """Tasks that end otherwise."""

    @app.task(name="zoo.fail", shared=False, resources=GPU)
    def fail(*args: Any) -> None:
        raise ValueError("as asked")

    @app.task(name="zoo.fail_unless", shared=False, resources=GPU)
    def fail_unless(key: str) -> str:
        if not app.backend.client.exists(key):
            raise ValueError("not yet")
        return "well"

    @app.task(name="zoo.sleep", shared=False, resources=GPU)
    def sleep(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    @app.task(name="zoo.kill_child", shared=False, resources=GPU)
    def kill_child() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @app.task(name="zoo.exit_child", shared=False, resources=GPU)
    def exit_child() -> None:
        sys.exit(3)

    @app.task(name="zoo.no_memory", shared=False, resources=GPU)
    def no_memory() -> None:
        raise MemoryError("as on a full GPU")

    @app.task(name="zoo.ignore", shared=False, resources=GPU)
    def ignore(key: str) -> None:
        count(app, key)
        raise Ignore

    @app.task(name="zoo.reject", shared=False, resources=GPU)
    def reject(key: str) -> None:
        count(app, key)
        raise Reject("as asked", requeue=False)

    @app.task(name="zoo.requeue", shared=False, resources=GPU, acks_late=True)
    def requeue(key: str) -> int:
        """Give the message back twice, then succeed."""
        runs = count(app, key)
        if runs < 3:
            raise Reject("as asked", requeue=True)
        return runs

    @app.task(name="zoo.die_twice", shared=False, resources=GPU, acks_late=True, reject_on_worker_lost=True)
    def die_twice(key: str) -> int:
        """Kill the own process twice, then succeed."""
        runs = count(app, key)
        if runs < 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return runs


def _repeaters(app: Celery) -> None:
    """Tasks that send tasks."""

    @app.task(name="zoo.retry", shared=False, resources=GPU, bind=True, max_retries=2)
    def retry(self: Task, key: str, until: int, countdown: float = 0) -> Any:
        """Retry until the run number ``until``; returns what the last run held."""
        if count(app, key) < until:
            raise self.retry(countdown=countdown)
        return witness(app)

    @app.task(
        name="zoo.autoretry",
        shared=False,
        resources=GPU,
        autoretry_for=(ValueError,),
        retry_backoff=False,
        default_retry_delay=0,
        max_retries=2,
    )
    def autoretry(key: str, until: int) -> int:
        runs = count(app, key)
        if runs < until:
            raise ValueError(f"run {runs}")
        return runs

    @app.task(name="zoo.replace", shared=False, resources=GPU, bind=True)
    def replace(self: Task, x: int, y: int) -> Any:
        return self.replace(app.signature("zoo.cpu_add", (x, y)))

    @app.task(name="zoo.replace_group", shared=False, resources=GPU, bind=True)
    def replace_group(self: Task, numbers: list[int]) -> Any:
        from celery import group

        return self.replace(group(app.signature("zoo.add", (n, n)) for n in numbers))

    @app.task(name="zoo.send", shared=False, resources=CPU)
    def send(name: str, args: list[Any], options: dict[str, Any] | None = None) -> str:
        """Send another task from inside this one; returns its id."""
        return str(app.send_task(name, args, **(options or {})).id)


def _owners(app: Celery) -> None:
    """Tasks with a base class of the user's."""

    @app.task(name="zoo.own", shared=False, base=OwnTask, resources=GPU)
    def own() -> dict[str, Any]:
        return witness(app)

    @app.task(name="zoo.own_sleep", shared=False, base=OwnTask, resources=GPU)
    def own_sleep(seconds: float) -> None:
        time.sleep(seconds)


app = make_app()
