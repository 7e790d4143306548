"""`GrpcAddon`: serves gRPC where `grpc_port` is set; imports grpcio only then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepwell.addons.grpc_api.settings import GrpcSettings
from stepwell.service_addon import ServiceAddon

if TYPE_CHECKING:
    from stepwell.addons.grpc_api.server import GrpcServer


class GrpcAddon(ServiceAddon):
    """Runs a gRPC server beside the HTTP server of one worker."""

    _server: GrpcServer | None = None

    async def start(self) -> None:
        """Listen, if there is a port for it.

        Raises:
            RuntimeError: The port cannot be bound.
        """
        if self.context.settings.of(GrpcSettings).grpc_port is None:
            return
        from stepwell.addons.grpc_api.server import GrpcServer

        await self.context.check_readiness()
        self._server = GrpcServer(self.context, self.version)
        await self._server.start()

    def begin_stop(self, grace_s: float) -> None:
        """Accept no call any more."""
        if self._server is not None:
            self._server.begin_stop(grace_s)

    async def stop(self, grace_s: float) -> None:
        """Return when all calls have ended."""
        if self._server is not None:
            await self._server.stop(grace_s)
