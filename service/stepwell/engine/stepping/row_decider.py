"""`RowDecider`: decides a row by its stream's record in the store: it is applied, or gets its response at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepwell.engine.packing import prediction_bytes
from stepwell.engine.protocol.decide import Decision, decide
from stepwell.engine.tenant_limits import Reservation
from stepwell.errors import ServiceError, wrong_state_size
from stepwell.types import ENDS, STARTS

if TYPE_CHECKING:
    from stepwell.engine.stepping.pipeline import PipelineDeps
    from stepwell.engine.stepping.queued import QueuedStep
    from stepwell.engine.stepping.replies import Replies


class RowDecider:
    """Decides rows of one model version by the rules of the protocol."""

    def __init__(self, deps: PipelineDeps, replies: Replies) -> None:
        self._served = deps.served
        self._state_bytes = deps.served.step_model.state_bytes
        self._answer_bytes = prediction_bytes(deps.served.manifest.answered)
        self._placement = deps.placement
        self._quota = deps.quota
        self._replies = replies

    def applies(self, row: QueuedStep) -> bool:
        """Whether a row is to be applied to its loaded record; else it has its response, or its stream is missing."""
        if row.answered:
            return False
        record = row.record
        if record is not None and row.reservation is not None:
            row.reservation.end(begun=False)  # another writer has created the stream in the meantime
        try:
            if row.entry is not None:
                self._replies.replay_by_key(row, row.entry)
            elif decide(record, row.intent(None)) is not Decision.APPLY:
                assert record is not None
                self._replies.replay(row, record)
            elif not self._placement.place(row):
                pass  # the model that steps the stream replies
            elif (
                (record := row.record) is not None
                and len(record.state) != self._state_bytes
                and row.timestep.lifecycle not in STARTS
            ):
                raise wrong_state_size(len(record.state), self._state_bytes)
            else:
                if record is None and row.timestep.lifecycle not in ENDS and not row.dry_run:
                    self._reserve_stream(row)
                row.skip_passed(self._answer_bytes, self._served.version)
                return True
        except ServiceError as exc:
            if exc.code != "stream_not_found" or row.is_exact:
                self._replies.reply(row, exc)
        return False

    def _reserve_stream(self, row: QueuedStep) -> None:
        """Reserve a stream of the tenant's quota, once per row, however often the row is attempted."""
        if self._quota is not None:
            row.reservation = row.reservation or Reservation(self._quota, row.timestep.key.tenant)
            row.reservation.take()
