"""`GrpcServer`: grpcio's server on `grpc_port`, with health checks and reflection, in the loop of the application."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from stepwell.addons.grpc_api.messages import HEALTH_SERVICE, POOL, SERVICE
from stepwell.addons.grpc_api.methods import InferenceMethods
from stepwell.addons.grpc_api.settings import GrpcSettings
from stepwell.background import cancel, run_forever
from stepwell.requests.context import AppContext

_log = logging.getLogger(__name__)
_HEALTH_S: Final = 0.2  # between two updates of the health service
_LAST_RESPONSES_S: Final = 0.5  # for grpcio to send what the methods have returned
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING


class GrpcServer:
    """The gRPC server of one worker.

    Attributes:
        port: The port that it listens on.
    """

    def __init__(self, context: AppContext, version: str) -> None:
        """Create a server that does not listen yet; needs a running loop."""
        settings = context.settings
        port = settings.of(GrpcSettings).grpc_port
        assert port is not None
        self.port = port
        self._context = context
        self._host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self._methods = InferenceMethods(context, version)
        self._health = health.aio.HealthServicer()
        self._stopped: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 1),  # the workers share the port, and their parent holds it
                ("grpc.max_receive_message_length", settings.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.keepalive_time_ms", 60_000),  # finds clients that ended without closing the connection
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ],
            maximum_concurrent_rpcs=settings.max_connections,
        )

    async def start(self) -> None:
        """Listen, and serve.

        Raises:
            RuntimeError: The port cannot be bound.
        """
        server = self._server
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE.full_name, self._methods.handlers()),)
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if not self._context.settings.production:  # as for /openapi.json
            names = (SERVICE.full_name, HEALTH_SERVICE, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server, pool=POOL)
        self.port = server.add_insecure_port(f"{self._host}:{self.port}")
        await self._update_health()
        await server.start()
        work = run_forever(self._update_health, every_s=_HEALTH_S, name="Updating the health of gRPC")
        self._tasks.append(asyncio.create_task(work))

    def begin_stop(self, grace_s: float) -> None:
        """Stop: no call is accepted any more, streams read no further request, and accepted requests are answered.

        Args:
            grace_s: Maximum seconds for that; what is open then is cancelled.
        """
        if self._stopped is None:
            self._stopped = asyncio.create_task(self._stop(grace_s))

    async def stop(self, grace_s: float) -> None:
        """Stop, unless `begin_stop` was called before, and return when all calls have ended."""
        self.begin_stop(grace_s)
        assert self._stopped is not None
        await self._stopped

    async def _stop(self, grace_s: float) -> None:
        await cancel(self._tasks)
        await self._health.enter_graceful_shutdown()
        self._methods.stopping.set()
        stopping = asyncio.create_task(self._server.stop(grace_s))
        idle = asyncio.create_task(self._methods.idle.wait())
        await asyncio.wait({stopping, idle}, return_when=asyncio.FIRST_COMPLETED)
        # Watchers of the health service would stay for the whole grace. Of two, grpcio uses the shorter one.
        await self._server.stop(min(_LAST_RESPONSES_S, grace_s))
        await asyncio.wait({stopping})
        idle.cancel()

    async def _update_health(self) -> None:
        context = self._context
        status = _SERVING if context.ready and not context.draining else _NOT_SERVING
        for name in ("", SERVICE.full_name):
            await self._health.set(name, status)
