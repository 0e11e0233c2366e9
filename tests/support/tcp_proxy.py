"""A TCP proxy in front of a server, so that a test can cut, slow down or move the connection between two processes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any

#: Bytes read at once.
_CHUNK = 65536


class TcpProxy:
    """Forwards ``host:port`` to ``upstream`` in a thread of its own. Every method may be called from any thread.

    ``latency_s`` is added to each direction. While the proxy is :meth:`cut`, bytes are neither forwarded nor lost: what
    was sent meanwhile arrives when it is :meth:`healed <heal>`, as with TCP over a link that was down.
    """

    def __init__(self, upstream: tuple[str, int], *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.upstream = upstream
        self.latency_s = 0.0
        self._listener = socket.create_server((host, port), backlog=512)
        self.host, self.port = self._listener.getsockname()[:2]
        self._loop = asyncio.new_event_loop()
        self._open: asyncio.Event
        self._refusing = False
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._run, name=f"proxy-{self.port}", daemon=True)
        self._ready = threading.Event()
        self._thread.start()
        assert self._ready.wait(10), "the proxy's thread did not start"

    # --- what tests do

    def cut(self) -> None:
        """A blackhole: connections stay, and nothing passes any more; new ones are taken and get no answer."""
        self._call(self._open.clear)

    def refuse(self) -> None:
        """As with a server that is down: connections are closed, and new ones refused."""
        self._do(self._stop_listening())

    def heal(self) -> None:
        """Forward again, after :meth:`cut` or :meth:`refuse`."""
        self._do(self._listen())
        self._call(self._open.set)

    def drop(self) -> None:
        """Close every connection there is; new ones are served."""
        self._do(self._drop())

    def switch(self, upstream: tuple[str, int]) -> None:
        """Another server from now on, as after a failover: connections to the old one are closed."""
        self.upstream = upstream
        self.drop()

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._writers) // 2

    def close(self) -> None:
        """End it, with its connections."""
        if self._thread.is_alive():
            self._do(self._stop_listening())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
        self._listener.close()

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- the thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._open = asyncio.Event()
        self._open.set()
        self._loop.run_until_complete(self._listen())
        self._ready.set()
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._end())
            self._loop.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # What they have aborted is closed in the loop's next turn.
        for _ in range(2):
            await asyncio.sleep(0)

    def _call(self, change: Callable[[], None]) -> None:
        async def change_now() -> None:
            change()

        self._do(change_now())

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        if self._server is None:
            if self._listener.fileno() < 0:
                self._listener = socket.create_server((self.host, self.port), backlog=512)
            self._server = await asyncio.start_server(self._serve, sock=self._listener)

    async def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._drop()

    async def _drop(self) -> None:
        for writer in list(self._writers):
            # Not politely: what is still buffered on a dead link never arrives.
            writer.transport.abort()
        self._writers.clear()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        far_writer = None
        try:
            await self._open.wait()
            far_reader, far_writer = await asyncio.open_connection(*self.upstream)
            self._writers.add(far_writer)
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        except (OSError, asyncio.CancelledError):
            pass  # either side went away, or the proxy is ending
        finally:
            for each in (writer, far_writer):
                if each is not None:
                    self._writers.discard(each)
                    with contextlib.suppress(OSError, RuntimeError):
                        each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction. Bytes wait for their own latency, not for that of those before them."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)

        async def deliver() -> None:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                await self._open.wait()
                if not data:
                    with contextlib.suppress(OSError):
                        writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()

        delivering = asyncio.ensure_future(deliver())
        try:
            while True:
                data = await reader.read(_CHUNK)
                await queue.put((self._loop.time() + self.latency_s, data))
                if not data:
                    break
            await delivering
        finally:
            delivering.cancel()
