"""`Proxy`: a TCP proxy on loopback that injects faults: delays, held data, refused and reset connections, lost replies.

It runs in its own thread, so that tests with and without an event loop, and other processes, can use it.

    with Proxy(server.socket) as proxy:      # or ("127.0.0.1", 6379)
        store = StateStore(proxy.url)
        proxy.delay = 0.2                    # seconds, in each direction
        proxy.blackhole = True               # hold all data; on False the held data is delivered
        proxy.lose_reply(to=b"EVALSHA")      # the server runs the command, and the reply is lost
        proxy.refuse = True                  # reset new connections
        proxy.reset_all()                    # RST to all connections
        proxy.silence_all()                  # deliver nothing more on the open connections, ever; new ones are served
        proxy.heal()                         # end all faults
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

_POLL_S = 0.002  # interval at which a held direction checks whether it is released
_PIECE = 65536

Target = Path | str | tuple[str, int]
"""Where a proxy connects to: a unix socket, or host and port."""


class Proxy:
    """A proxy between clients and one server; every fault is an attribute or a method, usable from any thread.

    Attributes:
        delay: Delay of all data in seconds, in each direction; delays of consecutive data overlap.
        hold_requests: Whether data from clients is held back, to be delivered later.
        hold_replies: Whether data from the server is held back, to be delivered later.
        refuse: Whether new connections are reset at once.
        held: Pieces of data that are currently held back.
        lost: Number of lost replies.
        generation: Of new connections; nothing is delivered on those of an earlier one.
    """

    def __init__(self, target: Target | list[Target], *, port: int = 0) -> None:
        """Create the proxy; entering the context opens the port.

        Args:
            target: A unix socket, or host and port; of a list, each connection has a random one.
            port: The port to listen on; 0 for a free port.
        """
        self.delay = 0.0
        self.hold_requests = False
        self.hold_replies = False
        self.refuse = False
        self.held = 0
        self.lost = 0
        self.port = port
        self._targets = target if isinstance(target, list) else [target]
        self._pattern = b""
        self.generation = 0
        self._to_lose = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    @property
    def url(self) -> str:
        """The URL of a store behind this proxy."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def connections(self) -> int:
        """Number of open client connections."""
        return len(self._writers) // 2

    @property
    def blackhole(self) -> bool:
        """Whether data is held back in both directions."""
        return self.hold_requests and self.hold_replies

    @blackhole.setter
    def blackhole(self, on: bool) -> None:
        self.hold_requests = self.hold_replies = on

    def lose_reply(self, *, to: bytes = b"", times: int = 1) -> None:
        """Reset a connection when the server replies: the command has run, and the client does not get the reply.

        Args:
            to: Bytes that the request must contain; empty for any request.
            times: Number of replies to lose.
        """
        self._pattern, self._to_lose = to, times

    def reset_all(self) -> None:
        """Reset all connections; returns once they are reset."""

        def reset() -> None:
            for writer in list(self._writers):
                _reset(writer)

        self._call(reset)

    def silence_all(self) -> None:
        """Deliver nothing more on the connections that are open now, and do not close them, as a cut network does."""
        self.generation += 1

    def heal(self) -> None:
        """End all faults."""
        self.delay, self.refuse, self.blackhole, self._to_lose = 0.0, False, False, 0

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", self.port), self._loop
        ).result(10)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    # ---------------------------------------------------------------- in the proxy's thread

    async def _end(self) -> None:
        self._server.close()
        for writer in list(self._writers):
            _reset(writer)
        current = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _call(self, act: Callable[[], object]) -> None:
        done = threading.Event()

        def run() -> None:
            act()
            done.set()

        self._loop.call_soon_threadsafe(run)
        done.wait(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuse:
            _reset(writer)
            return
        try:
            target = random.choice(self._targets)
            if isinstance(target, tuple):
                from_server, to_server = await asyncio.open_connection(*target)
            else:
                from_server, to_server = await asyncio.open_unix_connection(str(target))
        except OSError:
            _reset(writer)
            return
        link = _Link(self, writer, to_server)
        ends = [asyncio.create_task(link.requests(reader)), asyncio.create_task(link.replies(from_server))]
        self._writers |= {writer, to_server}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # the proxy closes; asyncio's own callback would log it
            return
        finally:
            self._writers -= {writer, to_server}
            for end in ends:
                end.cancel()
            writer.close()
            to_server.close()

    def loses_reply_to(self, request: bytes) -> bool:
        """Return whether the reply to a request is to be lost, and count it."""
        if not self._to_lose or self._pattern not in request:
            return False
        self._to_lose -= 1
        return True


class _Link:
    """One client connection and its connection to the server."""

    def __init__(self, proxy: Proxy, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._loses_next = False
        self._generation = proxy.generation

    @property
    def _is_silent(self) -> bool:
        return self._generation != self._proxy.generation

    async def requests(self, reader: asyncio.StreamReader) -> None:
        await self._pump(reader, self._server, lambda: self._is_silent or self._proxy.hold_requests, self._note)

    async def replies(self, reader: asyncio.StreamReader) -> None:
        await self._pump(reader, self._client, lambda: self._is_silent or self._proxy.hold_replies, self._lose)

    def _note(self, data: bytes) -> bool:
        self._loses_next = self._loses_next or self._proxy.loses_reply_to(data)
        return True

    def _lose(self, _data: bytes) -> bool:
        """Reset both connections if the reply is to be lost; returns whether to deliver it."""
        if not self._loses_next:
            return True
        self._proxy.lost += 1
        _reset(self._client)
        _reset(self._server)
        return False

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        held: Callable[[], bool],
        passes: Callable[[bytes], bool],
    ) -> None:
        loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(1000)

        async def read() -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(_PIECE):
                    await waiting.put((loop.time() + self._proxy.delay, data))
            await waiting.put((0.0, b""))

        reading = asyncio.create_task(read())
        try:
            while True:
                due, data = await waiting.get()
                await asyncio.sleep(max(due - loop.time(), 0))
                if held():
                    self._proxy.held += 1
                    while held():  # noqa: ASYNC110 - plain attributes, which any thread can set
                        await asyncio.sleep(_POLL_S)
                    self._proxy.held -= 1
                if not data or not passes(data):
                    return
                writer.write(data)
                await writer.drain()
        except OSError:  # the other side disconnected
            return
        finally:
            reading.cancel()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with RST, as a crash does."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
