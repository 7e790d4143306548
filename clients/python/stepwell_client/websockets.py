"""Opens the WebSockets of feeds and watches, over TCP or a unix socket, and reads why a handshake was rejected."""

from __future__ import annotations

from typing import Any

from websockets.asyncio import client as asyncio_client
from websockets.exceptions import InvalidStatus
from websockets.sync import client as sync_client

from stepwell_client.http_transport import FeedAddress
from stepwell_client.protocol.decoding import RawReply, seconds
from stepwell_client.wire.formats import format_of_body


def open_socket(address: FeedAddress, **options: Any) -> sync_client.ClientConnection:
    """Return an open WebSocket for a thread; options as of `websockets.sync.client.connect`."""
    opened: sync_client.ClientConnection
    if address.socket is not None:
        opened = sync_client.unix_connect(address.socket, address.url, **options)
    else:
        opened = sync_client.connect(address.url, **options)
    return opened


def open_async_socket(address: FeedAddress, **options: Any) -> asyncio_client.connect:
    """Return what opens a WebSocket by `await` or `async with`; options as of `websockets.asyncio.client.connect`."""
    if address.socket is not None:
        return asyncio_client.unix_connect(address.socket, address.url, **options)
    return asyncio_client.connect(address.url, **options)


def rejected_handshake(error: InvalidStatus) -> RawReply:
    """Return the response to a handshake that was rejected: a problem document."""
    response = error.response
    content_type = format_of_body(response.headers.get("content-type"))
    retry_after = seconds(response.headers.get("retry-after"))
    return RawReply(response.status_code, bytes(response.body or b""), content_type, retry_after)
