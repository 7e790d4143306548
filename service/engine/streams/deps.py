"""`StreamOpDeps`: what the operations on streams beside the batches have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from service.engine.limits import StreamQuota
from service.models.registry import ModelRegistry
from service.store.state_store import StateStore
from service.types import StreamKey


@dataclass(frozen=True, slots=True)
class StreamOpDeps:
    """To the store, to the models, and to what the engine has to say.

    Attributes:
        store: Where records live.
        shelf: The models.
        begin: Returns the deadline of a request that begins now, or raises why none is taken.
        quota: Of the streams that a tenant may have; None: as many as it likes.
        forget: Told which stream moved or came to be, so that nobody trusts an older view of it.
    """

    store: StateStore
    models: ModelRegistry
    start: Callable[[], float]
    quota: StreamQuota | None
    invalidate: Callable[[StreamKey], None]
