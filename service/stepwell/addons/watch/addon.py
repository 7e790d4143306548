"""`Watching`: publishes commits to the watchers of all workers, keeps event logs, and has the watchers' routes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.websockets import WebSocket

from stepwell.addons.api_schemas.sockets import document_socket
from stepwell.addons.between_workers.pubsub import StorePubSub
from stepwell.addons.watch import event_stream, socket
from stepwell.addons.watch.event_stream import EventRoute
from stepwell.addons.watch.hub import WatchHub
from stepwell.addons.watch.interests import InterestTable
from stepwell.addons.watch.metrics import watchers_gauge
from stepwell.addons.watch.refusals import RefusalLog
from stepwell.errors import ServiceError
from stepwell.service_addon import ServiceAddon
from stepwell.store.keys import event_log_key

if TYPE_CHECKING:
    from stepwell.requests.context import AppContext
    from stepwell.store.state_store import StateStore
    from stepwell.store.transport.connection import Argument

_log = logging.getLogger(__name__)


class Watching(ServiceAddon):
    """The watchers of one worker.

    Attributes:
        hub: Delivers events to them.
    """

    hub: WatchHub
    _refusals: RefusalLog

    def __init__(self, context: AppContext, version: str) -> None:
        super().__init__(context, version)
        self._watchers = watchers_gauge(context.metrics.registry)

    @staticmethod
    def store_commands(record: str) -> Iterator[Sequence[Argument]]:
        """Yield what reads an event log; the commit writes it."""
        yield "LRANGE", event_log_key(record), 0, -1

    def add_routes(self, app: FastAPI) -> None:
        """Declare the routes."""

        @app.websocket("/v1/watch")
        async def watch(websocket: WebSocket) -> None:
            await socket.serve(websocket, self.context, self.hub)

        document_socket(app, "watch", socket.DOCUMENTATION)
        path = "/v1/models/{model}/streams/{stream}/events"
        route = EventRoute(self.context, lambda: self.hub)
        app.add_api_route(path, route.events, methods=["GET"], **event_stream.DOCUMENTATION)

    def publisher(self, store: StateStore) -> InterestTable:
        """Return what decides which commits are published."""
        history = self.context.settings.kept_history
        interests = InterestTable(history)
        self.hub = WatchHub(interests, store, StorePubSub(store.transport))
        self._refusals = RefusalLog(store, history)
        return interests

    def observer(self) -> RefusalLog:
        """Return what notes refused timesteps."""
        return self._refusals

    def background(self) -> Iterator[Coroutine[Any, Any, None]]:
        """Write which timesteps were refused."""
        self.context.metrics.on_refresh(lambda: self._watchers.set(len(self.hub)))
        yield self._refusals.run()

    async def start(self) -> None:
        """Connect to the other workers."""
        for problem in self.context.settings.unknown_history(self.context.engine.models.names()):
            _log.warning("%s. Its events are kept once it is", problem)
        await self.hub.start()

    def begin_stop(self, grace_s: float) -> None:
        """End the responses to watchers, which would never end."""
        self.hub.end_all()

    async def close(self) -> None:
        """Write what is left, and disconnect."""
        with contextlib.suppress(ServiceError):  # the store does not reply
            await self._refusals.flush()
        self.hub.end_all()
        await self.hub.close()
