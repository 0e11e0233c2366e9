"""The tab's requests. Flower decides who may see: every handler derives from its own and asks for its user.

Nothing here blocks Flower's event loop: the ledger is read in threads of the board's, which hand back finished JSON.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from flower.api import BaseApiHandler
from flower.views import BaseHandler
from tornado import web

from celery_allocator.errors import AllocatorError, LedgerUnavailable
from celery_allocator.plugin.session import session
from celery_allocator.surfaces.flower.board import MOST_ROWS, Board, Query
from celery_allocator.surfaces.flower.loader import static_version
from celery_allocator.surfaces.flower.permission import permission

logger = logging.getLogger(__name__)

#: Under which name the board stands in Flower's application.
_BOARD = "allocator_board"


def board(application: Any) -> Board:
    """The board of this Flower, made on first use."""
    found = application.settings.get(_BOARD)
    if found is None:
        current = session(application.capp)
        found = application.settings[_BOARD] = Board(lambda: current.connect(current.settings))
    assert isinstance(found, Board)
    return found


class AllocatorPage(BaseHandler):
    """The tab itself: a frame that its script fills."""

    @web.authenticated
    def get(self) -> None:
        allowed = permission(self)
        self.render(
            "allocator.html",
            acts=allowed.given,
            why_not=allowed.why_not,
            asked=self.get_argument("text", "", escape=False),
            version=static_version(),
        )


class _Reading(BaseHandler):
    """One view of the board as JSON."""

    async def answer(self, view: str) -> None:
        here = board(self.application)
        views: dict[str, Callable[[], bytes]] = {
            "pool": here.pool,
            "waiting": lambda: here.waiting(self.query),
            "running": lambda: here.running(self.query),
            "on_hold": lambda: here.on_hold(self.query),
            "events": lambda: here.events(self.query.limit),
            "placements": here.placements,
            "recommendations": lambda: here.recommendations(self.query.limit),
        }
        if view not in views:
            raise web.HTTPError(404, f"no view {view!r}; there are {', '.join(views)}")
        # Arguments are read here: a request is not for other threads.
        _ = self.query
        await self.send(views[view])

    @functools.cached_property
    def query(self) -> Query:
        """The part of a list that is asked for. Raises 400 for what is none."""
        limit = self.get_argument("limit", 50, type=int)
        offset = self.get_argument("offset", 0, type=int)
        if not 1 <= limit <= MOST_ROWS or not 0 <= offset < 10**7:
            raise web.HTTPError(400, f"limit={limit}, offset={offset}: limit is 1 to {MOST_ROWS}, offset 0 or more")
        texts = (self.get_argument(name, "", escape=False) for name in ("text", "tenant"))
        return Query(limit, offset, *texts)

    async def send(self, make: Callable[[], bytes]) -> None:
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.set_header("Cache-Control", "no-store")
        try:
            body = await self.application.io_loop.run_in_executor(board(self.application).threads, make)
        except LedgerUnavailable as error:
            self.set_status(503)
            self.finish({"error": error.as_dict()})
        except AllocatorError as error:
            logger.warning("allocator: %s", error)
            self.set_status(500)
            self.finish({"error": error.as_dict()})
        else:
            self.finish(body)


class PageData(_Reading):
    """What the page asks for; seen by whoever may see the page, as Flower's own tables are."""

    @web.authenticated
    async def get(self, view: str) -> None:
        await self.answer(view)


class ApiData(BaseApiHandler, _Reading):
    """The same for programs, by the rules of Flower's API."""

    @web.authenticated
    async def get(self, view: str) -> None:
        await self.answer(view)
