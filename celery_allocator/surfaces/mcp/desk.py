"""Where callers are served: what may be done is decided here, then the functions of the catalogue do it.

Every call is answered with a reply; nothing is raised that a caller could bring about.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from celery_allocator.allocating import Session, reply
from celery_allocator.allocating.auto import AUTO, CAN_BE_AUTO
from celery_allocator.allocating.catalogue import TOOLS, Tool
from celery_allocator.allocating.function import release_resources
from celery_allocator.allocating.request import name as checked_name
from celery_allocator.allocating.request import parse
from celery_allocator.allocating.session import CallerLeft
from celery_allocator.errors import (
    AllocationNotFound,
    AllocatorError,
    LedgerUnavailable,
    PermissionDenied,
    RequestError,
)
from celery_allocator.model import TENANT
from celery_allocator.surfaces.mcp.caller import Caller

_log = logging.getLogger(__name__)

#: Seconds that one call waits for room at most: a request must end. What waits longer asks again with ``status``.
LONGEST_WAIT_S = 60.0


class Desk:
    """Serves callers on one pool. ``connect`` makes the session; again, when its ledger could not be reached."""

    def __init__(self, connect: Callable[[], Session]) -> None:
        self._connect = connect
        self._session: Session | None = None
        self._lock = threading.Lock()
        self._serving = 0
        self._idle = threading.Condition()

    @property
    def session(self) -> Session:
        """The session that all calls share. Reads go through it; changes through one in the caller's name."""
        with self._lock:
            if self._session is None:
                self._session = self._connect()
            return self._session

    def tools(self, caller: Caller) -> list[Tool]:
        """What the caller may use."""
        return [tool for tool in TOOLS.values() if caller.may(tool)]

    def serve(
        self, caller: Caller, name: str, arguments: Mapping[str, Any], left: threading.Event | None = None
    ) -> dict[str, Any]:
        """Answer one call. ``left`` is set when the caller has gone: then what it asked for is given back."""
        with self._idle:
            self._serving += 1
        try:
            return self._answer(caller, name, arguments, left or threading.Event())
        finally:
            with self._idle:
                self._serving -= 1
                self._idle.notify_all()

    def drain(self, seconds: float) -> bool:
        """Wait until no call is served, at most so long; returns whether none is."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._serving, seconds)

    def _answer(self, caller: Caller, name: str, arguments: Mapping[str, Any], left: threading.Event) -> dict[str, Any]:
        try:
            answer = self._serve(caller, name, arguments, left)
        except AllocatorError as error:
            answer = reply.refusal(
                error, 0.0, allocation_id=arguments.get("allocation_id"), task_id=arguments.get("task_id")
            )
        code = None if answer["success"] else answer["error"]["code"]
        if code == LedgerUnavailable.code:
            with self._lock:
                self._session = None  # an embedded server may come back elsewhere
        _log.info("%s: %s: %s", caller.owner, name if name in TOOLS else "unknown tool", code or "done")
        return answer

    def _serve(self, caller: Caller, name: str, arguments: Mapping[str, Any], left: threading.Event) -> dict[str, Any]:
        tool = TOOLS.get(name)
        if tool is None:
            raise RequestError(f"unknown tool {name!r}; there are {', '.join(t.name for t in self.tools(caller))}")
        if not caller.may(tool):
            raise PermissionDenied(f"the tool {name} needs {tool.permission!r}, which {caller.name} does not have")
        params = tool.checked(arguments)
        if tool.changes:
            session = self.session.for_caller(caller.actor(), caller.as_owner())
            session.left = left
            return self._change(caller, tool, params, session)
        return self._read(caller, tool, params)

    # --- reading

    def _read(self, caller: Caller, tool: Tool, params: dict[str, Any]) -> dict[str, Any]:
        session = self.session.for_reader(caller.as_owner())
        if params.get("allocation_id") is not None:
            self._known(caller, session, params["allocation_id"])
        answer = tool.function(**params, session=session)
        if not caller.sees_all:
            for row in answer.get("waiting", ()):
                self._mask(caller, row)
        return answer

    @staticmethod
    def _mask(caller: Caller, row: dict[str, Any]) -> None:
        """Hide whose work it is, if it is another tenant's; place and size stay: they say what one waits for."""
        tenant = row["requirements"].get(TENANT, "")
        if not caller.shares(tenant):
            row |= {"allocation_id": None, "task_id": None, "task_type": None}
            row["requirements"].pop(TENANT, None)

    def _known(self, caller: Caller, session: Session, allocation_id: Any) -> bool:
        """Whether an allocation is the caller's own. Raises :class:`AllocationNotFound` where he may not know of it."""
        wanted = checked_name("allocation_id", allocation_id)
        found = session.ledger.get(wanted)
        owned = session.ledger.owns(caller.owner, wanted)
        if not owned and not caller.sees(found):
            raise AllocationNotFound(f"no live allocation {wanted!r}: it has ended or never was")
        return owned or caller.any or caller.shares(found.requirements.tenant)

    # --- changing

    def _change(self, caller: Caller, tool: Tool, params: dict[str, Any], session: Session) -> dict[str, Any]:
        if tool.ends:
            session.upkeep()
            if not self._known(caller, session, params["allocation_id"]):
                raise PermissionDenied(f"{params['allocation_id']} is not {caller.name}'s: it was allocated by another")
            return tool.function(**params, session=session)
        params = self._within_caps(caller, params, session)
        try:
            answer = tool.function(**params, session=session)
        except CallerLeft:
            raise RequestError("the caller has gone") from None
        if session.left.is_set() and answer["success"]:
            release_resources(answer["allocation_id"], session=session)
        return answer

    @staticmethod
    def _within_caps(caller: Caller, params: dict[str, Any], session: Session) -> dict[str, Any]:
        """What to ask for in the caller's stead: his tenant, and nothing beyond his caps."""
        given = params.get("resource_requirements")
        if caller.tenant is not None and (given is None or isinstance(given, Mapping)):
            asked = dict(given or {})
            if asked.get(TENANT) not in (None, "", caller.tenant):
                whose = f"only {caller.tenant!r}" if caller.tenant else "none"
                raise PermissionDenied(f"tenant={asked[TENANT]!r} is not {caller.name}'s to name: {whose}")
            params["resource_requirements"] = {**asked, TENANT: caller.tenant}
        params["ttl_s"] = caller.caps.ttl(params.get("ttl_s"), session.settings.ttl_s)
        request = parse(
            session.settings,
            params["task_id"],
            params["task_type"],
            params.get("resource_requirements"),
            params.get("allocation_strategy", "best_fit"),
            params.get("wait_s", 0),
            params["ttl_s"],
            session.resolve,
        )
        caller.caps.check(request)
        # What was found out is what was checked: it may be more by the time it is allocated.
        said = params.get("resource_requirements") or {}
        numbers = {name: getattr(request.requirements, name) for name in CAN_BE_AUTO if said.get(name) == AUTO}
        if numbers:
            params["resource_requirements"] = {**said, **numbers}
        params["wait_s"] = min(request.wait_s, LONGEST_WAIT_S)
        return params
