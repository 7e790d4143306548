"""`Replies`: replies to the rows of a batch, and counts the replies; `responding_versions`: who has responded."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from msgspec.structs import replace

from stepwell.engine.packing import all_true, select_returned, unpack_outputs, unpack_rows
from stepwell.engine.protocol.decide import check_idempotency_entry
from stepwell.engine.protocol.replay import after_unknown, replay_prediction, skipped_prediction, versions_if_several
from stepwell.engine.stepping.queued import QueuedStep, call_back
from stepwell.errors import ServiceError
from stepwell.store.idempotency_entry import IdempotencyEntry
from stepwell.store.record import CHANGED_VERSION, NO_HISTORY, Record, version_of
from stepwell.types import STARTS, BatchOutput, BulkPrediction, Prediction
from stepwell_client.wire.outcomes import Applied
from stepwell_export.runtime.manifest import Array

if TYPE_CHECKING:
    from stepwell.engine.stepping.batch import Batch, ColumnBatch
    from stepwell.engine.stepping.model_runner import BatchRun
    from stepwell.engine.stepping.pipeline import PipelineDeps
    from stepwell.engine.stepping.record_loader import Records
    from stepwell.models.joined import JoinedRun
    from stepwell.models.served import ServedModel


class Responding(NamedTuple):
    """The versions that have responded to the rows of a batch.

    Attributes:
        versions: The number of each; in a chunk, of the one that has responded to its last timestep.
        fingerprints: The fingerprint of each, 8 bytes.
        changed: Whether each is another one than before.
        by_timestep: For each row of several versions, the number of the one that has responded to each timestep; empty
            for all others.
    """

    versions: Sequence[int]
    fingerprints: Sequence[bytes]
    changed: Sequence[bool]
    by_timestep: Sequence[tuple[int, ...]]

    def select(self, indices: Sequence[int]) -> Responding:
        """Return some of the rows."""
        return Responding(*([column[i] for i in indices] for column in self))  # type: ignore[arg-type]


def responding_versions(served: ServedModel, records: Records, beside: JoinedRun | None) -> Responding | None:
    """Return the versions that have responded; None: that of the model, and no stream has changed its version.

    Args:
        served: The model that was run.
        records: The records before the run.
        beside: What the run of joined versions returned beside the predictions.
    """
    n, objects = len(records.at), records.objects()
    if (joined := served.joined) is None or beside is None:
        fingerprint = served.fingerprint
        moved = {j for j, row in objects if row.moved_from not in (b"", fingerprint)}
        changed = [j in moved for j in range(n)] if moved else []
        return Responding([served.version] * n, [fingerprint] * n, changed, [()] * n) if moved else None
    if joined.is_fixed and not objects:
        return None
    before, responders = joined.responded(records.states), beside.responders
    usual = served.parts.index(served.responding)
    if not objects and all_true(before == usual) and all_true(responders == usual):
        return None
    versions = [part.version for part in served.parts]
    fingerprints = [part.fingerprint for part in served.parts]
    after, rows = responders[:, -1].tolist(), dict(objects)
    return Responding(
        [versions[i] for i in after],
        [fingerprints[i] for i in after],
        [
            _has_changed(rows.get(j), fingerprints[is_now], fingerprints[was])
            for j, (is_now, was) in enumerate(zip(after, before.tolist(), strict=True))
        ],
        [tuple([versions[i] for i in row]) if len({*row}) > 1 else () for row in responders.tolist()],
    )


def _has_changed(row: QueuedStep | None, after: bytes, before: bytes) -> bool:
    if row is not None:
        if row.moved_from:
            return row.moved_from != after
        if row.creates or row.timestep.lifecycle in STARTS:
            return False
    return after != before


class Replies:
    """Calls the callbacks of a model version's rows, each once."""

    def __init__(self, deps: PipelineDeps) -> None:
        self._served = deps.served
        self._cache = deps.cache
        self._observer = deps.observer
        self._placement = deps.placement
        self._time = time.monotonic
        self._hand_over = deps.hand_over

    def fail_unanswered(self, batch: Batch, error: ServiceError) -> None:
        """Reply with an error to every row that has no response yet."""
        for row in batch.unanswered():
            if error.applied != "no":
                self._cache.drop(row.name)
            self.reply(row, error)

    def reply_committed(
        self,
        records: Records,
        output: BatchOutput,
        responding: Responding | None = None,
        created: frozenset[int] = frozenset(),
    ) -> None:
        """Reply to rows whose records were committed.

        Args:
            records: The rows.
            output: Their predictions.
            responding: The versions that responded; None: that of the model, as before.
            created: Which of the rows, by their index, created their streams.
        """
        batch, at, objects, model = records.batch, records.at, records.batch.rows, self._served.name
        usual: Sequence[int] = [j for j, i in enumerate(at) if i not in objects] if objects else range(len(at))
        answered, length = (records.of(at, usual), records.length) if objects else (at, batch.length)
        if usual:  # only columns have rows without an object; `isinstance` takes long for a subclass of an ABC
            columns = cast("ColumnBatch", batch)
            if responding is None:
                versions = [self._served.version] * len(at)
                has_source = batch.sources is not None
                columns.reply_to(answered, BulkPrediction(output, versions, has_source, created=created), usual)
            else:
                for shown in (False, True):
                    if part := [j for j in usual if responding.changed[j] == shown]:
                        found = BulkPrediction(output, responding.versions, shown, created=created)
                        columns.reply_to(records.of(at, part), found, part)
        if objects:
            answered = [*answered, *self._reply_to_objects(records, output, responding, created)]
        self._observer.replied(model, batch.waited(answered, self._time()))
        for transport, rows in batch.by_transport(at).items():
            self._observer.steps_applied(model, transport, rows * length)

    def replay_together(self, batch: ColumnBatch, stored: Mapping[int, Record]) -> None:
        """Reply to rows without an object with the stored predictions of a step; nothing is computed again.

        Args:
            batch: The batch.
            stored: The record of each row, with as many predictions as are returned.
        """
        records, rows = [*stored.values()], [*stored]
        arrays: Mapping[str, Array] = {}
        if batch.keep != "none":
            packed = np.frombuffer(b"".join([record.outputs for record in records]), np.uint8)
            arrays = unpack_rows(self._served.manifest, packed.reshape(len(rows), len(records[0].outputs)))
        output = BatchOutput(arrays, [one.step for one in records], [one.history_hash for one in records])
        found = BulkPrediction(output, [self._served.version] * len(rows), replayed=True)
        batch.reply_to(rows, found, range(len(rows)))
        self._observer.replays(len(rows))
        self._observer.replied(self._served.name, batch.waited(rows, self._time()))

    def reject_together(self, batch: ColumnBatch, errors: Mapping[int, ServiceError]) -> None:
        """Reply to rows without an object with errors.

        Args:
            batch: The batch.
            errors: The error of each row.
        """
        batch.reject_rows(errors)
        rows = [*errors]
        waited = batch.waited(rows, self._time())
        self._observer.replied(self._served.name, waited)
        for i, seconds in zip(rows, waited, strict=True):
            self._observer.rejected(self._served.name, seconds)
            self._observer.refused(*batch.key(i), errors[i])

    def _reply_to_objects(
        self, records: Records, output: BatchOutput, responding: Responding | None, created: frozenset[int]
    ) -> list[int]:
        """Reply to the rows that have objects, and return those that had no response yet."""
        version, has_changed = self._served.version, False
        answered = list[int]()
        for j, row in records.objects():
            if row.answered:  # its deadline has passed
                continue
            answered.append(records.at[j])
            if responding is not None:
                version, has_changed = responding.versions[j], responding.changed[j]
            prediction = Prediction(output, j, False, j in created, version, shows_version=has_changed)
            if row.timestep.source is not None:
                by_timestep = () if responding is None else responding.by_timestep[j]
                prediction = self._with_skipped(row, prediction, by_timestep)
            self._end(row, prediction, begun=True)
        return answered

    def reply_uncommitted(self, records: Records, run: BatchRun) -> None:
        """Reply to dry runs, with the positions that the streams would reach, or to timesteps of no stream."""
        batch, at = records.batch, records.at
        rows = [batch.rows[i] for i in at]
        outputs = select_returned(batch.keep, run.outputs)
        if not batch.dry_run:
            self.reply_committed(records, BatchOutput(outputs, [0] * len(at), [NO_HISTORY] * len(at)))
            return
        found = [row.record for row in rows]
        steps = [batch.length + (0 if record is None else record.step) for record in found]
        output = BatchOutput(outputs, steps, [b"" if record is None else record.history_hash for record in found])
        responding = responding_versions(self._served, records, run.beside)
        for j, row in enumerate(rows):
            version, has_changed = self._served.version, False
            if responding is not None:
                version, has_changed = responding.versions[j], responding.changed[j]
            self.reply(row, Prediction(output, j, version=version, shows_version=has_changed))

    def _with_skipped(self, row: QueuedStep, prediction: Prediction, by_timestep: Sequence[int]) -> Prediction:
        """Return the response to a row with a source: with the answers of the timesteps that were skipped."""
        versions = row.answer_versions(prediction.version, by_timestep)
        versions = versions_if_several((*(0,) * row.unknown, *versions)) if row.timestep.keep == "all" else ()
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

    def replay_by_key(self, row: QueuedStep, entry: IdempotencyEntry) -> None:
        """Reply with the stored result of the row's idempotency key.

        Raises:
            ServiceError: `idempotency_key_reused`.
        """
        self.replay(row, check_idempotency_entry(entry, row.intent(self._served.fingerprint)))

    def replay(self, row: QueuedStep, stored: Record | IdempotencyEntry) -> None:
        """Reply with the stored outputs, decoded by the version that computed them; nothing is computed again."""
        if isinstance(stored, Record):
            self._placement.announce(stored)
        other_version = stored.fingerprint != self._served.fingerprint
        if other_version and self._hand_over(row, stored.fingerprint):
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
        if stored.fingerprint == self._served.fingerprint and (part := self._served.responding_part(stored.state)):
            version = part.version
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
        self._end(row, result, begun=isinstance(result, ServiceError) and result.applied != "no")
        seconds = self._time() - row.received
        self._observer.replied(self._served.name, [seconds])
        if isinstance(result, ServiceError):
            self._observer.rejected(self._served.name, seconds)
            self._observer.refused(*row.timestep.key, result)

    def _end(self, row: QueuedStep, result: Prediction | ServiceError, *, begun: bool) -> None:
        """Call a row's callback; `begun` is whether its stream may begin by it."""
        if row.reservation is not None:
            row.reservation.end(begun=begun)
        row.answered = True
        call_back(row.done, result, row.timestep.key)


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
