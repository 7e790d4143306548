"""`Tracing`: traces of sampled requests, if the `OTEL_*` variables request them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from stepwell.addons.tracing.exemplars import Exemplars
from stepwell.addons.tracing.observer import BatchTimes
from stepwell.addons.tracing.otel import make_tracer
from stepwell.addons.tracing.tracer import Tracer
from stepwell.engine.observer import EngineObserver
from stepwell.metrics import SECONDS
from stepwell.requests.context import AppContext
from stepwell.service_addon import ServiceAddon


class Tracing(ServiceAddon):
    """Makes a tracer where traces are on, which is decided once, at the start."""

    def __init__(self, context: AppContext, version: str) -> None:
        """Create it.

        Raises:
            MissingExtraError, TracingError: As for `make_tracer`.
        """
        super().__init__(context, version)
        made = make_tracer(version, os.environ)
        self._tracer: Tracer | None = None
        self._end: Callable[[], None] | None = None
        if made is not None:
            self._tracer, self._end = made
            exemplars = Exemplars("stepwell_step_seconds", SECONDS)
            self._tracer.on_request = exemplars.add
            context.metrics.on_expose(exemplars.attach)
            context.metrics.on_refresh(lambda: exemplars.keep_models(context.engine.models.names()))

    def tracer(self) -> Tracer | None:
        """Return what traces requests."""
        return self._tracer

    def observer(self) -> EngineObserver | None:
        """Return what notes the times of batches."""
        return None if self._tracer is None else BatchTimes(self._tracer)

    async def close(self) -> None:
        """Send what is left."""
        if self._end is not None:
            await asyncio.to_thread(self._end)
