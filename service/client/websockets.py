"""Opens the WebSockets of feeds and watches, over TCP or a unix socket."""

from __future__ import annotations

from typing import Any

from websockets.asyncio import client as asyncio_client
from websockets.sync import client as sync_client

from service.client.http_transport import FeedAddress


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
