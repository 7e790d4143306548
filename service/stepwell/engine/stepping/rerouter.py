"""`Rerouter`: submits timesteps to the model version that wrote their streams' records, once that version is loaded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from stepwell.background import cancel
from stepwell.engine.stepping.replies import service_ended
from stepwell.errors import ServiceError

if TYPE_CHECKING:
    from stepwell.engine.stepping.queued import QueuedStep
    from stepwell.models.registry import ModelRegistry
    from stepwell.models.served import ServedModel

_SWEEP_S: Final = 0.25  # between two checks for expired timesteps while a model is loaded

_Rows = list[tuple["ServedModel", "QueuedStep"]]


class Rerouter:
    """Moves timesteps between the batchers of one model's versions.

    If a version has to be loaded first, the timesteps of all its streams wait for that together, in order; batches of
    other models and versions continue meanwhile.
    """

    def __init__(
        self,
        models: ModelRegistry,
        requeue: Callable[[ServedModel, QueuedStep], None],
        on_answered: Callable[[int, int], None],
        *,
        timeout: float,
    ) -> None:
        """Create it.

        Args:
            models: The loaded models.
            requeue: Submits a timestep to the batcher of a model version.
            on_answered: Called with the number of rows that got an error here, and the bytes of their inputs.
            timeout: Seconds from receipt to response.
        """
        self._models = models
        self._requeue = requeue
        self._on_answered = on_answered
        self._timeout = timeout
        self._waiting: dict[tuple[str, bytes], _Rows] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def reroute(self, requested: ServedModel, queued: QueuedStep, fingerprint: bytes) -> bool:
        """Submit a timestep to the version that wrote its stream's record, now or when it is loaded.

        Returns:
            False: That version is not to be had here, or it has other inputs.
        """
        key = queued.timestep.key.model, fingerprint
        if (waiting := self._waiting.get(key)) is not None:
            waiting.append((requested, queued))
            return True
        served = self._models.by_fingerprint(*key)
        if served is not None:
            if _tensor_signature(served) != _tensor_signature(requested):
                return False
            self._requeue(served, queued)
            return True
        if not self._models.may_find(*key):
            return False
        self._waiting[key] = [(requested, queued)]
        task = asyncio.create_task(self._requeue_when_found(key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def close(self) -> None:
        """Reply with errors to the timesteps that wait."""
        await cancel(self._tasks)
        for key in list(self._waiting):
            self._reject(self._waiting.pop(key), service_ended())

    async def _requeue_when_found(self, key: tuple[str, bytes]) -> None:
        finding = asyncio.ensure_future(self._models.find(*key))
        while not (await asyncio.wait({finding}, timeout=_SWEEP_S))[0]:
            self._reject_expired(key)
        rows, error = self._waiting.pop(key), finding.exception()
        if isinstance(error, ServiceError):
            self._reject(rows, error)
            return
        served = None if error is not None else finding.result()
        for requested, queued in rows:  # to the requested version if there is no other: it replies with the reason
            usable = served is not None and _tensor_signature(served) == _tensor_signature(requested)
            self._requeue(served if usable and served is not None else requested, queued)
        if error is not None:
            raise error

    def _reject_expired(self, key: tuple[str, bytes]) -> None:
        rows, latest = self._waiting[key], time.monotonic() - self._timeout
        expired = [row for row in rows if row[1].received <= latest]
        self._waiting[key] = [row for row in rows if row[1].received > latest]
        error = ServiceError(
            "overloaded",
            f"The model that wrote the stream's state, {key[1].hex()}, was not loaded before the deadline; nothing "
            "was applied.",
            fix="Send the same request again after a pause.",
        )
        self._reject(expired, error)

    def _reject(self, rows: _Rows, error: ServiceError) -> None:
        for requested, queued in rows:
            queued.reject(error)
            self._on_answered(1, queued.timestep.length * requested.timestep_bytes)


def _tensor_signature(served: ServedModel) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return the inputs of a model: versions with the same inputs accept the same timesteps."""
    return [(spec.name, spec.dtype, spec.row_shape) for spec in served.inputs]
