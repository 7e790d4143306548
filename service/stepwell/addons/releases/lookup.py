"""`Releases`: the release documents that this worker has read, by model."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from stepwell.addons.releases.document import ReleaseDocument


class Releases:
    """The newest known document of each model.

    Attributes:
        by_model: The documents.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """Create it without documents.

        Args:
            clock: Seconds since 1970 on this machine; `set_store_time` corrects it.
        """
        self.by_model: dict[str, ReleaseDocument] = {}
        self.current: Callable[[str], ReleaseDocument | None] = self.by_model.get
        """Return the document of a model; None: it has none, and its highest version serves."""

        self._clock = clock
        self._ahead_s = 0.0  # the store's clock minus this machine's
        self._changes: Counter[str] = Counter()
        self._largest: Counter[str] = Counter()

    def models(self) -> list[str]:
        """Return the names of the models that have a document."""
        return list(self.by_model)

    def now(self) -> float:
        """Return the time of the store's clock, as far as it is known here; seconds since 1970."""
        return self._clock() + self._ahead_s

    def set_store_time(self, seconds: float) -> None:
        """Correct `now`: the store's clock has this time, in seconds since 1970."""
        self._ahead_s = seconds - self._clock()

    def changes(self, model: str) -> int:
        """Return how often a model's document has changed here; read it before the document is read for `put`."""
        return self._changes[model]

    def largest_revision(self, model: str) -> int:
        """Return the largest revision that a model's document has had here."""
        return self._largest[model]

    def put(self, model: str, document: ReleaseDocument | None, changes: int | None = None) -> bool:
        """Replace a model's document by the one in the store; None: the store has none.

        An older one does not replace a newer one, unless that was there before the store was read: then the store has
        lost it.

        Args:
            model: The model's name.
            document: The document.
            changes: Of `changes`, before the store was read; None: it is certainly the newest.

        Returns:
            Whether it differs from the one before, and has replaced it.
        """
        before = self.by_model.get(model)
        if before == document:
            return False
        is_older = before is not None and (document is None or document.revision < before.revision)
        if is_older and changes is not None and changes != self._changes[model]:
            return False
        self._changes[model] += 1
        self._largest[model] = max(self._largest[model], 0 if document is None else document.revision)
        if document is None:
            del self.by_model[model]
        else:
            self.by_model[model] = document
        return True
