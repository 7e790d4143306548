"""`SharedReloads`: reloads the models of this replica, and has all other replicas on the same store do the same."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final

from stepwell.addons.fleet.announcements import LONGEST_RELOAD_S, Announcement, FleetReloads
from stepwell.engine.model_reloads import ModelReloads
from stepwell.errors import ServiceError

if TYPE_CHECKING:
    from stepwell.models.changes import ReloadReport
    from stepwell.models.registry import ModelRegistry
    from stepwell.store.state_store import StateStore

_log = logging.getLogger(__name__)
_NOTE_S: Final = 600.0  # for which a loss of the store is in the readiness document


class SharedReloads(ModelReloads):
    """Reloads on request, when files change, and when another worker has reloaded."""

    def __init__(self, store: StateStore, models: ModelRegistry) -> None:
        """Create it; `load` reads the store for the first time.

        Args:
            store: The store that all replicas share.
            models: The models of this worker.
        """
        super().__init__(models)
        self._fleet = FleetReloads(store, self._follow)

    async def load(self) -> None:
        """Load the models of this worker for the first time, without those that were unloaded."""
        await self._fleet.start()
        await super().load()
        await self._fleet.look()

    async def run(self) -> None:
        """Follow the reloads of others."""
        await self._fleet.run()

    async def close(self) -> None:
        """Sign off, and disconnect."""
        await self._fleet.close()

    async def reload_worker(self) -> ReloadReport:
        """Reload the models of this worker, without those that were unloaded.

        If the store does not reply, those that were unloaded before stay so.
        """
        with contextlib.suppress(ServiceError):
            self._models.unloaded = await self._fleet.unloaded()
        return await super().reload_worker()

    async def set_unloaded(self, name: str, *, unloaded: bool) -> ReloadReport:
        """Unload a model in all workers of all replicas, until it is loaded again; or load it."""
        await self._fleet.set_unloaded(name, unloaded=unloaded)
        return await self.reload()

    async def reload(self) -> ReloadReport:
        """Reload in all workers of all replicas, and return the report of this worker.

        Models that it serves and that others have loaded are reported as loaded, too: a worker that has just started
        had loaded them already. Workers that have not reloaded within a minute are reported as failures.
        """
        report = await self.reload_worker()
        try:
            late, loaded = await self._fleet.wait_for_workers(await self._fleet.announce(report.loaded))
        except ServiceError as exc:
            report.failed.append(f"other workers: the reload could not be announced to them. {exc.problem}")
            return report
        served = self._served()
        report.loaded.extend(sorted(served.intersection(loaded).difference(report.loaded)))
        if late:
            report.failed.append(f"other workers: {late} have not reloaded within {LONGEST_RELOAD_S:g} s")
        return report

    async def reload_changed(self) -> ReloadReport:
        """Reload in this worker; if that has changed anything, the others do the same."""
        generation = self._models.generation
        report = await self.reload_worker()
        if self._models.generation != generation:
            with contextlib.suppress(ServiceError):  # the store does not reply: announced once it does
                await self._fleet.announce(report.loaded)
        return report

    def notes(self) -> list[str]:
        """Return what an operator should read although requests can be served."""
        lost_at = self._fleet.lost_at
        if lost_at is None or time.time() > lost_at + _NOTE_S:
            return []
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(lost_at))
        note = (
            f"the store has lost data, noticed at {at}: it was emptied, or restarted with an older file; the models of "
            "the models folders are served"
        )
        return [note]

    def _served(self) -> set[str]:
        return {f"{name}/{version}" for name in self._models.names() for version in self._models.versions(name)}

    async def _follow(self, announcement: Announcement) -> list[str]:
        report = await self.reload_worker()
        served = self._served()
        if missing := [model for model in announcement.loaded if model not in served]:
            _log.warning(
                "Another replica has loaded %s, which is not in the models folders of this one", ", ".join(missing)
            )
        return report.loaded
