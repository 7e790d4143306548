"""`Fleet`: what one worker reloads or unloads, all workers on the store do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stepwell.addons.fleet.keys import RELOAD, WORKERS
from stepwell.addons.fleet.reloads import SharedReloads
from stepwell.service_addon import ServiceAddon

if TYPE_CHECKING:
    from stepwell.models.registry import ModelRegistry
    from stepwell.store.state_store import StateStore
    from stepwell.store.transport.connection import Argument


class Fleet(ServiceAddon):
    """The reloads that this worker shares with the others."""

    @staticmethod
    def store_commands(record: str) -> Sequence[Sequence[Argument]]:
        """Return what reads the announcements and signs a worker out."""
        return ("GET", RELOAD), ("HDEL", WORKERS, "check"), ("HGETALL", WORKERS)

    def reloads(self, store: StateStore, models: ModelRegistry) -> SharedReloads:
        """Return what reloads the models."""
        return SharedReloads(store, models)
