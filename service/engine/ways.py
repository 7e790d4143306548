"""`Ways`: what the operations on streams beside the batches have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from service.engine.models import ModelShelf
from service.engine.tenants import StreamQuota
from service.engine.types import StreamKey
from service.store.redis import StateStore


@dataclass(frozen=True, slots=True)
class Ways:
    """To the store, to the models, and to what the engine has to say.

    Attributes:
        store: Where records live.
        shelf: The models.
        begin: Returns the deadline of a request that begins now, or raises why none is taken.
        quota: Of the streams that a tenant may have; None: as many as it likes.
        forget: Told which stream moved or came to be, so that nobody trusts an older view of it.
    """

    store: StateStore
    shelf: ModelShelf
    begin: Callable[[], float]
    quota: StreamQuota | None
    forget: Callable[[StreamKey], None]
