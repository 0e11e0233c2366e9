"""Pool processes that die or are killed in the middle of a task."""

from __future__ import annotations

from tests.fault.batch import Batch
from tests.fault.registry import FAILS, fault

#: Seconds within which what a dead child held is free: billiard looks after its children every five.
CHILD_S = 7.0


def _all_die(batch: Batch, how: str, *args: object) -> None:
    batch.ended(*(batch.victim("fault.die", how, *args, ends=FAILS) for _ in range(batch.rounds)), timeout=90)


@fault("child: SIGKILL", "child", at_once=32, within_s=CHILD_S)
def sigkill(batch: Batch) -> None:
    """As the kernel's out-of-memory killer."""
    _all_die(batch, "sigkill")


@fault("child: os._exit", "child", at_once=32, within_s=CHILD_S)
def exit_at_once(batch: Batch) -> None:
    """The process ends without a word."""
    _all_die(batch, "exit_at_once")


@fault("child: MemoryError", "child", at_once=32, within_s=CHILD_S)
def memory_error(batch: Batch) -> None:
    """An exception like others: the worker goes on."""
    _all_die(batch, "memory_error")
