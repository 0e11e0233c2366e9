"""The broker goes away, forgets, or is cut off. The ledger has every message until its task ends."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from kombu import Queue

from tests.fault.batch import Batch
from tests.fault.registry import Layout, fault
from tests.fault.site import Site
from tests.support.tcp_proxy import TcpProxy

BROKERS = ("same", "redis", "rabbitmq")
LONG = bool(os.environ.get("FAULT_LONG"))
#: Seconds for which the broker cannot be reached, and for which a task outlives the visibility timeout.
CUT_S = 30.0 if LONG else 5.0
OUTLIVES_S = 60.0 if LONG else 11.0
VISIBLE_S = 5
#: Consumers learn of a broken connection by their heartbeat or a socket's timeout: soon, so that rounds are short.
_QUICK = Layout(config=(("broker_heartbeat", 4), ("broker_transport_options", (("socket_timeout", 10.0),))))
_SHORT_VISIBILITY = Layout(config=(("broker_transport_options", (("visibility_timeout", VISIBLE_S),)),))


class ProxiedBrokerSite(Site):
    """A proxy stands before the broker."""

    def __init__(self, layout: Layout, directory: Path) -> None:
        super().__init__(layout, directory)
        self.proxy: TcpProxy

    def start_servers(self) -> str:
        url = urlsplit(super().start_servers())
        self.proxy = TcpProxy((url.hostname or "", url.port or 0))
        who, _, _ = url.netloc.rpartition("@")
        where = f"{self.proxy.host}:{self.proxy.port}"
        return url._replace(netloc=f"{who}@{where}" if who else where).geturl()

    def mend(self) -> None:
        self.proxy.heal()
        super().mend()

    def close(self) -> None:
        super().close()
        with contextlib.suppress(AttributeError):
            self.proxy.close()


@contextlib.contextmanager
def _undelivered(batch: Batch) -> Iterator[tuple[str, list[str]]]:
    """The queue of a worker that is stopped, and tasks whose messages lie in it."""
    run = batch.holding(1)[0]
    worker = batch.site.process(batch.site.worker_of(run.device))
    ledger = batch.site.cluster.ledger
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        sent = [batch.victim("fault.nap", 0.1) for _ in range(8)]
        queue = next(d.queue for d in ledger.snapshot().devices if d.device_id == run.device)
        assert queue
        batch.until(lambda: any(a.queue == queue and a.started_at is None for a in ledger.held()), "a grant there")
        yield queue, sent
    finally:
        os.kill(worker.pid, signal.SIGCONT)


def _once(batch: Batch, task_ids: list[str]) -> None:
    batch.ended(*task_ids)
    for task_id in task_ids:
        batch.check(len(batch.site.history.runs(task_id)) == 1, f"{task_id} was begun again", "doubled")


@fault("broker: restart", "broker", brokers=BROKERS)
def restart(batch: Batch) -> None:
    """Away for a moment, and back with what it keeps: what runs goes on, what is sent meanwhile is refused or runs."""
    held = [run.task_id for run in (*batch.holding(2), *batch.holding(2, late=True))]
    (batch.site.broker or batch.site.backend).restart()
    after = [batch.victim("fault.nap", 0.1) for _ in range(4)]
    batch.ended(*after)
    batch.let_go()
    _once(batch, held)


@fault("broker: purge", "broker", brokers=BROKERS)
def purge(batch: Batch) -> None:
    """A device's queue is emptied while granted tasks lie in it: they are published again."""
    with _undelivered(batch) as (queue, sent), batch.site.cluster.app.connection_for_write() as connection:
        connection.default_channel.queue_purge(queue)
    _once(batch, sent)


@fault("broker: queue deleted", "broker", brokers=BROKERS)
def deleted(batch: Batch) -> None:
    """A device's queue is deleted under its worker, with granted tasks in it."""
    with _undelivered(batch) as (queue, sent), batch.site.cluster.app.connection_for_write() as connection:
        Queue(queue).bind(connection.default_channel).delete()
    _once(batch, sent)


@fault("broker: connection cut", "broker", brokers=("redis", "rabbitmq"), layout=_QUICK, site=ProxiedBrokerSite)
def cut(batch: Batch) -> None:
    """Nothing passes between it and anybody: what runs goes on and is given back, what waits is delivered later."""
    site = batch.site
    assert isinstance(site, ProxiedBrokerSite)
    held = [run.task_id for run in (*batch.holding(2), *batch.holding(2, late=True))]
    site.proxy.cut()
    time.sleep(CUT_S)
    site.proxy.heal()
    batch.let_go()
    _once(batch, held)
    batch.ended(*(batch.victim("fault.nap", 0.1) for _ in range(4)))


@fault("broker: tasks outlive the visibility timeout", "broker", brokers=("same", "redis"), layout=_SHORT_VISIBILITY,
       at_once=6)  # fmt: skip
def visibility(batch: Batch) -> None:
    """Redis delivers again what was not acknowledged within it (5 s here): nothing of ours is, however long it runs."""
    count = batch.rounds // 2 + 1
    held = [run.task_id for run in (*batch.holding(count), *batch.holding(count, late=True))]
    time.sleep(OUTLIVES_S)
    batch.let_go()
    _once(batch, held)
