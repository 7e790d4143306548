"""`StreamOpDeps`: dependencies shared by the stream operations that run outside the batcher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from service.engine.admission import RequestAdmission
from service.engine.limits import StreamQuota
from service.models.registry import ModelRegistry
from service.store.state_store import StateStore
from service.types import StreamKey


@dataclass(frozen=True, slots=True)
class StreamOpDeps:
    """Dependencies shared by the stream operations that run outside the batcher.

    Attributes:
        store: Loads and commits records.
        models: The loaded models.
        admission: Accepts or rejects requests, and gives their deadlines.
        quota: Limit on the streams of a tenant; None: no limit.
        invalidate: Called with a stream that was changed or created, so that its cached record is dropped.
    """

    store: StateStore
    models: ModelRegistry
    admission: RequestAdmission
    quota: StreamQuota | None
    invalidate: Callable[[StreamKey], None]
