"""`Replies`: what the rows of a batch are answered, and the counts of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from service.engine.protocol.decide import check_idempotency_entry
from service.engine.protocol.replay import replay_prediction
from service.engine.stepping.queued import QueuedStep
from service.engine.stepping.record_cache import RecordCache
from service.errors import Applied, ServiceError
from service.store.record import IdempotencyEntry, Record
from service.types import BatchOutput, Prediction

if TYPE_CHECKING:
    from service.engine.observer import EngineObserver
    from service.models.registry import ServedModel

_log = logging.getLogger(__name__)

Reroute = Callable[[QueuedStep, bytes], bool]


class Replies:
    """Calls the callbacks of a model version's rows, each once.

    Attributes:
        reroute: Submits a row to the version that its stream's record belongs to; False: that version is not there.
        on_answered: Called with how many rows were answered, and how many bytes of inputs they had.
    """

    def __init__(
        self,
        served: ServedModel,
        cache: RecordCache,
        observer: EngineObserver,
        *,
        reroute: Reroute,
        answered: Callable[[int, int], None],
        time: Callable[[], float],
    ) -> None:
        self._served = served
        self._cache = cache
        self._observer = observer
        self._timestep_bytes = served.timestep_bytes
        self._time = time
        self.reroute = reroute
        self.on_answered = answered

    def fail_unanswered(self, batch: Sequence[QueuedStep], error: ServiceError) -> None:
        """Answer every row that has no answer yet with an error."""
        for row in batch:
            if not row.answered:
                if error.applied != "no":
                    self._cache.drop(row.name)
                self.reply(row, error)

    def reply_committed(self, rows: Sequence[QueuedStep], made: BatchOutput, begun: Sequence[int]) -> None:
        """Answer rows whose records were committed; `begun` are the indices of those that created their streams."""
        version, began = self._served.version, frozenset(begun)
        for at, row in enumerate(rows):
            row.answered = True
            if row.room is not None:
                row.room.end(begun=True)
            try:
                row.done(Prediction(made, at, False, at in began, version))
            except Exception:  # noqa: BLE001 - one waiter's fault must not fail the others; it is logged
                _log.exception(
                    "The callback of a step failed (model=%s, stream=%s)", self._served.name, row.timestep.key.stream
                )
        self.on_answered(len(rows), len(rows) * rows[0].timestep.length * self._timestep_bytes)
        now = self._time()
        self._observer.replied(self._served.name, [now - row.received for row in rows])
        self.count_applied(rows)

    def count_applied(self, rows: Sequence[QueuedStep]) -> None:
        """Count the timesteps of rows that were applied, by transport."""
        transports = [row.timestep.transport for row in rows]
        for transport in set(transports):
            self._observer.steps_applied(
                self._served.name, transport, rows[0].timestep.length * transports.count(transport)
            )

    def replay_by_key(self, row: QueuedStep, entry: IdempotencyEntry) -> None:
        """Answer a row with the first answer to its idempotency key.

        Raises:
            ServiceError: `idempotency_key_reused`.
        """
        self.replay(row, check_idempotency_entry(entry, row.intent(self._served.fingerprint)))

    def replay(self, row: QueuedStep, kept: Record | IdempotencyEntry) -> None:
        """Answer with the stored outputs, decoded by the version that computed them; nothing is computed again."""
        of_another = kept.fingerprint != self._served.fingerprint
        if of_another and self.reroute(row, kept.fingerprint):
            row.answered = True
            return
        packed = b"" if of_another else kept.outputs
        prediction = replay_prediction(self._served.manifest, row.timestep, packed, kept.step, kept.history_hash)
        self._observer.replays(1)
        self.reply(row, replace(prediction, version=self._served.version))

    def reply(self, row: QueuedStep, result: Prediction | ServiceError) -> None:
        """Answer one row, unless it is answered, and end its reservation of room for a stream."""
        if row.answered:
            return
        if row.room is not None:
            row.room.end(begun=isinstance(result, ServiceError) and result.applied != "no")
        self._call_reply(row, result)
        self.on_answered(1, row.timestep.length * self._timestep_bytes)
        seconds = self._time() - row.received
        self._observer.replied(self._served.name, [seconds])
        if isinstance(result, ServiceError):
            self._observer.rejected(self._served.name, seconds)

    def _call_reply(self, row: QueuedStep, result: Prediction | ServiceError) -> None:
        row.answered = True
        try:
            row.done(result)
        except Exception:  # noqa: BLE001 - one waiter's fault must not fail the others; it is logged
            _log.exception(
                "The callback of a step failed (model=%s, stream=%s)", self._served.name, row.timestep.key.stream
            )


def _log_failed_callback(model: str, row: QueuedStep) -> None:
    _log.exception("The callback of a step failed (model=%s, stream=%s)", model, row.timestep.key.stream)


def failed(applied: Applied) -> ServiceError:
    """Return what a step is answered that failed for a reason that nobody foresaw."""
    return ServiceError(
        "internal", "The step failed for a reason of the server's own.", fix="Send it again.", applied=applied
    )
