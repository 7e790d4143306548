"""`ReleaseService`: starts, changes and ends releases, by compare-and-set on the document in the store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec import UNSET, UnsetType
from msgspec.structs import asdict, replace

from stepwell.addons.releases import document_changes
from stepwell.addons.releases.bodies import GateBody, ReleaseBody, bad_release
from stepwell.addons.releases.compatibility import check_candidate, check_gate, publish_translation
from stepwell.addons.releases.counters import TrialCounts, read_counts
from stepwell.addons.releases.document import Gate, How, ReleaseDocument, ReleaseVersion
from stepwell.addons.releases.follower import ReleaseFollower
from stepwell.addons.releases.move_one import StreamMoves
from stepwell.addons.releases.responses import ReleaseResponse
from stepwell.addons.releases.store import ReleaseStore
from stepwell.addons.releases.stream_counts import StreamCounter
from stepwell.addons.releases.sweep_progress import SweepProgress, read_sweep, request_sweep
from stepwell.addons.releases.view import release_response
from stepwell.errors import ServiceError
from stepwell.models.registry import ModelRegistry
from stepwell.models.served import ServedModel
from stepwell.store.transport.retry import deadline

_ATTEMPTS: Final = 20  # of a request without `revision`, while others change the document

_Change = Callable[[ReleaseDocument, float], Awaitable[ReleaseDocument]]


class ReleaseService:
    """The releases of all models."""

    def __init__(
        self,
        store: ReleaseStore,
        models: ModelRegistry,
        follower: ReleaseFollower,
        counter: StreamCounter,
        moves: StreamMoves,
    ) -> None:
        """Create it.

        Args:
            store: The documents in the store.
            models: The loaded models.
            follower: Makes a changed document this worker's at once.
            counter: Reads the numbers of streams.
            moves: Moves single streams.
        """
        self._store = store
        self._models = models
        self._follower = follower
        self._counter = counter
        self.moves = moves

    async def view(self, model: str) -> ReleaseResponse:
        """Return the release of a model as the API shows it; without one, revision 0 with the default version.

        From then on, this worker steps by at least the revision that it shows.

        Raises:
            ServiceError: `model_not_found`, or an error of the store.
        """
        default, n_changes = self._models.get(model), self._follower.releases.changes(model)
        stored, now, streams, sweep = await asyncio.gather(
            self._store.read(model),
            self._store.time(),
            self._counter.read(),
            read_sweep(self._store.state_store, model),
        )
        await self._follower.apply(model, stored.document, n_changes)
        document = stored.document or _without_release(default)
        compared = TrialCounts()
        if document.trial is not None:
            trial = document.trial.revision
            compared = await read_counts(self._store.state_store, model, trial, deadline=deadline())
        return release_response(document, now, models=self._models, streams=streams, compared=compared, sweep=sweep)

    async def sweep(self, model: str, limit_per_s: int) -> None:
        """Request that all sleeping streams of a model are moved to where its release places them.

        Args:
            model: The model's name.
            limit_per_s: Most streams in a second; 0: no limit.

        Raises:
            ServiceError: `model_not_found`; `bad_release`: the model has no release; or an error of the store.
        """
        self._models.get(model)  # raises if there is none
        document = (await self._store.read(model)).document
        if document is None:
            bad_release(
                "The model has no release, so that every stream is where it is to be.",
                "Start one with PUT, or with `stepwell release start`.",
            )
        streams = await self._counter.read()
        counted = {} if streams is None else streams.of(model)
        left = sum(n for name, n in counted.items() if document.promoted_from(bytes.fromhex(name)) is not None)
        now = await self._store.time()
        # until the sweep has counted; 0 would mean that it has ended
        sweep = SweepProgress(now, document.revision, limit_per_s, moved=0, left=max(left, 1))
        await request_sweep(self._store.state_store, model, sweep)

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
                document = document_changes.pin(document, _named(current), now)
            if candidate is not None:
                document = replace(document, revision=revision)  # both are one change
                return await self._with_candidate(document, candidate, body, limits, now)
            return document if body.schedule is UNSET else document_changes.set_percent(document, body.schedule, now)

        return await self._change(model, change, body.revision)

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
            if document.trial is None or document.trial.ended is None or document.trial.ended.how != how:
                document_changes.check_revision(document, revision)  # else the request is sent again
            return document_changes.end(document, how, why, now)

        return await self._change(model, change)

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
            return document_changes.end(document, "aborted", why, now, by_gate=True) if aborted else document

        await self._change(model, change)
        return aborted

    async def _change(self, model: str, change: _Change, revision: int | UnsetType = UNSET) -> ReleaseDocument:
        """Replace a model's document by what `change` makes of it, as of the newest document.

        Args:
            model: The model's name.
            change: Makes it.
            revision: That the document must have; 0 if there is none.

        Raises:
            ServiceError: What `change` raises, `release_changed`, or an error of the store.
        """
        releases = self._follower.releases
        for _ in range(_ATTEMPTS):
            n_changes = releases.changes(model)
            stored, now = await self._store.read(model), await self._store.time()
            before = stored.document or _without_release(self._models.get(model))
            document_changes.check_revision(before, revision)
            if stored.document is None:  # it may be lost: streams that were moved by it must move on by the new one
                last = max(await self._store.last_revision(model), releases.largest_revision(model))
                before = replace(before, revision=last)
            after = await change(before, now)
            if after is before:
                return before
            if await self._store.write(stored, after):
                await self._follower.apply(model, after, n_changes)
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
        options = document_changes.TrialOptions(
            body.mode, body.schedule, body.take, body.warm_steps, body.existing, body.rollback, body.salt, gate
        )
        after = document_changes.set_candidate(document, _named(candidate), options, now)
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
        check_gate(trial.gate, candidate)
        check_candidate(old, candidate, trial.take)
        if trial.take == "translate":
            digest = await publish_translation(self._follower.translations, old, candidate, trial.translation)
            after = replace(after, trial=replace(trial, translation=digest))
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
