"""`Fleet`: what one worker reloads or unloads, all workers on the store do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepwell.addons.fleet.reloads import SharedReloads
from stepwell.service_addon import ServiceAddon

if TYPE_CHECKING:
    from stepwell.models.registry import ModelRegistry
    from stepwell.store.state_store import StateStore


class Fleet(ServiceAddon):
    """The reloads that this worker shares with the others."""

    def reloads(self, store: StateStore, models: ModelRegistry) -> SharedReloads:
        """Return what reloads the models."""
        return SharedReloads(store, models)
