"""`DriftMonitor`: observes the models of one worker, and reads what all workers have seen."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from stepwell.addons.drift.observed_model import ObservedModel, name_of
from stepwell.addons.drift.report import FeatureReport, feature_reports
from stepwell.addons.drift.windows import WINDOWS, SketchName, read_window
from stepwell.errors import ServiceError

if TYPE_CHECKING:
    from stepwell.addons.drift.features import ModelFeatures
    from stepwell.addons.drift.sampler import BatchSampler
    from stepwell.models.served import ServedModel
    from stepwell.store.state_store import StateStore

_log = logging.getLogger(__name__)
_READ_EVERY_S: Final = 10.0  # for the metrics


class DriftMonitor:
    """Observes committed timesteps while models are stepped.

    Attributes:
        is_on: Whether timesteps are observed.
        reports: What the features of each model version showed in the last hour when it was last read for the metrics,
            by model and version.
    """

    def __init__(self, store: StateStore, *, is_on: bool, max_features: int) -> None:
        """Create it; `run` has to be called every second.

        Args:
            store: The store.
            is_on: Whether timesteps are observed.
            max_features: The most features of a model version.
        """
        self.is_on = is_on
        self.reports: dict[tuple[str, int], list[FeatureReport]] = {}
        self._store = store
        self._max_features = max_features
        self._worker = secrets.token_hex(8)
        self._observed: dict[SketchName, ObservedModel] = {}
        self._n_users: Counter[SketchName] = Counter()
        self._read_at = 0.0  # on the monotonic clock

    def sampler(self, served: ServedModel) -> BatchSampler | None:
        """Return the sampler of a model version that begins to be stepped; None: it is not observed."""
        if not self.is_on:
            return None
        observed = ObservedModel(self._store, served.responding, self._max_features, self._worker)
        self._n_users[observed.name] += 1
        return self._observed.setdefault(observed.name, observed).sampler

    def end_sampler(self, served: ServedModel) -> None:
        """End what `sampler` began: the model version, or the pair, is no longer stepped."""
        if self.is_on:
            self._n_users[self._name(served)[1]] -= 1

    def observed(self) -> list[tuple[str, int]]:
        """Return model and version of what is observed."""
        return [(each.model, each.version) for each in self._observed.values()]

    async def run(self) -> None:
        """Count what was sampled, write what is due, and read the last hour for the metrics if it is time.

        Raises:
            ServiceError: The store does not reply.
        """
        for observed in list(self._observed.values()):
            observed.count(time.time())
            await asyncio.sleep(0)  # requests are processed between two models
        await self._write()
        if time.monotonic() >= self._read_at:
            self._read_at = time.monotonic() + _READ_EVERY_S
            await self._read_reports()

    async def close(self) -> None:
        """Write what was sampled since the last write."""
        for observed in self._observed.values():
            observed.count(time.time())
        try:
            await self._write(is_last=True)
        except ServiceError as exc:
            _log.debug("The last sampled timesteps are not in the sketches: %s", exc)

    async def windows(self, served: ServedModel) -> tuple[bool, dict[str, list[FeatureReport]]]:
        """Return whether a model version has a reference, and what its features show in each window.

        Raises:
            ServiceError: The store does not reply.
        """
        features, name = self._name(served)
        now, found = time.time(), {}
        for window in WINDOWS:
            sketch = await read_window(self._store, name, window, now)
            found[window.name] = feature_reports(features, sketch)
        return features.has_reference, found

    def _name(self, served: ServedModel) -> tuple[ModelFeatures, SketchName]:
        return name_of(served.responding, self._max_features)

    async def _write(self, *, is_last: bool = False) -> None:
        for name, observed in list(self._observed.items()):
            is_unused = self._n_users[name] <= 0
            await observed.windows.write(time.time(), is_last=is_last or is_unused)
            if is_unused and self._n_users[name] <= 0:
                del self._observed[name], self._n_users[name]

    async def _read_reports(self) -> None:
        reports = {}
        for observed in list(self._observed.values()):
            if observed.features.has_reference:
                sketch = await read_window(self._store, observed.name, WINDOWS[0], time.time())
                reports[observed.model, observed.version] = feature_reports(observed.features, sketch)
        self.reports = reports
