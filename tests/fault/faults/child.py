"""Pool processes that die or are killed in the middle of a task."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from tests.fault.batch import Batch
from tests.fault.deaths import MEMORY_GROUP
from tests.fault.history import Run
from tests.fault.registry import FAILS, REVOKED, VISIBLE, Layout, fault
from tests.fault.site import Site
from tests.support.memory_group import MemoryGroup

#: Seconds within which what a dead child held is free: billiard looks after its children every five.
CHILD_S = 7.0
#: Rounds at once where each holds a slot until it is struck.
SOME = 6


def _all_die(batch: Batch, how: str, *args: object, **options: object) -> None:
    """So many victims that end by themselves, as many at once as there are slots."""
    batch.ended(
        *(batch.victim("fault.die", how, *args, ends=FAILS, **options) for _ in range(batch.rounds)), timeout=90
    )


def _revoke(batch: Batch, number: str, how: str, *args: object) -> list[Run]:
    """So many victims that run, and are revoked."""
    victims = [batch.victim("fault.die", how, *args, ends=REVOKED) for _ in range(batch.rounds)]
    runs = batch.started(*victims)
    batch.strike(*victims)
    batch.site.cluster.app.control.revoke(victims, terminate=True, signal=number)
    batch.ended(*victims)
    return runs


@fault("child: SIGKILL", "child", at_once=32, within_s=CHILD_S)
def sigkill(batch: Batch) -> None:
    """As an operator's ``kill -9``."""
    _all_die(batch, "sigkill")


class LittleMemorySite(Site):
    """Children may join a control group with little memory, where the kernel lets us make one."""

    def __init__(self, layout: Layout, directory: Path) -> None:
        super().__init__(layout, directory)
        self.group = MemoryGroup()

    def worker_env(self, name: str) -> Mapping[str, str]:
        return {MEMORY_GROUP: str(self.group.path)} if self.group.path else {}

    def close(self) -> None:
        super().close()
        self.group.close()


@fault("child: out-of-memory kill", "child", site=LittleMemorySite, at_once=32, within_s=CHILD_S)
def out_of_memory(batch: Batch) -> None:
    """The kernel's SIGKILL (see ``deaths.out_of_memory`` for where it is not the kernel's)."""
    site = batch.site
    assert isinstance(site, LittleMemorySite)
    before = site.group.kills
    _all_die(batch, "out_of_memory")
    if site.group.path:
        killed = site.group.kills - before
        batch.check(killed == batch.rounds, f"the kernel has killed {killed} processes of {batch.rounds}")


@fault("child: os._exit", "child", at_once=32, within_s=CHILD_S)
def exit_at_once(batch: Batch) -> None:
    """The process ends without a word."""
    _all_die(batch, "exit_at_once")


@fault("child: sys.exit", "child", at_once=32, within_s=CHILD_S)
def exit_politely(batch: Batch) -> None:
    """The process ends with its handlers run."""
    _all_die(batch, "exit_politely")


@fault("child: segmentation fault", "child", at_once=32, within_s=CHILD_S)
def segfault(batch: Batch) -> None:
    """A null pointer in an extension."""
    _all_die(batch, "segfault")


@fault("child: MemoryError", "child", at_once=32, within_s=CHILD_S)
def memory_error(batch: Batch) -> None:
    """An exception like others: the worker goes on."""
    _all_die(batch, "memory_error")


@fault("child: address space exhausted", "child", at_once=32, within_s=CHILD_S)
def address_space(batch: Batch) -> None:
    """A ``MemoryError`` that Python itself raises."""
    _all_die(batch, "address_space")


@fault("child: hard time limit", "child", at_once=16, within_s=CHILD_S)
def hard_limit(batch: Batch) -> None:
    """Killed by its worker."""
    _all_die(batch, "sleep", time_limit=1)


@fault("child: hard time limit in a C call", "child", at_once=16, within_s=CHILD_S)
def hard_limit_c(batch: Batch) -> None:
    """SIGTERM is not handled, SIGKILL follows."""
    _all_die(batch, "c_call", time_limit=1)


@fault("child: hard time limit, SIGTERM ignored", "child", at_once=16, within_s=CHILD_S)
def hard_limit_deaf(batch: Batch) -> None:
    """SIGKILL follows here, too."""
    _all_die(batch, "deaf", time_limit=1)


@fault("child: soft time limit", "child", at_once=16, within_s=CHILD_S)
def soft_limit(batch: Batch) -> None:
    """An exception in the task."""
    _all_die(batch, "sleep", soft_time_limit=1)


@fault("child: revoked with SIGTERM", "child", at_once=SOME, within_s=CHILD_S)
def revoke_term(batch: Batch) -> None:
    """Where Python can be interrupted."""
    _revoke(batch, "SIGTERM", "sleep")


@fault("child: revoked with SIGTERM in a C call", "child", at_once=SOME, within_s=CHILD_S)
def revoke_term_c(batch: Batch) -> None:
    """The caller is told at once; the slot comes back when the call has returned and the process is gone."""
    runs = _revoke(batch, "SIGTERM", "c_call", 3)
    held = {allocation.allocation_id for allocation in batch.site.cluster.ledger.held()}
    for run in runs:
        alive = batch.site.history.running(run.task_id)
        batch.check(run.allocation_id in held or not alive, f"{run.task_id} was released while its process lived")


@fault("child: revoked with SIGKILL", "child", at_once=SOME, within_s=CHILD_S)
def revoke_kill(batch: Batch) -> None:
    """Nothing runs after it."""
    _revoke(batch, "SIGKILL", "sleep")


@fault("child: revoked with SIGTERM, ignored", "child", at_once=SOME, load_ends=VISIBLE, within_s=CHILD_S)
def revoke_deaf(batch: Batch) -> None:
    """It runs to its end, and holds what it holds until then."""
    runs = _revoke(batch, "SIGTERM", "deaf", 2)
    batch.until(lambda: not any(batch.site.history.running(run.task_id) for run in runs), "the deaf to end")
    for run in runs:
        # Billiard goes on to believe that what runs in this process next was revoked, too, until it has begun.
        with contextlib.suppress(ProcessLookupError):
            os.kill(run.pid, signal.SIGKILL)


@fault("child: killed on every try (acks_late)", "child", at_once=16, within_s=CHILD_S)
def killed_every_time(batch: Batch) -> None:
    """Repeated under a new grant each time, at most ``allocator_max_losses`` times; then it fails and says so."""
    victims = [batch.victim("fault.die_late", "sigkill", ends=FAILS) for _ in range(batch.rounds)]
    batch.ended(*victims, timeout=110)
    for victim in victims:
        runs = batch.site.history.runs(victim)
        batch.check(len(runs) == 4, f"{victim} ran {len(runs)} times, should be 4: once and allocator_max_losses times")
        reason = batch.sent[victim].reason
        batch.check("allocator_max_losses" in reason, f"{victim}'s reason is {reason}")
