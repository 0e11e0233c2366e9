"""Allocate, look up, renew and release by hand.

Every function answers with a dict (see ``reply``) and raises no :class:`~celery_allocator.errors.AllocatorError`: what
cannot be done, malformed arguments included, is ``success: False`` with ``error: {code, message, …}``. The keyword
argument ``session`` is for embedding and tests; without it, the environment's settings decide.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from celery_allocator.allocating import reply
from celery_allocator.allocating.acquire import WAITS, acquire, available
from celery_allocator.allocating.answering import Answer, answer
from celery_allocator.allocating.request import name, parse, time_to_live
from celery_allocator.allocating.request import token as checked_token
from celery_allocator.allocating.session import Session
from celery_allocator.errors import AllocationNotFound, StaleTokenError
from celery_allocator.model import Allocation, Kind, State
from celery_allocator.operations import Release


def allocate_resources(
    task_id: str,
    task_type: str,
    resource_requirements: Mapping[str, int] | None = None,
    allocation_strategy: str = "best_fit",
    *,
    wait_s: float = 0,
    ttl_s: float | None = None,
    session: Session | None = None,
) -> dict[str, Any]:
    """Allocate GPU memory, CPU cores and RAM for work outside Celery.

    ``resource_requirements`` are laid over the defaults of ``task_type``. Waits up to ``wait_s`` seconds for room; what
    waits still is a success with its ``queue_position``, and stays in line: ask for it with :func:`allocation`. The
    allocation ends after ``ttl_s`` seconds (default: the setting ``allocator_ttl_s``) unless renewed.
    """

    def work(active: Session) -> Answer:
        request = parse(
            *(active.settings, task_id, task_type, resource_requirements, allocation_strategy, wait_s, ttl_s),
            resolve=active.resolve,
        )
        acquired = acquire(active, request)
        return lambda _: reply.success(acquired.allocation, acquired.took_ms, acquired.available)

    return answer(work, session, task_id=task_id)


def allocation(allocation_id: str, *, session: Session | None = None) -> dict[str, Any]:
    """A live allocation, waiting or granted, in the form of :func:`allocate_resources`."""

    def work(active: Session) -> Answer:
        wanted = name("allocation_id", allocation_id)
        active.upkeep()
        found = active.ledger.get(wanted)
        if found.kind is Kind.MANUAL and found.state is State.WAITING and found.expires_at is not None:
            # This host may have been let go with the last allocation on it; the one that asks may be granted there.
            active.offer_host(max(found.expires_at - time.time(), active.settings.lease_s))
            found = active.ledger.get(wanted)
        left = available(active, found)
        return lambda took_ms: reply.success(found, took_ms, left)

    return answer(work, session, allocation_id=allocation_id)


def renew_resources(
    allocation_id: str, ttl_s: float | None = None, token: int | None = None, *, session: Session | None = None
) -> dict[str, Any]:
    """Let an allocation made by hand, waiting or granted, live ``ttl_s`` seconds from now.

    With ``token`` (from the grant), only if the claim is still that one.
    """

    def work(active: Session) -> Answer:
        wanted, fence = name("allocation_id", allocation_id), checked_token(token)
        life_s = active.settings.ttl_s if ttl_s is None else time_to_live(ttl_s)
        found = active.ledger.renew(wanted, life_s, fence)
        if found.node in (None, active.inventory.node):
            active.offer_host(life_s)
        left = available(active, found)
        return lambda took_ms: reply.success(found, took_ms, left)

    return answer(work, session, allocation_id=allocation_id)


def release_resources(
    allocation_id: str, token: int | None = None, *, session: Session | None = None
) -> dict[str, Any]:
    """Give back what an allocation made by hand holds, or take it out of line.

    A second call answers ``not_found`` and changes nothing; so does one for a Celery task's allocation, which is its
    worker's to release. With ``token`` (from the grant), only if the claim is still that one.
    """

    def work(active: Session) -> Answer:
        wanted, fence = name("allocation_id", allocation_id), checked_token(token)
        found = release(active, wanted, fence, "success")
        return lambda took_ms: reply.success(found, took_ms, None)

    return answer(work, session, allocation_id=allocation_id)


def release(session: Session, allocation_id: str, token: int | None, outcome: str) -> Allocation:
    """Release or cancel an allocation made by hand; returns it as it was, in the state ``released``.

    ``outcome`` ``"success"`` counts its time towards estimates. Raises :class:`AllocationNotFound` and
    :class:`StaleTokenError`.
    """
    ledger = session.ledger
    session.upkeep()
    found = ledger.get(allocation_id)
    if found.kind is not Kind.MANUAL:
        raise AllocationNotFound(f"{allocation_id} belongs to task {found.task_id}: its worker releases it")
    if token is not None and found.token != token:
        raise StaleTokenError(f"{allocation_id}: token {token} is not the live one ({found.token})")
    note = session.note(Release(allocation_id, found.token or None, outcome))
    if found.state in WAITS:
        done = ledger.cancel(allocation_id, publishes=False, note=note).done
    else:
        done = ledger.release(allocation_id, found.token, outcome, publishes=False, note=note).done
    if not done:
        raise AllocationNotFound(f"{allocation_id} ended a moment ago")
    return ended(found)


def ended(found: Allocation) -> Allocation:
    """The allocation with nothing held or expected any more."""
    return replace(found, state=State.RELEASED, queue_position=0, estimated_start_at=None, expires_at=None)
