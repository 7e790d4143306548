"""Redis Streams as a road: an entry has one field with the message."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from redis import asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from campaign.roads.road import Sent
from tests.processes import free_port
from tests.servers import AOF, server

_WAIT_MS: Final = 500
_AT_ONCE: Final = 5000
_TEXTS: Final = {"stream", "time", "model", "version", "state_id", "reason", "code", "message"}


class RedisRoad:
    """Streams `in`, `out` and `dead`."""

    name = "redis"
    may_double = False
    needs_reader_first = False
    shares_work = False
    accepts_large = True

    def __init__(self, port: int) -> None:
        """Connect.

        Args:
            port: The server's port.
        """
        self._base = f"redis://127.0.0.1:{port}/0"
        # A pipeline that is sent again after a timeout would publish its messages twice
        self._client: Any = redis.Redis(port=port, socket_timeout=None, retry=Retry(NoBackoff(), 0))
        self._last: dict[str, bytes] = {"out": b"0", "dead": b"0"}

    def flags(self, *, alone: bool) -> list[str]:
        """Return the connector's words."""
        return [
            *(f"{self._base}?stream=in&group=g", "--stream", "stream"),
            *("--to", f"{self._base}?stream=out", "--dead-letter", f"{self._base}?stream=dead"),
        ]

    async def close(self) -> None:
        """Disconnect."""
        await self._client.aclose()

    def partition_of(self, _stream: str) -> int:
        """Return 0: there are no partitions."""
        return 0

    async def publish(self, messages: Sequence[Sent]) -> None:
        """Append entries."""
        for start in range(0, len(messages), _AT_ONCE):
            pipe = self._client.pipeline(transaction=False)
            for one in messages[start : start + _AT_ONCE]:
                pipe.xadd("in", {"data": one.body})
            await pipe.execute()

    async def read(self, place: str) -> list[bytes]:
        """Return the messages that are new in a place."""
        found = await self._client.xread({place: self._last[place]}, count=_AT_ONCE, block=_WAIT_MS)
        if not found:
            return []
        [(_, entries)] = found.items() if isinstance(found, dict) else found
        self._last[place] = entries[-1][0]
        return [_document(fields) for _, fields in entries]


def _document(fields: dict[bytes, bytes]) -> bytes:
    """Return the fields of an entry as one JSON object."""
    parts = [
        msgspec.json.encode(name.decode())
        + b":"
        + (msgspec.json.encode(value.decode()) if name.decode() in _TEXTS else value)
        for name, value in fields.items()
    ]
    return b"{" + b",".join(parts) + b"}"


@contextlib.asynccontextmanager
async def redis_road(folder: Path) -> AsyncIterator[RedisRoad]:
    """Run a server of the Redis protocol."""
    port = free_port()
    with server(folder / "broker", *AOF, "--port", str(port)):
        road = RedisRoad(port)
        try:
            yield road
        finally:
            await road.close()
