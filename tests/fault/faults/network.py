"""Two hosts, of which one is cut off from the servers and comes back."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from celery_allocator.errors import AllocatorError
from tests.fault.batch import Batch
from tests.fault.registry import VISIBLE, Layout, fault
from tests.fault.site import Site
from tests.fault.stale import await_end, freed, lapse
from tests.support.network_hosts import NetworkHosts, unavailable
from tests.support.process_nodes import WorkerSpec
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import wait_until

#: The first letter of a worker's name is its host.
HOSTS = "ab"
_TWO_HOSTS = Layout(workers=(("a0", "0", 4), ("acpu", "none", 2), ("b0", "0", 4), ("bcpu", "none", 2)))
WITHIN_S = Layout.lease_s + 2.0
#: Seconds for which a host stays cut off after its lease is over, and for which its stale runs go on once it is back:
#: its connections try again at growing intervals.
_STAYS_S = 25.0 if os.environ.get("FAULT_LONG") else 2.0
_NOTICED_S = 20.0


class TwoHostsSite(Site):
    """Workers in two network namespaces; the servers are reached by the address of a bridge between all."""

    def __init__(self, layout: Layout, directory: Path) -> None:
        super().__init__(layout, directory)
        self.hosts = NetworkHosts(len(HOSTS))
        self._doors: dict[str, TcpProxy] = {}
        self._urls: dict[str, str] = {}

    def start_servers(self) -> str:
        broker_url = super().start_servers()
        ledger_url = self.backend.url
        self._urls = {
            "CELERY_BROKER_URL": self._outside(broker_url),
            "CELERY_RESULT_BACKEND": self._outside(ledger_url),
            "ALLOCATOR_BACKEND_URL": self._outside(ledger_url),
        }
        return broker_url

    def _outside(self, url: str) -> str:
        parts = urlsplit(url)
        server = f"{parts.hostname}:{parts.port}"
        if server not in self._doors:
            self._doors[server] = TcpProxy((parts.hostname or "", parts.port or 0), host=self.hosts.gateway)
        door = self._doors[server]
        return parts._replace(netloc=parts.netloc.replace(server, f"{door.host}:{door.port}")).geturl()

    def worker_env(self, name: str) -> Mapping[str, str]:
        return {**self._urls, "ALLOCATOR_NODE": f"host-{name[0]}"}

    def spec(self, name: str, gpu: str, slots: int) -> WorkerSpec:
        before = self.hosts.command(HOSTS.index(name[0]))
        return dataclasses.replace(super().spec(name, gpu, slots), before=before)

    def mend(self) -> None:
        for number in range(len(HOSTS)):
            self.hosts.heal(number)

        def all_answer() -> bool:
            # Also after their consumers have started again. A worker that RabbitMQ refuses its own queue of control
            # messages (it still has the connection that was cut) ends: a supervisor would start it again.
            super(TwoHostsSite, self).mend()
            return len(self.cluster.app.control.ping(timeout=1.0)) >= len(self.cluster.workers)

        wait_until(all_answer, 60, "every worker to answer")

    def close(self) -> None:
        super().close()
        for door in self._doors.values():
            door.close()
        self.hosts.close()


@fault("network: one of two hosts cut off and back", "network", brokers=("same", "rabbitmq"), layout=_TWO_HOSTS,
       site=TwoHostsSite, load_ends=VISIBLE, within_s=WITHIN_S, available=unavailable)  # fmt: skip
def cut_off(batch: Batch) -> None:
    """Its lease runs out; what may be repeated runs on the other host; when it is back it stops what it had."""
    site = batch.site
    assert isinstance(site, TwoHostsSite)
    # One is on the host that is cut off: the others leave one of the other host's four slots free for it.
    late = batch.holding(2, late=True, ends=VISIBLE)
    runs = [*late, *batch.holding(2, ends=VISIBLE)]
    node = late[0].node
    mine = [run for run in runs if run.node == node]
    stale = [run for run in site.history.runs() if run.node == node and run.end is None]
    batch.strike(*(run.task_id for run in mine))
    number = HOSTS.index(node[-1])
    site.hosts.cut(number)
    try:
        freed(batch, mine)
        lapse(batch, stale)
        moved = [run.task_id for run in late if run.node == node]

        def again_elsewhere() -> bool:
            found = [site.history.running(task_id) for task_id in moved]
            return any(run is not None and run.node not in ("", node) for run in found)

        batch.until(again_elsewhere, "what may be repeated to run on the other host")
        lapse(batch, [run for run in stale if run.lapsed is None])
        time.sleep(_STAYS_S)
    finally:
        site.hosts.heal(number)
    await_end(batch, stale, _NOTICED_S)
    batch.until(lambda: _back(batch, node), "the host to serve again")
    batch.let_go()


def _back(batch: Batch, node: str) -> bool:
    try:
        return any(d.node == node and d.worker for d in batch.site.cluster.ledger.snapshot().devices)
    except AllocatorError:
        return False
