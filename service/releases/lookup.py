"""`Releases`: the release documents that this worker has read, by model."""

from __future__ import annotations

import time
from collections.abc import Callable

from service.releases.document import ReleaseDocument


class Releases:
    """The newest known document of each model. A model without a document costs one lookup in a dictionary.

    Attributes:
        revision: Grows whenever a document changes here; what was derived from documents is valid for one value.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """Create it without documents.

        Args:
            clock: Seconds since 1970 on this machine; `set_store_time` corrects it.
        """
        self._documents: dict[str, ReleaseDocument] = {}
        self._clock = clock
        self._ahead_s = 0.0  # the store's clock minus this machine's
        self.revision = 0

    def current(self, model: str) -> ReleaseDocument | None:
        """Return the document of a model; None: it has none, and its highest version serves."""
        return self._documents.get(model)

    def models(self) -> list[str]:
        """Return the names of the models that have a document."""
        return list(self._documents)

    def now(self) -> float:
        """Return the time of the store's clock, as far as it is known here; seconds since 1970."""
        return self._clock() + self._ahead_s

    def set_store_time(self, seconds: float) -> None:
        """Correct `now`: the store's clock has this time, in seconds since 1970."""
        self._ahead_s = seconds - self._clock()

    def put(self, model: str, document: ReleaseDocument | None) -> bool:
        """Replace a model's document by the one in the store; None: the store has none.

        Returns:
            Whether it differs from the one before.
        """
        if self._documents.get(model) == document:
            return False
        if document is None:
            del self._documents[model]
        else:
            self._documents[model] = document
        self.revision += 1
        return True
