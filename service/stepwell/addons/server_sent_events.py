"""Server-sent events: their headers and bytes, and a response that ends when the client disconnects."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Send

from stepwell_client.wire.formats import EVENT_STREAM

COMMENT: Final = b":\n\n"
"""A line that clients ignore, so that proxies see a connection that is in use."""

_HEADERS: Final = [
    (b"content-type", f"{EVENT_STREAM}; charset=utf-8".encode()),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would buffer the events
    (b"x-content-type-options", b"nosniff"),
]


def encode_event(data: bytes, *, event_type: bytes = b"", event_id: int | None = None) -> bytes:
    """Return one encoded event; our JSON has no line breaks."""
    head = b"event: " + event_type + b"\n" if event_type else b""
    return head + (b"" if event_id is None else b"id: %d\n" % event_id) + b"data: " + data + b"\n\n"


class EventStreamResponse(Response, ABC):
    """A response of server-sent events: a subclass has their bytes."""

    def __init__(self) -> None:
        self.status_code = 200
        self.raw_headers = _HEADERS
        self.body = b""
        self.background = None

    @abstractmethod
    def texts(self) -> AsyncIterator[bytes]:
        """Return the bytes to send, one or more events each."""

    async def send_until_disconnect(self, receive: Receive, send: Send) -> None:
        """Send the events until there are no more, or the client disconnects."""
        await run_until_disconnect(self._send(send), receive)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for text in self.texts():
            await send({"type": "http.response.body", "body": text, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def run_until_disconnect(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Await work, which is cancelled if the client disconnects before it is done."""
    tasks = [asyncio.create_task(work), asyncio.create_task(_wait_for_disconnect(receive))]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
