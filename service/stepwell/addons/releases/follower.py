"""`ReleaseFollower`: keeps this worker's release documents equal to those in the store."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from stepwell.addons.between_workers.followed_value import FollowedValue
from stepwell.addons.between_workers.pubsub import StorePubSub
from stepwell.addons.releases.document import ReleaseDocument
from stepwell.addons.releases.lookup import Releases
from stepwell.addons.releases.store import TOPIC, ReleaseStore
from stepwell.addons.releases.translations import Translations
from stepwell.background import cancel
from stepwell.errors import ServiceError
from stepwell.models.registry import ModelRegistry
from stepwell_export.runtime.errors import StepwellError

_log = logging.getLogger(__name__)
_EVERY_S: Final = 1.0


class ReleaseFollower:
    """Reads the documents of all models when one is announced, and each second in case an announcement was missed.

    Attributes:
        releases: The documents of this worker.
    """

    def __init__(
        self,
        store: ReleaseStore,
        releases: Releases,
        models: ModelRegistry,
        pubsub: StorePubSub,
        translations: Translations,
    ) -> None:
        """Create it; `refresh` reads the documents, `follow` keeps them current.

        Args:
            store: The documents in the store.
            releases: The documents of this worker.
            models: The models, whose current versions are set.
            pubsub: Receives announcements; used by this follower alone.
            translations: The translations of this worker.
        """
        self._store = store
        self.releases = releases
        self.translations = translations
        self._models = models
        self._followed = FollowedValue(pubsub, TOPIC, self.refresh, "Following the releases")
        self._applying: dict[str, asyncio.Task[None]] = {}  # by model
        self._logged: dict[str, str] = {}  # by model, the problem that was logged

    async def refresh(self) -> None:
        """Read every model's document and the store's clock, and set the current versions.

        Raises:
            StoreUnavailableError: No reply; the documents stay as they are.
        """
        names = self._models.names()
        self.releases.set_store_time(await self._store.time())
        changes = [self.releases.changes(model) for model in names]
        for model, n, stored in zip(names, changes, await self._store.read_all(names), strict=True):
            if isinstance(stored, ServiceError):
                self._log_once(model, f"The release of model {model} cannot be read, the one before stays: {stored}")
            elif model not in self._applying:  # a model that is slow to load does not delay the others
                self._applying[model] = asyncio.create_task(self.apply(model, stored.document, n))
        if self._applying:
            done, _ = await asyncio.wait(self._applying.values(), timeout=_EVERY_S)
            self._applying = {model: task for model, task in self._applying.items() if task not in done}
            for task in done:
                task.result()

    async def apply(self, model: str, document: ReleaseDocument | None, changes: int) -> None:
        """Make a document the one of this worker; None: the store has none.

        Args:
            model: The model's name.
            document: What was read from the store, or written.
            changes: `Releases.changes` before it was read.
        """
        if document is not None:
            await self._load_translations(model, document)
        if self.releases.put(model, document, changes):
            if document is None:
                _log.warning("The store has no release of model %s any more: its highest version is current", model)
            else:
                _log.info("Model %s has release revision %d: %s", model, document.revision, _summary(document))
        await self._set_current(model, self.releases.current(model))

    async def follow(self) -> None:
        """Follow the documents until cancelled."""
        await self._followed.subscribe()
        try:
            await self._followed.run()
        finally:
            await self.close()
            await self._followed.close()

    async def close(self) -> None:
        """End what is still being loaded."""
        await cancel(self._applying.values())

    async def _set_current(self, model: str, document: ReleaseDocument | None) -> None:
        if document is None:
            self._models.set_current(model, None)
            return
        served = await self._models.find(model, document.current.fingerprint)
        if served is not None:
            self._models.set_current(model, served)
            self._logged.pop(model, None)
            return
        self._log_once(
            model,
            f"Version {document.current.number} of model {model}, current by its release, cannot be loaded here: "
            f"{self._models.why_missing(model, document.current.fingerprint)}. New streams start on the highest "
            "version here. Put the same file into this replica's models folder.",
        )

    async def _load_translations(self, model: str, document: ReleaseDocument) -> None:
        """Load the translations by which streams move, and renew their artifacts."""
        models = self._models
        for trial in document.moving:
            if trial.take != "translate":
                continue
            problem = "there is neither its artifact nor the file with which the release was started"
            try:
                old, new = [await models.find(model, version.fingerprint) for version in (trial.old, trial.new)]
                if old is None or new is None:
                    continue  # the first stream that needs it reports it
                if await self.translations.load(old, new, trial.translation) is not None:
                    continue
            except (StepwellError, ServiceError, OSError) as exc:
                problem = str(exc)
            self._log_once(
                model,
                f"Streams of model {model} do not move from version {trial.old.number} to {trial.new.number} here, "
                f"because their states cannot be translated: {problem}. Put the translation beside the new version.",
            )

    def _log_once(self, model: str, problem: str) -> None:
        if self._logged.get(model) != problem:
            self._logged[model] = problem
            _log.error("%s", problem)


def _summary(document: ReleaseDocument) -> str:
    trial = document.trial
    current = f"version {document.current.number} is current"
    if trial is None:
        return current
    if trial.ended is None:
        return f"{current}, version {trial.new.number} is the candidate ({trial.mode})"
    why = f": {trial.ended.why}" if trial.ended.why else ""
    return f"{current}, version {trial.new.number} was {trial.ended.how}{why}"
