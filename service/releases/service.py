"""`ReleaseService`: starts, changes and ends releases, by compare-and-set on the document in the store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec import UNSET, UnsetType
from msgspec.structs import asdict, replace

from service.codec.releases import GateBody, ReleaseBody
from service.errors import ServiceError
from service.models.registry import ModelRegistry, ServedModel
from service.releases import changes
from service.releases.compatibility import check_candidate, check_gate, translation_path
from service.releases.document import Gate, How, ReleaseDocument, ReleaseVersion
from service.releases.follower import ReleaseFollower
from service.releases.store import ReleaseStore, deadline

_ATTEMPTS: Final = 20  # of a request without `revision`, while others change the document

_Change = Callable[[ReleaseDocument, float], Awaitable[ReleaseDocument]]


class ReleaseService:
    """The releases of all models."""

    def __init__(self, store: ReleaseStore, models: ModelRegistry, follower: ReleaseFollower) -> None:
        """Create it.

        Args:
            store: The documents in the store.
            models: The loaded models.
            follower: Makes a changed document this worker's at once.
        """
        self._store = store
        self._models = models
        self._follower = follower

    async def read(self, model: str) -> ReleaseDocument:
        """Return the document of a model; without one, revision 0 with the default version.

        Raises:
            ServiceError: `model_not_found`, or the store cannot be read.
        """
        default = self._models.get(model)
        return (await self._store.read(model)).document or _without_release(default)

    async def put(self, model: str, body: ReleaseBody, gate: GateBody | None) -> ReleaseDocument:
        """Start a release, or change the running one.

        Raises:
            ServiceError: `model_not_found`, `version_not_found`, `bad_release`, `release_refused`, `release_changed`,
                or an error of the store.
        """
        candidate, current = self._version(model, body.candidate), self._version(model, body.current)
        self._models.get(model)  # raises if there is none
        limits = UNSET if body.gate is UNSET else None if gate is None else Gate(**asdict(gate))

        async def change(document: ReleaseDocument, now: float) -> ReleaseDocument:
            revision = document.revision
            if current is not None:
                document = changes.pin(document, _named(current), now)
            if candidate is not None:
                document = replace(document, revision=revision)  # both are one change
                return await self._with_candidate(document, candidate, body, limits, now)
            return document if body.schedule is UNSET else changes.set_percent(document, body.schedule, now)

        return await self._change(model, body.revision, change)

    async def end(
        self, model: str, how: How, why: str | None = None, *, revision: int | UnsetType = UNSET
    ) -> ReleaseDocument:
        """Promote or abort the candidate; a release that has ended so before stays as it is.

        Raises:
            ServiceError: `model_not_found`, `bad_release`, `release_refused`, `release_changed`, or an error of the
                store.
        """
        self._models.get(model)  # raises if there is none

        async def change(document: ReleaseDocument, now: float) -> ReleaseDocument:
            return changes.end(document, how, why, now)

        return await self._change(model, revision, change)

    async def abort_trial(self, model: str, trial: int, why: str) -> bool:
        """Abort a trial whose gate is broken, once, whichever workers call this.

        Args:
            model: The model's name.
            trial: `Trial.revision`.
            why: The broken limit.

        Returns:
            Whether this call has aborted it; False: it had ended before.

        Raises:
            ServiceError: An error of the store.
        """
        aborted = False

        async def change(document: ReleaseDocument, now: float) -> ReleaseDocument:
            nonlocal aborted
            running = document.running
            aborted = running is not None and running.revision == trial
            return changes.end(document, "aborted", why, now) if aborted else document

        await self._change(model, UNSET, change)
        return aborted

    async def _change(self, model: str, revision: int | UnsetType, change: _Change) -> ReleaseDocument:
        """Replace a model's document by what `change` makes of it, as of the newest document.

        Raises:
            ServiceError: `release_changed`, what `change` raises, or an error of the store.
        """
        for _ in range(_ATTEMPTS):
            stored, now = await self._store.read(model), await self._store.time()
            before = stored.document or _without_release(self._models.get(model))
            after = await change(before, now)
            if after is before:  # a promotion or an abort that was sent again
                return before
            changes.check_revision(before, revision)
            if await self._store.write(stored, after):
                await self._follower.apply(model, after)
                return after
        raise ServiceError(
            "overloaded", f"{_ATTEMPTS} other requests changed the release meanwhile.", fix="Send the same again later."
        )

    async def _with_candidate(
        self,
        document: ReleaseDocument,
        candidate: ServedModel,
        body: ReleaseBody,
        gate: Gate | UnsetType | None,
        now: float,
    ) -> ReleaseDocument:
        """Return the document with a candidate, which was checked against the current version."""
        assert body.mode is not UNSET
        assert body.schedule is not UNSET
        options = changes.TrialOptions(
            body.mode, body.schedule, body.take, body.warm_steps, body.existing, body.rollback, body.salt, gate
        )
        after = changes.set_candidate(document, _named(candidate), options, now)
        trial = after.trial
        assert trial is not None
        old = await self._models.find(document.model, trial.old.fingerprint)
        if old is None:
            raise ServiceError(
                "release_refused",
                f"Version {trial.old.number}, which is current, cannot be loaded in this replica: "
                f"{self._models.why_missing(document.model, trial.old.fingerprint)}.",
                fix="Put its file into the models folder, or name the `current` version.",
            )
        has_translation = await asyncio.to_thread(translation_path(trial.old.number, candidate).is_file)
        check_candidate(old, candidate, trial.take, has_translation=has_translation)
        check_gate(trial.gate, candidate)
        for served in (old, candidate):  # other replicas may have other files
            await self._models.keep(document.model, served.fingerprint, deadline())
        return after

    def _version(self, model: str, version: int | UnsetType) -> ServedModel | None:
        """Return a version that a request names, None if it names none.

        Raises:
            ServiceError: `model_not_found` or `version_not_found`.
        """
        if version is UNSET:
            return None
        versions = self._models.versions(model)
        if versions and version not in versions:
            raise ServiceError(
                "version_not_found",
                f"Model {model!r} has no version {version}; versions are {versions}.",
                fix="Put its file into the models folder and POST /v1/models/reload.",
            )
        return self._models.get(model, version)


def _without_release(default: ServedModel) -> ReleaseDocument:
    return ReleaseDocument(default.name, 0, _named(default), started_at=0.0)


def _named(served: ServedModel) -> ReleaseVersion:
    return ReleaseVersion(served.version, served.fingerprint)
