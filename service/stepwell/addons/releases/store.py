"""`ReleaseStore`: reads release documents from the store, and writes them by compare-and-set."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from stepwell.addons.releases import keys
from stepwell.addons.releases.document import ReleaseDocument
from stepwell.errors import CorruptRecordError, ServiceError, StoreUnavailableError
from stepwell.store.scripts import Script
from stepwell.store.state_store import StateStore
from stepwell.store.transport.connection import Argument, NotSentError
from stepwell.store.transport.retry import deadline, execute_with_retry

_log = logging.getLogger(__name__)

TOPIC: Final = "swl:releases"
"""The topic on which the name of a model is published when its document changes."""

SCRIPT: Final = Script.of("release.lua", "stepwell.addons.releases")
"""Writes a document by compare-and-set."""


class StoredRelease(NamedTuple):
    """A model's document as the store has it.

    Attributes:
        document: The document; None: there is none.
        raw: Its bytes, which a write compares; empty if there is none.
    """

    document: ReleaseDocument | None
    raw: bytes


class ReleaseStore:
    """The release documents in the store."""

    def __init__(self, store: StateStore) -> None:
        """Create it on top of a state store."""
        self.state_store = store

    async def read(self, model: str) -> StoredRelease:
        """Return the document of a model.

        Raises:
            StoreUnavailableError: No reply in time.
            CorruptRecordError: The key holds a value that is not a release document.
        """
        [stored] = await self.read_all([model])
        if isinstance(stored, ServiceError):
            raise stored
        return stored

    async def read_all(self, models: Sequence[str]) -> list[StoredRelease | ServiceError]:
        """Return the document of each model, or the error of one that cannot be read.

        Raises:
            StoreUnavailableError: No reply in time.
        """
        if not models:
            return []
        names = [keys.release_key(model) for model in models]
        return [_decode(value) for value in await self.state_store.load_with_errors(names, deadline=deadline())]

    async def write(self, before: StoredRelease, after: ReleaseDocument) -> bool:
        """Write a document if the store still has the one that was read; announce it to all workers.

        Returns:
            Whether it was written; False: another request has changed it.

        Raises:
            ServiceError: As for `StateStore.run`.
        """
        names, raw = (keys.release_key(after.model), keys.release_revision_key(after.model)), msgspec.json.encode(after)
        arguments: list[Argument] = [2, *names, before.raw, raw, TOPIC, after.model, after.revision]
        return bool(await self.state_store.run(SCRIPT, arguments, deadline=deadline()))

    async def last_revision(self, model: str) -> int:
        """Return the largest revision that a model's document has had; 0: it never had one.

        Raises:
            StoreUnavailableError: No reply in time.
        """
        stored = await self.state_store.execute(deadline(), "GET", keys.release_revision_key(model))
        return int(stored) if isinstance(stored, bytes) and stored.isdigit() else 0

    async def time(self) -> float:
        """Return the store's clock: seconds since 1970. In a Cluster, that of its first primary.

        Raises:
            StoreUnavailableError: No reply in time.
        """
        try:
            _, primaries = await self.state_store.transport.primaries(fresh=False)
        except NotSentError as exc:
            raise StoreUnavailableError(f"The store did not reply: {exc.public_reason}.") from exc
        [reply] = await execute_with_retry(primaries[0], [("TIME",)], deadline=deadline())
        if isinstance(reply, ServiceError):
            raise reply
        seconds, microseconds = reply
        return int(seconds) + int(microseconds) / 1e6


def _decode(value: bytes | ServiceError | None) -> StoredRelease | ServiceError:
    if value is None:
        return StoredRelease(None, b"")
    if isinstance(value, ServiceError):
        return value
    try:
        return StoredRelease(msgspec.json.decode(value, type=ReleaseDocument), value)
    except msgspec.MsgspecError as exc:
        return CorruptRecordError(
            f"The model's release is stored in a form that cannot be read: {exc}.",
            fix="Update this replica, if another runs a newer version; else delete the key that ends in `:document` in "
            "the store, and start the release again.",
        )
