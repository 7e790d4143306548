"""`Replies`: replies to the rows of a batch, and counts the replies."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from stepwell.engine.packing import unpack_outputs
from stepwell.engine.protocol.decide import check_idempotency_entry
from stepwell.engine.protocol.replay import after_unknown, replay_prediction, several, skipped_prediction
from stepwell.engine.stepping.queued import QueuedStep
from stepwell.engine.stepping.responding import Responding
from stepwell.errors import ServiceError
from stepwell.releases.moves import Standing
from stepwell.store.idempotency_entry import IdempotencyEntry
from stepwell.store.record import CHANGED_VERSION, Record, version_of
from stepwell.types import BatchOutput, Prediction
from stepwell_client.wire.outcomes import Applied

if TYPE_CHECKING:
    from stepwell.engine.stepping.columns.batch import ColumnarBatch
    from stepwell.engine.stepping.pipeline import PipelineDeps

_log = logging.getLogger(__name__)


class Replies:
    """Calls the callbacks of a model version's rows, each once.

    Attributes:
        reroute: Submits a row to the version that its stream's record belongs to; False: that version is not there.
        on_answered: Called with the number of rows that got a response, and the bytes of their inputs.
    """

    def __init__(self, deps: PipelineDeps) -> None:
        self._served = deps.served
        self._cache = deps.cache
        self._observer = deps.observer
        self._refusals = deps.refusals
        self._timestep_bytes = deps.served.timestep_bytes
        self._plans = deps.plans
        self._time = time.monotonic
        self.reroute = deps.reroute
        self.on_answered = deps.on_answered

    def fail_unanswered(self, batch: Sequence[QueuedStep], error: ServiceError) -> None:
        """Reply with an error to every row that has no response yet."""
        for row in batch:
            if not row.answered:
                if error.applied != "no":
                    self._cache.drop(row.name)
                self.reply(row, error)

    def reply_committed(
        self,
        rows: Sequence[QueuedStep],
        output: BatchOutput,
        created: Sequence[int],
        responding: Responding | None = None,
    ) -> None:
        """Reply to rows whose records were committed.

        Args:
            rows: The rows.
            output: Their predictions.
            created: Indices of the rows that created their streams.
            responding: The versions that responded; None: that of the model, as before.
        """
        version, has_changed, created_rows = self._served.version, False, frozenset(created)
        received = list[float]()
        for i, row in enumerate(rows):
            if row.answered:  # its deadline has passed
                continue
            received.append(row.received)
            if responding is not None:
                version, has_changed = responding.versions[i], responding.changed[i]
            row.answered = True
            if row.reservation is not None:
                row.reservation.end(begun=True)
            try:
                prediction = Prediction(output, i, False, i in created_rows, version, shows_version=has_changed)
                if row.timestep.source is not None:
                    by_timestep = () if responding is None else responding.by_timestep[i]
                    prediction = self._with_skipped(row, prediction, by_timestep)
                row.done(prediction)
            except Exception:  # noqa: BLE001 - a fault in one callback must not fail the others; it is logged
                self._log_failed_callback(row)
        self.on_answered(len(received), len(received) * rows[0].timestep.length * self._timestep_bytes)
        now = self._time()
        self._observer.replied(self._served.name, [now - at for at in received])
        self.count_applied(rows)

    def reply_columnar(self, batch: ColumnarBatch, output: BatchOutput) -> None:
        """Reply to a batch of which every row was applied to a stream that existed, and count it.

        Args:
            batch: The batch.
            output: Its predictions.
        """
        served, n_rows = self._served, len(batch)
        if batch.has_answered_row:
            self.reply_committed(list(batch), output, ())
            return
        batch.reply(output, served.version)
        self.on_answered(n_rows, n_rows * batch.length * self._timestep_bytes)
        self._observer.replied(served.name, batch.latencies(self._time()))
        for transport, rows in batch.rows_by_transport.items():
            self._observer.steps_applied(served.name, transport, rows * batch.length)

    def _with_skipped(self, row: QueuedStep, prediction: Prediction, by_timestep: Sequence[int]) -> Prediction:
        """Return the response to a row with a source: with the answers of the timesteps that were skipped."""
        versions = row.answer_versions(prediction.version, by_timestep)
        versions = several((*(0,) * row.unknown, *versions)) if row.timestep.keep == "all" else ()
        if row.skipped and row.timestep.keep == "all":
            kept = unpack_outputs(self._served.manifest, row.kept)
            outputs = {
                name: after_unknown(row.unknown, np.concatenate([kept[name], array]) if row.kept else array)[None]
                for name, array in prediction.outputs.items()
            }
            output = BatchOutput(outputs, [prediction.step], [prediction.state_id])
            prediction = replace(prediction, batch=output, row=0)
        return replace(
            prediction,
            skipped=row.skipped,
            unknown=row.unknown,
            source_changed=row.source_changed,
            shows_version=True,
            versions=versions,
        )

    def count_applied(self, rows: Sequence[QueuedStep]) -> None:
        """Count the timesteps of rows that were applied, by transport."""
        transports = [row.timestep.transport for row in rows]
        for transport in set(transports):
            self._observer.steps_applied(
                self._served.name, transport, rows[0].applied.length * transports.count(transport)
            )

    def replay_by_key(self, row: QueuedStep, entry: IdempotencyEntry) -> None:
        """Reply with the stored result of the row's idempotency key.

        Raises:
            ServiceError: `idempotency_key_reused`.
        """
        self.replay(row, check_idempotency_entry(entry, row.intent(self._served.fingerprint)))

    def replay(self, row: QueuedStep, stored: Record | IdempotencyEntry) -> None:
        """Reply with the stored outputs, decoded by the version that computed them; nothing is computed again."""
        if isinstance(stored, Record):
            self._plans.fingerprint(self._served.name, Standing.of(stored).assignment)
        other_version = stored.fingerprint != self._served.fingerprint
        if other_version and self.reroute(row, stored.fingerprint):
            row.answered = True
            self._cache.drop(row.name)
            return
        outputs = b"" if other_version else stored.outputs
        manifest, timestep = self._served.manifest, row.timestep
        if isinstance(stored, Record) and timestep.source is not None:
            prediction = skipped_prediction(manifest, timestep, stored, outputs)
        else:
            prediction = replay_prediction(manifest, timestep, outputs, stored.step, stored.history_hash)
        self._observer.replays(1)
        self.reply(row, self._with_version(prediction, stored))

    def _with_version(self, prediction: Prediction, stored: Record | IdempotencyEntry) -> Prediction:
        """Return a stored result with the version that computed it."""
        version = self._served.version
        if isinstance(stored, IdempotencyEntry):
            versions = stored.versions if prediction.batch.arrays and len(stored.versions) > 1 else ()
            return replace(prediction, version=version, shows_version=stored.shows_version, versions=versions)
        if self._served.halves is not None and (pair := Standing.of(stored).pair) is not None:
            version = self._served.halves[pair.responded].version
        if prediction.shows_version:  # it has a source
            return replace(prediction, version=prediction.version or version)
        has_changed = bool(stored.flags & CHANGED_VERSION)
        if has_changed:  # a sweep may have moved the stream since
            version = version_of(stored.flags) or version
        return replace(prediction, version=version, shows_version=has_changed)

    def reply(self, row: QueuedStep, result: Prediction | ServiceError) -> None:
        """Reply to one row, unless it has its response, and end its reservation of a stream."""
        if row.answered:
            return
        if row.reservation is not None:
            row.reservation.end(begun=isinstance(result, ServiceError) and result.applied != "no")
        row.answered = True
        try:
            row.done(result)
        except Exception:  # noqa: BLE001 - a fault in one callback must not fail the others; it is logged
            self._log_failed_callback(row)
        self.on_answered(1, row.timestep.length * self._timestep_bytes)
        seconds = self._time() - row.received
        self._observer.replied(self._served.name, [seconds])
        if isinstance(result, ServiceError):
            self._observer.rejected(self._served.name, seconds)
            self._refusals.add(*row.timestep.key, result)

    def _log_failed_callback(self, row: QueuedStep) -> None:
        _log.exception(
            "The callback of a step failed (model=%s, stream=%s)", self._served.name, row.timestep.key.stream
        )


def failed(applied: Applied) -> ServiceError:
    """Return the error for a step that failed for an unexpected reason."""
    return ServiceError(
        "internal", "The step failed because of an internal error.", fix="Send the same request again.", applied=applied
    )


def service_ended() -> ServiceError:
    """Return the error for a step that was not run before the service ended."""
    return ServiceError(
        "draining",
        "The service ended before the step was run; nothing was applied.",
        fix="Send the same request to another replica.",
    )
