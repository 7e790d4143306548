"""`Copies`: the routes of forks, snapshots and states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fastapi import FastAPI

from stepwell.addons.copies.routes import add_routes
from stepwell.addons.copies.snapshots import SCRIPT
from stepwell.addons.copies.stream_copies import StreamCopies
from stepwell.service_addon import ServiceAddon
from stepwell.store.keys import snapshots_key
from stepwell.store.transport.connection import Argument


class Copies(ServiceAddon):
    """Copies streams in one worker."""

    @staticmethod
    def store_commands(record: str) -> Iterator[Sequence[Argument]]:
        """Yield what writes, reads and deletes a snapshot."""
        key, ttl_ms = snapshots_key(record), 10_000
        yield "HSET", key, "name", b""
        yield "HEXISTS", key, "name"
        yield "HLEN", key
        yield "HDEL", key, "name"
        yield "EVAL", SCRIPT.text, 1, key, "name", b"snapshot", 1, ttl_ms
        yield "HGET", key, "name"
        yield "HGETALL", key
        yield "EVAL", SCRIPT.text, 1, key, "name", b"", 1, ttl_ms
        yield "DEL", key

    def add_routes(self, app: FastAPI) -> None:
        """Declare the routes."""
        add_routes(app, self.context)

    async def start(self) -> None:
        """Let streams be reset to their snapshots."""
        engine = self.context.engine
        engine.streams.state_of_snapshot = StreamCopies(engine).state_of_snapshot
