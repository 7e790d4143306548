"""`ModelReloads`: reloads the models of this worker; an add-on's subclass has all workers on the store do the same."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stepwell.models.changes import ReloadReport
    from stepwell.models.registry import ModelRegistry

_log = logging.getLogger(__name__)
_NOT_KEPT: Final = "A model's artifact is not kept, so its streams need its file"


class ModelReloads:
    """Reloads on request, and when files change."""

    def __init__(self, models: ModelRegistry) -> None:
        """Create it; `load` loads.

        Args:
            models: The models of this worker.
        """
        self._models = models
        self._logged: set[str] = set()  # the problems of the last reload

    async def load(self) -> None:
        """Load the models of this worker for the first time."""
        report = await self.reload_worker()
        _log.info("Models: %s", ", ".join(report.loaded) or "none")

    async def run(self) -> None:
        """Do what goes on while the service runs, until it is cancelled: here nothing."""

    async def close(self) -> None:
        """Disconnect."""

    async def reload_worker(self) -> ReloadReport:
        """Reload the models of this worker, without those that were unloaded, and log new problems."""
        report = await self._models.reload()
        problems = [
            *((logging.ERROR, f"Not loaded: {problem}") for problem in report.failed),
            *((logging.WARNING, f"{_NOT_KEPT}: {reason}") for reason in report.not_kept),
            *((logging.WARNING, f"A file of the models folder is ignored: {file}") for file in report.ignored),
        ]
        for level, problem in problems:
            if problem not in self._logged:
                _log.log(level, "%s", problem)
        self._logged = {problem for _, problem in problems}
        return report

    async def reload(self) -> ReloadReport:
        """Reload on request."""
        return await self.reload_worker()

    async def reload_changed(self) -> ReloadReport:
        """Reload what has changed since the last time, if anything has."""
        return await self.reload_worker()

    async def set_unloaded(self, name: str, *, unloaded: bool) -> ReloadReport:
        """Unload a model until it is loaded again; or load it.

        Args:
            name: The model's name.
            unloaded: It is not served any more, although its file is there.

        Raises:
            StoreUnavailableError: The store did not reply.
        """
        others = self._models.unloaded - {name}
        self._models.unloaded = others | {name} if unloaded else others
        return await self.reload()

    def notes(self) -> list[str]:
        """Return what an operator should read although requests can be served."""
        return []
