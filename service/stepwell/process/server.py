"""One serving process: uvicorn with our protocols, and a drain that finishes accepted requests before it ends."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import logging
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from stepwell.garbage_collection import collector_paused, freeze_startup_objects
from stepwell_export.runtime.errors import StepwellError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from stepwell.engine.engine import Engine
    from stepwell.models.registry import ModelRegistry
    from stepwell.service_addon import ServiceAddon
    from stepwell.settings import Settings, SharedFolders

_log = logging.getLogger(__name__)

READINESS_GRACE_S = 1.0
"""Seconds that the port stays open during a drain, so that a load balancer can observe that readiness is false."""

_HANDSHAKE_S = 0.2  # a round trip to the client, for handshakes that have begun when new ones are stopped
_PARENT_STOPS_WITHIN_S = 1.0
_PARENT_WATCH_S = 0.5
_SO_ATTACH_FILTER = _SO_GET_FILTER = 26  # Linux; Python's socket module does not have them
# A classic BPF program that drops the first packet of a connection (SYN without ACK) and accepts every other.
_DROP_SYN = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the byte of TCP's flags
        (0x54, 0, 0, 0x12),  # and of them, SYN and ACK
        (0x15, 0, 1, 0x02),  # where that is SYN alone, go on, else skip one
        (0x06, 0, 0, 0),  # drop the packet
        (0x06, 0, 0, 0xFFFFFFFF),  # take all of it
    )
)


class StartError(StepwellError):
    """The service does not start: the configuration is unsafe, or something that it needs is missing."""

    code = "cannot_start"


class Server(uvicorn.Server):
    """uvicorn's server with a drain before its shutdown.

    On SIGTERM or SIGINT readiness goes false. For a second all requests are served as before, but each response asks
    its client to close the connection. Then the port is closed after the connections that wait on it were accepted, so
    that none is reset (ADR 0009). Accepted requests get their responses within `drain_s`, and WebSockets are closed. A
    second Ctrl-C ends the process at once. A second SIGTERM does not, because `timeout` and some init processes send it
    both to the process and to its group.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        drain_s: float,
        parent: int | None = None,
        on_start: Callable[[Engine], None] | None = None,
    ) -> None:
        """Create a server.

        Args:
            config: uvicorn's configuration.
            drain_s: Maximum seconds for accepted requests to finish.
            parent: Id of the parent process; the server drains if that process ends. None: there is none.
            on_start: Called once requests are served.
        """
        super().__init__(config)
        self._drain_s = drain_s
        self._parent = parent
        self._on_start = on_start
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain_task: asyncio.Task[None] | None = None
        self._orphan_watch: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start serving; `on_start` is called if that succeeds."""
        self._loop = asyncio.get_running_loop()
        if self._parent is not None:
            self._orphan_watch = asyncio.create_task(self._stop_with_parent(self._parent))
        await super().startup(sockets)
        freeze_startup_objects()
        is_ending = self.should_exit or self._drain_task is not None  # a signal came while it started
        if self.started and not is_ending and self._on_start is not None and (engine := self._engine()) is not None:
            self._on_start(engine)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start the drain. uvicorn would raise the signal again after its shutdown; this server exits with code 0."""
        if sig == signal.SIGINT and self._parent is not None:
            return  # Ctrl-C reaches every process of a terminal; the parent sends SIGTERM to this one
        if self._loop is None:
            self.should_exit = True
        elif self._drain_task is None:
            self._loop.call_soon_threadsafe(self._start_drain)
        elif sig == signal.SIGINT:
            self.should_exit = self.force_exit = True

    def _start_drain(self) -> None:
        if self._drain_task is None:
            self._drain_task = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        if self._engine() is not None:
            _log.info("Draining: no longer ready; what is accepted finishes within %g s", self._drain_s)
            self.config.loaded_app.state.context.draining = True
            await asyncio.sleep(min(READINESS_GRACE_S, self._drain_s))
            for addon in self.config.loaded_app.state.addons:
                addon.begin_stop(self._drain_s)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept the pending connections, close the port, answer what was accepted, and end."""
        if not self.force_exit:
            for sock in sockets or []:
                await self._accept_pending(sock)
        await super().shutdown(sockets)

    async def _accept_pending(self, sock: socket.socket) -> None:
        """Stop new connections, and accept those that are pending; at most for `drain_s`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._drain_s
        await self._stop_new_connections(sock)
        await asyncio.sleep(min(_HANDSHAKE_S, self._drain_s))
        while _has_pending(sock) and loop.time() <= until:  # noqa: ASYNC110 - uvloop accepts one per turn
            await asyncio.sleep(0)
        for _ in range(2):  # the loop reads what the last one has sent
            await asyncio.sleep(0)

    async def _stop_new_connections(self, sock: socket.socket) -> None:
        """Stop new connections; where several workers share the socket, wait until their parent does."""
        if self._parent is None or os.getppid() != self._parent:
            stop_new_connections(sock)
            return
        loop = asyncio.get_running_loop()
        until = loop.time() + min(_PARENT_STOPS_WITHIN_S, self._drain_s)  # else this worker ends alone
        while not _is_stopped(sock) and loop.time() < until:  # noqa: ASYNC110 - there is no event of it
            await asyncio.sleep(0.01)

    def _engine(self) -> Engine | None:
        """Return the application's engine; None before its start."""
        return getattr(getattr(self.config.loaded_app, "state", None), "engine", None)

    async def _stop_with_parent(self, parent: int) -> None:
        while os.getppid() == parent:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(_PARENT_WATCH_S)
        _log.warning("The parent process has gone; this worker ends too")
        self._start_drain()


def config(settings: Settings, app: FastAPI) -> uvicorn.Config:
    """Return uvicorn's configuration for an application.

    Raises:
        AddonError: Two add-ons have protocols of connections.
    """
    from stepwell.protocols.http_limits import limited_http_class
    from stepwell.protocols.ws_denials import DenyingWebSocketProtocol
    from stepwell.service_addon import sole

    addons: list[ServiceAddon] = app.state.addons
    routes = [route for addon in addons for route in addon.hot_routes()]
    faster = sole(addons, "protocols", lambda addon: addon.protocols(routes))
    return uvicorn.Config(
        app,
        http=faster.http if faster else limited_http_class(app.state.context),
        ws=faster.websocket if faster else DenyingWebSocketProtocol,
        ws_max_size=settings.max_body_bytes,
        ws_per_message_deflate=False,  # it needs 300 kB per socket, and numbers hardly compress
        lifespan="on",
        access_log=False,
        log_level="warning",  # the service logs its own start and end
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(int(settings.drain_s), 1),
        backlog=4096,
    )


def listen(settings: Settings) -> socket.socket:
    """Bind the address and return the socket.

    Raises:
        StartError: The address is in use, or this process may not bind it.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio sets TCP_NODELAY only if the protocol is given; without it each response would be delayed by 40 ms.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((settings.host, settings.port))
    except OSError as exc:
        sock.close()
        raise StartError(
            f"Cannot listen on {settings.host}:{settings.port}: {exc.strerror or exc}.",
            fix="End what uses the port, or choose another with --port.",
        ) from exc
    sock.set_inheritable(True)
    return sock


def stop_new_connections(sock: socket.socket) -> None:
    """Drop the first packet of each new connection to a listening socket; handshakes that have begun complete.

    Closing a listening socket resets its pending connections, and one may arrive after the last accept. A client whose
    first packet was dropped sends it again after a second; the port is closed by then, and the connection refused.
    Nothing is done on systems without such filters.
    """
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(_DROP_SYN)
    described = struct.pack("@HP", len(_DROP_SYN) // 8, ctypes.addressof(program))
    with contextlib.suppress(OSError):  # a kernel or a sandbox that does not have it
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)


def _has_pending(sock: socket.socket) -> bool:
    """Whether a listening socket has a connection to accept."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _is_stopped(sock: socket.socket) -> bool:
    """Whether new connections to a listening socket are stopped, by whichever process."""
    if sys.platform != "linux":
        return True
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_GET_FILTER, len(_DROP_SYN)) != b""
    except OSError:
        return True


def run(
    settings: Settings,
    sock: socket.socket,
    folders: SharedFolders,
    *,
    parent: int | None = None,
    store: str | None = None,
) -> int:
    """Serve until a signal arrives, and return the exit code.

    Args:
        settings: Settings with `redis` set.
        sock: The bound socket.
        folders: What the workers of this service share.
        parent: Id of the parent process, or None; as for `Server`.
        store: Description of the store, for the line that is printed once this process serves; None: print nothing.
    """
    folders.export_metrics_folder()
    import_app()
    from stepwell.app import create_app

    with collector_paused():
        chosen = config(settings, create_app(settings, folders))

    def greet(engine: Engine) -> None:
        if store is not None:
            _greet(settings, engine.models, store)

    server = Server(chosen, drain_s=settings.drain_s, parent=parent, on_start=greet)
    server.run(sockets=[sock])
    return 0 if server.started else 1


def import_app() -> None:
    """Import the application at a third less CPU than an import statement.

    The garbage collector is paused, and FastAPI is imported without building its 30 models of OpenAPI documents. This
    service does not use them (`addons/openapi`); each is built when it is first used.
    """
    from pydantic import BaseModel

    with collector_paused():
        BaseModel.model_config["defer_build"] = True
        try:
            importlib.import_module("fastapi")
        finally:
            del BaseModel.model_config["defer_build"]
        importlib.import_module("stepwell.app")


def _greet(settings: Settings, models: ModelRegistry, store: str) -> None:
    """Print what is served, for the operator's terminal; where log lines are JSON, log it."""
    url, more = f"http://{settings.url_host}:{settings.port}", settings.more_addresses
    also = "".join(f", {spoken} {address}" for spoken, address in more.items())
    served = [f"{name} ({', '.join(f'v{version}' for version in models.versions(name))})" for name in models.names()]
    if settings.log_format == "json":
        fields = {"url": url, "store": store, "durability": settings.durability, "workers": settings.workers}
        fields |= {spoken.lower(): address for spoken, address in more.items()}
        _log.info("Serving %s", ", ".join(served) or "no model yet", extra=fields)
        return
    print(  # noqa: T201
        f"Stepwell serves {', '.join(served) or 'no model yet'} on {url} (dashboard {url}/ , API {url}/docs{also} ); "
        f"{store}, durability {settings.durability}, workers {settings.workers}",
        file=sys.stderr,
        flush=True,
    )
