"""`EmbeddedStoreSettings`: runs the embedded store of `data_dir` where `redis` is not set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

from stepwell.settings import AddonSettings, Settings


class EmbeddedStoreSettings(AddonSettings):
    """There are no settings but `data_dir` and `durability`, which are the service's."""

    def store(self, settings: Settings) -> AbstractContextManager[str]:
        """Return what runs the store, and yields its URL.

        Raises:
            EmbeddedStoreError: When it is entered: as for `EmbeddedStore.start`.
        """
        return _running(settings)


@contextlib.contextmanager
def _running(settings: Settings) -> Iterator[str]:
    from stepwell.addons.embedded_store.server import EmbeddedStore  # only here: few programs start one

    store = EmbeddedStore(settings.data_dir, fsync_always=settings.durability == "fsync")
    store.start()
    try:
        yield store.url
    finally:
        store.stop()
