"""`ModelReloads`: reloads the models of this replica, and has all other replicas on the same store do the same."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final

from stepwell.errors import ServiceError
from stepwell.store.fleet_reloads import LONGEST_RELOAD_S, Announcement, FleetReloads

if TYPE_CHECKING:
    from stepwell.models.changes import ReloadReport
    from stepwell.models.registry import ModelRegistry
    from stepwell.store.state_store import StateStore

_log = logging.getLogger(__name__)
_NOT_KEPT: Final = "A model's artifact is not kept, so its streams need its file"
_NOTE_S: Final = 600.0  # for which a loss of the store is in the readiness document


class ModelReloads:
    """Reloads on request, when files change, and when another worker has reloaded.

    Args:
        store: The store that all replicas share.
        models: The models of this worker.
    """

    def __init__(self, store: StateStore, models: ModelRegistry) -> None:
        self.fleet = FleetReloads(store, self._follow)
        self._models = models
        self._logged: set[str] = set()  # the problems of the last reload

    async def load(self) -> ReloadReport:
        """Load the models of this worker for the first time."""
        await self.fleet.start()
        report = await self.reload_worker()
        self._log_problems(report)
        _log.info("Models: %s", ", ".join(report.loaded) or "none")
        await self.fleet.look()
        return report

    async def reload_worker(self) -> ReloadReport:
        """Reload the models of this worker, without those that were unloaded.

        If the store does not reply, those that were unloaded before stay so.
        """
        with contextlib.suppress(ServiceError):
            self._models.unloaded = await self.fleet.unloaded()
        return await self._models.reload()

    async def set_unloaded(self, name: str, *, unloaded: bool) -> ReloadReport:
        """Unload a model in all workers of all replicas, until it is loaded again; or load it.

        Args:
            name: The model's name.
            unloaded: It is not served any more, although its file is there.

        Returns:
            The report of this worker.

        Raises:
            StoreUnavailableError: The store did not reply.
        """
        await self.fleet.set_unloaded(name, unloaded=unloaded)
        return await self.reload_fleet()

    async def reload_fleet(self) -> ReloadReport:
        """Reload in all workers of all replicas, and return the report of this worker.

        Models that it serves and that others have loaded are reported as loaded, too: a worker that has just started
        had loaded them already. Workers that have not reloaded within a minute are reported as failures.
        """
        report = await self.reload_worker()
        self._log_problems(report)
        try:
            late, loaded = await self.fleet.wait_for_workers(await self.fleet.announce(report.loaded))
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
        self._log_problems(report)
        if self._models.generation != generation:
            with contextlib.suppress(ServiceError):  # the store does not reply: announced once it does
                await self.fleet.announce(report.loaded)
        return report

    def notes(self) -> list[str]:
        """Return what an operator should read although requests can be served."""
        lost_at = self.fleet.lost_at
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
        self._log_problems(report)
        served = self._served()
        if missing := [model for model in announcement.loaded if model not in served]:
            _log.warning(
                "Another replica has loaded %s, which is not in the models folders of this one", ", ".join(missing)
            )
        return report.loaded

    def _log_problems(self, report: ReloadReport) -> None:
        """Log failures, models without an artifact and ignored files that the previous reload did not have."""
        problems = [
            *((logging.ERROR, f"Not loaded: {problem}") for problem in report.failed),
            *((logging.WARNING, f"{_NOT_KEPT}: {reason}") for reason in report.not_kept),
            *((logging.WARNING, f"A file of the models folder is ignored: {file}") for file in report.ignored),
        ]
        for level, problem in problems:
            if problem not in self._logged:
                _log.log(level, "%s", problem)
        self._logged = {problem for _, problem in problems}
