"""Tasks that end otherwise than with a result, or before they start."""

from __future__ import annotations

import os
import signal

from tests.fault.batch import Batch
from tests.fault.registry import FAILS, REVOKED, SILENT, SUCCEEDS, Layout, fault

BROKERS = ("same", "redis", "rabbitmq")


def _all(batch: Batch, how: str, *args: object, ends: frozenset[str], task: str = "fault.die") -> list[str]:
    victims = [batch.victim(task, how, *args, ends=ends) for _ in range(batch.rounds)]
    batch.until(lambda: all(batch.site.history.runs(victim) for victim in victims), "victims to run", 90)
    if ends:
        batch.ended(*victims, timeout=90)
    return victims


@fault("task: Reject", "task", brokers=BROKERS, at_once=32)
def reject(batch: Batch) -> None:
    """A failure, once."""
    for victim in _all(batch, "reject", ends=FAILS):
        batch.check(len(batch.site.history.runs(victim)) == 1, f"{victim} ran again")


@fault("task: Reject with requeue", "task", brokers=BROKERS, at_once=32)
def requeue(batch: Batch) -> None:
    """Run again under a new grant each time."""
    for victim in _all(batch, "requeue", str(batch.site.directory), ends=SUCCEEDS, task="fault.die_late"):
        runs = len(batch.site.history.runs(victim))
        batch.check(runs == 3, f"{victim} ran {runs} times, should be 3")


@fault("task: Ignore", "task", at_once=32)
def ignore(batch: Batch) -> None:
    """No result, by its own wish."""
    _all(batch, "ignore", ends=SILENT)


@fault("task: retry at its limit", "task", at_once=32)
def retry(batch: Batch) -> None:
    """The last retry's error is the result."""
    for victim in _all(batch, "retry", ends=FAILS):
        runs = len(batch.site.history.runs(victim))
        batch.check(runs == 3, f"{victim} ran {runs} times, should be 3")


@fault("task: replace", "task", at_once=32)
def replace(batch: Batch) -> None:
    """What takes its place has its id, and its result."""
    _all(batch, "replace", ends=SUCCEEDS)


@fault("task: expired while waiting", "task", at_once=32)
def expired_waiting(batch: Batch) -> None:
    """Every slot of both GPUs is held."""
    batch.holding(8)
    victims = [batch.victim("fault.nap", 0.1, ends=REVOKED, expires=1) for _ in range(batch.rounds)]
    batch.ended(*victims)
    for victim in victims:
        batch.check(not batch.site.history.runs(victim), f"{victim} ran after it had expired")


@fault("task: expired while delayed", "task", at_once=32)
def expired_delayed(batch: Batch) -> None:
    """Its ETA lies behind its expiry."""
    victims = [batch.victim("fault.nap", 0.1, ends=REVOKED, countdown=4, expires=1) for _ in range(batch.rounds)]
    batch.ended(*victims)
    for victim in victims:
        batch.check(not batch.site.history.runs(victim), f"{victim} ran after it had expired")


@fault("task: expired while granted", "task", layout=Layout(lease_s=10.0), at_once=4)
def expired_granted(batch: Batch) -> None:
    """Its worker is stopped for less than its lease: what was granted to it cannot start in time."""
    mains = [batch.site.process(name).pid for name in ("gpu0", "gpu1")]
    for pid in mains:
        os.kill(pid, signal.SIGSTOP)
    try:
        victims = [batch.victim("fault.nap", 0.1, ends=REVOKED, expires=1) for _ in range(batch.rounds)]
        batch.ended(*victims)
    finally:
        for pid in mains:
            os.kill(pid, signal.SIGCONT)
    for victim in victims:
        batch.check(not batch.site.history.runs(victim), f"{victim} ran after it had expired")
