"""`KeptArtifacts`: keeps the files of models that records name, in the store or in a folder that replicas share."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from stepwell.addons.artifacts.folder import ArtifactFolder
from stepwell.addons.artifacts.keeper import ArtifactBackend, ArtifactKeeper
from stepwell.addons.artifacts.settings import ArtifactSettings
from stepwell.addons.artifacts.stored import StoredArtifacts, artifact_key
from stepwell.models.artifacts import LoadModel
from stepwell.service_addon import ServiceAddon
from stepwell.store.state_store import StateStore
from stepwell.store.transport.connection import Argument


class KeptArtifacts(ServiceAddon):
    """The artifacts of one worker."""

    @staticmethod
    def store_commands(record: str) -> Iterator[Sequence[Argument]]:
        """Yield what keeps a model in the store."""
        key = artifact_key("check", secrets.token_bytes(8))
        yield "HSET", key, "chunks", 0
        yield "PEXPIRE", key, 10_000  # in case the process is killed before it deletes it
        yield "HGET", key, "chunks"
        yield "PTTL", key
        yield "DEL", key

    def artifacts(self, store: StateStore, load: LoadModel, folder: Path | None) -> ArtifactKeeper:
        """Return what keeps them where the settings name."""
        settings = self.context.settings.of(ArtifactSettings)
        longest_ttl_s = self.context.settings.longest_ttl_s
        backend: ArtifactBackend | None = None
        if settings.artifacts == "store":
            backend = StoredArtifacts(store, longest_ttl_s=longest_ttl_s)
        elif settings.artifacts != "off":
            backend = ArtifactFolder(Path(settings.artifacts), longest_ttl_s=longest_ttl_s)
        return ArtifactKeeper(backend, load, settings, folder=folder)
