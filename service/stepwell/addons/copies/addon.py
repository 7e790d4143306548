"""`Copies`: the routes of forks, snapshots and states."""

from __future__ import annotations

from fastapi import FastAPI

from stepwell.addons.copies.routes import add_routes
from stepwell.addons.copies.stream_copies import StreamCopies
from stepwell.service_addon import ServiceAddon


class Copies(ServiceAddon):
    """Copies streams in one worker."""

    def add_routes(self, app: FastAPI) -> None:
        """Declare the routes."""
        add_routes(app, self.context)

    async def start(self) -> None:
        """Let streams be reset to their snapshots."""
        engine = self.context.engine
        engine.streams.state_of_snapshot = StreamCopies(engine).state_of_snapshot
