"""A task that ran out of GPU memory: granted again with a larger claim, in the child that ran it."""

from __future__ import annotations

import logging
import time
from typing import Any

from celery.exceptions import TaskPredicate

from celery_allocator.errors import LedgerUnavailable
from celery_allocator.isolation import free_gpu_memory, is_out_of_gpu_memory
from celery_allocator.ledger import Grown
from celery_allocator.plugin.moved import GrantedAgain, MovedOn
from celery_allocator.plugin.publish import publish_grants
from celery_allocator.plugin.running import of_request
from celery_allocator.plugin.session import session

logger = logging.getLogger(__name__)

#: A task's own number of times, over the setting.
_OWN = "allocator_oom_retries"
_ASK_S = 1.0
_GONE_ON = ("stale", "gone", "not_running")


def grow(task: Any, error: Exception) -> None:
    """Called with what a task has raised. Raises :class:`GrantedAgain` where it is in line again with a larger claim.

    Else it returns, and ``error`` is the task's. Raises :class:`MovedOn` where the grant is not the live one any more.
    """
    if isinstance(error, TaskPredicate):  # Retry, Ignore, Reject: the task has said itself what becomes of it
        return
    allocation = of_request(task.request)
    if allocation is None or not allocation.gpu_memory_mb or not is_out_of_gpu_memory(error):
        return
    settings = session(task.app).settings
    most = getattr(task, _OWN, None)
    most = settings.oom_retries if most is None else int(most)
    if most <= 0:
        return
    who = f"{task.name}[{task.request.id}]"
    # Before the ledger counts it as free: the next one may begin at once.
    free_gpu_memory(error)
    grown = _ask(task, allocation.allocation_id, allocation.token, settings.oom_growth, most)
    if grown.done:
        logger.warning(
            "%s ran out of GPU memory with %d MB (%s): in line again with %d MB, time %d of %d",
            *(who, grown.from_mb, type(error).__name__, grown.to_mb, grown.times, most),
        )
        publish_grants(task.app, grown.grants)
        raise GrantedAgain(f"{allocation.allocation_id} ran out of GPU memory: granted again with {grown.to_mb} MB")
    if grown.reason in _GONE_ON:
        raise MovedOn(f"the grant of {allocation.allocation_id} has moved on")
    note = _note(grown.reason, allocation.gpu_memory_mb, most)
    logger.error("%s ran out of GPU memory: %s", who, note)
    if hasattr(error, "add_note"):  # Python 3.11
        error.add_note(f"celery-allocator: {note}")


def _ask(task: Any, allocation_id: str, token: int, growth: float, most: int) -> Grown:
    while True:
        try:
            return session(task.app).ledger.grow(allocation_id, token, growth, most)
        except LedgerUnavailable as error:  # cut off: it may have been done, so wait until that can be known
            logger.warning("%s; asking again for %s in %s s", error, allocation_id, _ASK_S)
            time.sleep(_ASK_S)


def _note(reason: str, claim_mb: int, most: int) -> str:
    if reason == "spent":
        return (
            f"it had {claim_mb} MB, and was granted again with a larger claim as often as it may be "
            f"({most}, allocator_oom_retries)"
        )
    return f"it had {claim_mb} MB, and no known GPU, or its tenant's cap, allows more"
