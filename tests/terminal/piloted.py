"""The screen of ``top`` under Textual's own pilot: keys in, the text of the screen out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from textual.pilot import Pilot

from celery_allocator.allocating import Session
from celery_allocator.operations import Actor
from celery_allocator.settings import Settings
from celery_allocator.surfaces.terminal.app import Top

TIMEOUT_S = 30


class Piloted:
    """A running screen."""

    def __init__(self, app: Top, pilot: Pilot[None]) -> None:
        self.app, self.pilot = app, pilot

    @property
    def lines(self) -> list[str]:
        """What a person sees, windows over it included."""
        return [
            "".join(segment.text for segment in strip)
            for screen in reversed(self.app.screen_stack)
            for strip in screen._compositor.render_strips()
        ]

    @property
    def text(self) -> str:
        """The same as one text."""
        return "\n".join(line.rstrip() for line in self.lines)

    def line(self, text: str) -> str:
        """The one line that has this."""
        (found,) = [line for line in self.lines if text in line]
        return found

    async def press(self, *keys: str) -> None:
        """Press keys."""
        await self.pilot.press(*keys)

    async def type(self, text: str) -> None:
        """Type a text."""
        await self.pilot.press(*("space" if c == " " else c for c in text))

    async def wait_for(self, *texts: str) -> None:
        """Wait until all of these stand on the screen."""
        await self.until(lambda: all(text in self.text for text in texts), lambda: f"{texts} on\n{self.text}")

    async def until(self, true: Callable[[], Any], message: Callable[[], str]) -> None:
        """Wait until something is true."""
        deadline = asyncio.get_running_loop().time() + TIMEOUT_S
        while not true():
            assert asyncio.get_running_loop().time() < deadline, f"not within {TIMEOUT_S} s: {message()}"
            await self.pilot.pause(0.02)

    def told(self) -> list[str]:
        """What it has told in messages."""
        return [notification.message for notification in self.app._notifications]


@asynccontextmanager
async def piloted(reach: dict[str, str], *, size: tuple[int, int] = (80, 24), **options: Any) -> AsyncIterator[Piloted]:
    """``top`` on a screen of so many columns and lines."""
    settings = Settings(backend_url=reach["ALLOCATOR_BACKEND_URL"], pool=reach["ALLOCATOR_POOL"])
    session = options.pop("session", None) or Session(settings)
    options.setdefault("interval", 0.2)
    app = Top(session, options.pop("actor", Actor("ada@desk", "cli")), **options)
    try:
        async with app.run_test(size=size, notifications=True) as pilot:
            yield Piloted(app, pilot)
    finally:
        app._watcher._thread.join(10)
        session.ledger.client.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test that awaits."""
    asyncio.run(test())  # type: ignore[arg-type]
