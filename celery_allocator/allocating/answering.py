"""How every function answers: with a dict, in success and in refusal, and with the milliseconds that it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from celery_allocator.allocating import reply
from celery_allocator.allocating.session import Session, default_session, forget_default
from celery_allocator.errors import AllocatorError, LedgerUnavailable

#: Makes the answer, once it is known how many milliseconds it took.
Answer = Callable[[float], dict[str, Any]]


def answer(
    work: Callable[[Session], Answer], session: Session | None, *, allocation_id: Any = None, task_id: Any = None
) -> dict[str, Any]:
    """Run ``work`` and say how it went and how many milliseconds it took, waiting included."""
    began = time.perf_counter()
    active = session
    try:
        active = active if active is not None else default_session()
        made = work(active)
    except AllocatorError as error:
        if isinstance(error, LedgerUnavailable) and active is not None:
            forget_default(active)
        return reply.refusal(error, _ms_since(began), allocation_id=allocation_id, task_id=task_id)
    return made(_ms_since(began))


def _ms_since(began: float) -> float:
    return (time.perf_counter() - began) * 1000
