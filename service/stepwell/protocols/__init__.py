"""The protocols of connections: uvicorn's, with limits on what a client can hold.

An add-on may have faster ones, `ServiceAddon.protocols`.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple


class Protocols(NamedTuple):
    """The classes of HTTP and WebSocket connections, in the place of uvicorn's."""

    http: type[asyncio.Protocol]
    websocket: type[asyncio.Protocol]
