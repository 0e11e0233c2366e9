"""The ledger's server goes away, forgets, refuses, is slow, or becomes another one."""

from __future__ import annotations

import os
import time

from kombu.exceptions import OperationalError

from tests.fault.batch import VICTIM, Batch
from tests.fault.ledger_site import ForgetfulSite, LedgerSite, ReplicaSite, SlowlyLoadingSite
from tests.fault.registry import Layout, fault

#: Results and plain messages on one server, the ledger on another.
APART = Layout()
#: Seconds for which the ledger cannot be reached: longer than a lease. ``FAULT_LONG`` takes the 30 s of a long run.
OUTAGE_S = 30.0 if os.environ.get("FAULT_LONG") else Layout.lease_s + 3.0
#: Seconds of an inconvenience during which work is to go on.
SPELL_S = 4.0


def _outlast(seconds: float) -> None:
    """What happens meanwhile is nothing that could be waited for: time has to pass."""
    time.sleep(seconds)


def _holding(batch: Batch, count: int = 2) -> list[str]:
    """Twice ``count`` victims that run, and that no outage may end: no worker of theirs is lost."""
    return [run.task_id for run in (*batch.holding(count), *batch.holding(count, late=True))]


def _once(batch: Batch, task_ids: list[str]) -> None:
    """They ran once: no lease of a live worker was lost."""
    batch.let_go()
    batch.ended(*task_ids)
    for task_id in task_ids:
        runs = batch.site.history.runs(task_id)
        batch.check(len(runs) == 1, f"{task_id} was begun {len(runs)} times: its worker's lease was lost", "doubled")


def _away(batch: Batch, site: LedgerSite | ReplicaSite) -> None:
    """A caller sees it in Celery's own terms, and nothing half-done stays behind."""
    policy = {"max_retries": 1, "interval_start": 0.1, "interval_step": 0.0}
    try:
        batch.victim("fault.nap", 0.1, retry_policy=policy)
    except OperationalError:
        return
    batch.check(False, "apply_async did not raise OperationalError while the ledger was away")


@fault("ledger: connection cut", "ledger", layout=APART, site=LedgerSite, unheard=True)
def cut(batch: Batch) -> None:
    """Nothing arrives for longer than a lease: what runs goes on, what ends meanwhile is given back afterwards."""
    site = batch.site
    assert isinstance(site, LedgerSite)
    held = _holding(batch)
    ending = [batch.victim("fault.nap", 1.0) for _ in range(2)]
    batch.started(*ending)
    site.proxy.cut()
    _outlast(OUTAGE_S)
    site.proxy.heal()
    batch.strike(*ending)  # nothing could be given back before
    batch.ended(*ending)
    _once(batch, held)


@fault("ledger: killed, back with its file", "ledger", layout=APART, site=LedgerSite, unheard=True)
def with_file(batch: Batch) -> None:
    """Away for longer than a lease, then back with everything."""
    site = batch.site
    assert isinstance(site, LedgerSite)
    held = _holding(batch)
    site.server.kill()
    _away(batch, site)
    _outlast(OUTAGE_S)
    site.server.start()
    _once(batch, held)


@fault("ledger: killed, back without anything", "ledger", layout=APART, site=ForgetfulSite)
def without_file(batch: Batch) -> None:
    """It keeps no file, and its workers say so when they start: what waits is lost with it. What runs is not.

    So the load is let end first; then the ledger is told by its workers what runs, and nothing is granted over it.
    """
    site = batch.site
    assert isinstance(site, ForgetfulSite)
    held = _holding(batch)
    batch.drain()
    site.server.kill()
    site.server.start()
    batch.until(lambda: len(site.cluster.ledger.held()) >= len(held), "the workers to have reported")
    after = [batch.victim("fault.nap", 0.2) for _ in range(12)]
    batch.ended(*after)
    _once(batch, held)


@fault("ledger: SCRIPT FLUSH", "ledger", layout=APART, site=LedgerSite)
def script_flush(batch: Batch) -> None:
    """The server forgets its scripts, again and again."""
    site = batch.site
    assert isinstance(site, LedgerSite)
    held = _holding(batch)
    with site.server.client() as client:
        for _ in range(20):
            client.script_flush()
            batch.ended(batch.victim("fault.nap", 0.05))
    _once(batch, held)


@fault("ledger: LOADING", "ledger", layout=APART, site=SlowlyLoadingSite)
def loading(batch: Batch) -> None:
    """Killed, and then it answers every command with LOADING until it has read its file."""
    site = batch.site
    assert isinstance(site, SlowlyLoadingSite)
    held = _holding(batch)
    site.compact()
    batch.check(site.kill_and_start(), "the server was never seen to load")
    _once(batch, held)


@fault("ledger: READONLY", "ledger", layout=APART, site=LedgerSite)
def read_only(batch: Batch) -> None:
    """A server that was made a replica under its clients, and is made the primary again."""
    site = batch.site
    assert isinstance(site, LedgerSite)
    held = _holding(batch)
    with site.server.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        _away(batch, site)
        _outlast(OUTAGE_S)
        client.execute_command("REPLICAOF", "NO", "ONE")
    _once(batch, held)


@fault("ledger: OOM", "ledger", layout=APART, site=LedgerSite)
def out_of_memory(batch: Batch) -> None:
    """Full: it takes no task, and what runs is given back all the same."""
    site = batch.site
    assert isinstance(site, LedgerSite)
    held = _holding(batch)
    ending = [batch.victim("fault.nap", 0.5) for _ in range(2)]
    batch.started(*ending)
    site.config(maxmemory="1mb")
    try:
        _away(batch, site)
        batch.ended(*ending)
        batch.until(
            lambda: not {a.task_id for a in site.cluster.ledger.held()} & set(ending), "what ended to be given back"
        )
        _outlast(SPELL_S)
    finally:
        site.config(maxmemory="0")
    _once(batch, held)


@fault("ledger: latency of 500 ms", "ledger", layout=APART, site=LedgerSite)
def latency(batch: Batch) -> None:
    """Every answer takes half a second: slow, and nothing else."""
    site = batch.site
    assert isinstance(site, LedgerSite)
    held = _holding(batch)
    site.proxy.latency_s = 0.25
    try:
        some = [batch.victim("fault.nap", 0.1) for _ in range(4)]
        batch.ended(*some)
        _outlast(SPELL_S)
    finally:
        site.proxy.latency_s = 0.0
    _once(batch, held)


@fault("ledger: failover to a replica that misses the last writes", "ledger", layout=APART, site=ReplicaSite)
def failover(batch: Batch) -> None:
    """The replica knows neither the last grants nor the last releases: it is told, and grants nothing over them."""
    site = batch.site
    assert isinstance(site, ReplicaSite)
    if not site.pair.replica.process.alive:
        site.pair.rejoin()
    whole = {**VICTIM, "gpu_memory_mb": 8192}
    held = _holding(batch, 1)
    batch.drain()
    ending = [batch.victim("fault.nap", 1.5, resources={**VICTIM, "gpu_memory_mb": 0}) for _ in range(2)]
    batch.started(*ending)
    batch.until(site.pair.copied, "the replica to have everything")
    site.pair.stop_copying()
    held += _holding(batch, 1)  # grants that the replica never hears of
    batch.ended(*ending)  # and releases
    site.pair.fail_over()
    after = [batch.victim("fault.nap", 0.1, resources=need) for need in (whole, whole, VICTIM, VICTIM)]
    batch.until(lambda: {a.task_id for a in site.cluster.ledger.held()} >= set(held), "the workers to have reported")
    batch.ended(*after[2:])
    _once(batch, held)
    batch.ended(*after)
