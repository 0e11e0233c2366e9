"""Actions from the tab: journalled in the name of the user whom Flower has let in.

A request from another site must not act with the user's cookies or password. Flower refuses cross-site requests by
their ``Origin`` and ``Sec-Fetch-Site``; on top of that a request has to be JSON, which another site cannot send without
asking first, and one from the page has to repeat the token of the page's cookie (double submit).
"""

from __future__ import annotations

import json
import time
from typing import Any

from flower.api import BaseApiHandler
from flower.views import BaseHandler
from tornado import web

from celery_allocator.errors import (
    ActionRefused,
    AllocationNotFound,
    AllocatorError,
    LedgerUnavailable,
    UnknownTargetError,
)
from celery_allocator.operations import Actor, Operator, command
from celery_allocator.plugin.install import is_installed
from celery_allocator.plugin.outcome import take_effect
from celery_allocator.surfaces.flower.handlers import board
from celery_allocator.surfaces.flower.permission import ACTIONS, permission

#: Seconds after which an action that has not begun is not taken any more.
_PATIENCE_S = 10.0
#: Bytes of a request's body at most.
_LONGEST = 10_000


class _Acting(BaseHandler):
    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Refusals, too, are JSON."""
        error = (kwargs.get("exc_info") or (None, None))[1]
        text = error.get_message() if isinstance(error, web.HTTPError) else f"Flower failed ({status_code})"
        if status_code == 401:
            self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        self.finish({"success": False, "error": {"code": "refused", "message": text}})

    async def act(self) -> None:
        """Take one action: ``{"action": "cordon", "args": {"target": "n1/gpu_0"}, "reason": "…"}``."""
        allowed = permission(self)
        if not allowed.given:
            raise web.HTTPError(403, allowed.why_not)
        told = self._told()
        action, args, reason = told.get("action"), told.get("args"), told.get("reason", "")
        if action not in ACTIONS:
            raise web.HTTPError(400, f"action={action!r}: it must be one of {', '.join(ACTIONS)}")
        if not isinstance(args, dict) or not isinstance(reason, str):
            raise web.HTTPError(400, "args must be an object, and reason a text")
        user = allowed.user

        asked_at = time.monotonic()

        def work() -> dict[str, Any]:
            # Nobody waits for it any more, and it may be out of place by now.
            if time.monotonic() - asked_at > _PATIENCE_S:
                raise LedgerUnavailable("the ledger did not answer in time: nothing was done")
            app, here = self.application.capp, board(self.application)
            settle = (lambda effect: take_effect(app, effect)) if is_installed(app) else None
            effect = Operator(here.ledger, Actor(user, "flower", reason), settle).run(command(action, args))
            here.forget()
            return {"success": True, "entry": effect.entry, "text": effect.text, "held": list(effect.held)}

        try:
            done = await self.application.io_loop.run_in_executor(board(self.application).desk, work)
        except AllocatorError as error:
            self.set_status(_status(error))
            done = {"success": False, "error": error.as_dict()}
        self.finish(done)

    def _told(self) -> dict[str, Any]:
        kind = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise web.HTTPError(415, "an action is JSON: Content-Type must be application/json")
        if len(self.request.body) > _LONGEST:
            raise web.HTTPError(413, f"an action has at most {_LONGEST} bytes")
        try:
            told = json.loads(self.request.body)
        except (ValueError, RecursionError) as error:
            raise web.HTTPError(400, f"this is not JSON: {error}") from error
        if not isinstance(told, dict):
            raise web.HTTPError(400, 'an action is an object: {"action": …, "args": {…}, "reason": …}')
        return told


class PageAction(_Acting):
    """From the page."""

    def check_xsrf_cookie(self) -> None:
        """Flower's checks, and the page's token in any case: Flower leaves it out where there are no sessions."""
        super().check_xsrf_cookie()
        web.RequestHandler.check_xsrf_cookie(self)

    @web.authenticated
    async def post(self) -> None:
        await self.act()


class ApiAction(_Acting, BaseApiHandler):
    """From programs, which send their credentials themselves."""

    @web.authenticated
    async def post(self) -> None:
        await self.act()


def _status(error: AllocatorError) -> int:
    if isinstance(error, LedgerUnavailable):
        return 503
    if isinstance(error, (AllocationNotFound, UnknownTargetError)):
        return 404
    return 409 if isinstance(error, ActionRefused) else 400
