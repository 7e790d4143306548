"""`RetiredModels`: the loaded models that are in no models folder, for the streams with their states."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from stepwell.errors import ServiceError
from stepwell_export.runtime.errors import StepwellError

if TYPE_CHECKING:
    from stepwell.models.served import ServedModel

_log = logging.getLogger(__name__)
_MAX_PER_NAME: Final = 8
_MISSING_S: Final = 2.0  # until an artifact that could not be loaded is tried again

LoadArtifact = Callable[[str, bytes], "Awaitable[ServedModel | None]"]


class RetiredModels:
    """A cache of models by name and fingerprint; a model that is not in it is loaded from its artifact."""

    def __init__(self, load: LoadArtifact | None, *, timeout: float, ttl_s: float) -> None:
        """Create an empty cache.

        Args:
            load: Loads a model from its artifact, None if there is none; None: no artifacts are kept.
            timeout: Longest wait in seconds for a model that is loaded.
            ttl_s: Seconds after which a model is dropped unless it is used.
        """
        self._load = load
        self._timeout = timeout
        self._ttl_s = ttl_s
        self._models: dict[str, dict[bytes, ServedModel]] = {}  # the last used one last
        self._used_at: dict[ServedModel, float] = {}  # on the monotonic clock
        self._loading: dict[tuple[str, bytes], asyncio.Task[ServedModel | None]] = {}
        self._missing: dict[tuple[str, bytes], tuple[float, str]] = {}  # until when not to try again, and why

    def add(self, model: ServedModel) -> None:
        """Add a model; if its name has too many, the one that was used longest ago is dropped."""
        models = self._models.setdefault(model.name, {})
        models[model.fingerprint] = model
        self._used_at[model] = time.monotonic()
        while len(models) > _MAX_PER_NAME:
            del self._used_at[models.pop(next(iter(models)))]

    def get(self, name: str, fingerprint: bytes) -> ServedModel | None:
        """Return a model if it is in memory."""
        models = self._models.get(name)
        if models is None or (found := models.pop(fingerprint, None)) is None:
            return None
        models[fingerprint] = found
        self._used_at[found] = time.monotonic()
        return found

    async def find(self, name: str, fingerprint: bytes) -> ServedModel | None:
        """Return a model from its artifact; see `ModelRegistry.find`.

        Raises:
            ServiceError: The store did not reply; or `overloaded`: the model was not loaded in time.
        """
        if not self.may_find(name, fingerprint):
            return None
        key = name, fingerprint
        if (loading := self._loading.get(key)) is None:
            loading = self._loading[key] = asyncio.create_task(self._find(name, fingerprint))
            loading.add_done_callback(lambda task: self._ended(key, task))
        try:
            async with asyncio.timeout(self._timeout):
                return await asyncio.shield(loading)
        except TimeoutError:
            raise ServiceError(
                "overloaded",
                f"Model {name} ({fingerprint.hex()}), which wrote the state, was not loaded within "
                f"{self._timeout:g} s; nothing was applied.",
                fix="Send the same request again after a pause.",
            ) from None

    def may_find(self, name: str, fingerprint: bytes) -> bool:
        """Whether `find` may return a model."""
        return self._load is not None and time.monotonic() >= self._missing.get((name, fingerprint), (-math.inf,))[0]

    def why_missing(self, name: str, fingerprint: bytes) -> str:
        """Return why `find` returned no model, as the end of a sentence."""
        if self._load is None:
            return "`artifacts` is off, so that only models of the models folder can be used"
        return self._missing.get((name, fingerprint), (0.0, "no artifact of it is stored"))[1]

    def drop_unused(self) -> None:
        """Drop the models that were not used during the time to live."""
        now = time.monotonic()
        for name, models in self._models.items():
            for fingerprint, model in list(models.items()):
                if self._used_at[model] < now - self._ttl_s:
                    del models[fingerprint], self._used_at[model]
                    _log.info("Model %s (%s) was dropped: no stream has used it", name, fingerprint.hex())
        self._missing = {key: missing for key, missing in self._missing.items() if missing[0] > now}

    def _ended(self, key: tuple[str, bytes], task: asyncio.Task[ServedModel | None]) -> None:
        del self._loading[key]
        if not task.cancelled():
            task.exception()  # every caller may have been cancelled before it was raised

    async def _find(self, name: str, fingerprint: bytes) -> ServedModel | None:
        assert self._load is not None
        reason = "no artifact of it is stored"
        try:
            model = await self._load(name, fingerprint)
        except ServiceError:
            raise
        except (StepwellError, OSError) as exc:
            model, reason = None, f"its artifact was refused: {exc}"
            if reason != self._missing.get((name, fingerprint), (0.0, ""))[1]:
                _log.error("A stream needs model %s (%s), whose artifact was refused: %s", name, fingerprint.hex(), exc)
        if model is None:
            self._missing[name, fingerprint] = time.monotonic() + _MISSING_S, reason
            return None
        self.add(model)
        _log.info("Model %s/%d (%s) was loaded from its artifact", name, model.version, fingerprint.hex())
        return model
