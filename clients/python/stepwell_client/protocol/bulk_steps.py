"""`BulkSteps`: a timestep of each of many streams in one request, on top of `ModelProtocol`; without network access."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stepwell_client.errors import ClientError
from stepwell_client.protocol import decoding
from stepwell_client.protocol.exchange import Exchange
from stepwell_client.protocol.inputs import Inputs, Source, check_row, packed, source_document, stack
from stepwell_client.protocol.requests import ClientRequest, StreamCursor
from stepwell_client.protocol.retry import RetryPolicy
from stepwell_client.protocol.steps import ModelProtocol, timed
from stepwell_client.results import StepResult
from stepwell_client.wire.formats import Array

_Rows = Mapping[str, Mapping[str, Array]]
"""The arrays by input, by stream id."""

_Results = dict[str, StepResult | ClientError]


class BulkSteps(ModelProtocol):
    """The exchanges of one model and its streams, with bulk steps."""

    @timed
    def step_many(
        self,
        policy: RetryPolicy,
        cursors: Sequence[StreamCursor],
        xs: Mapping[str, Inputs],
        sources: Mapping[str, Source] | None = None,
    ) -> Exchange[_Results]:
        """Step many streams by one timestep each; streams with a transient error are retried.

        Args:
            policy: The retries of this call.
            cursors: The streams, each once.
            xs: The inputs by stream id.
            sources: Where each timestep stands in its log, by stream id; None: they are from none.
        """
        if sources is not None and (missing := xs.keys() - sources.keys()):
            raise ClientError(
                "bad_request",
                f"`sources` has none for stream {min(missing)!r}; expected one for each stream.",
                fix="Step streams without a source in another call.",
            )
        rows: dict[str, dict[str, Array]] = {}
        rejected: _Results = {}
        for cursor in cursors:
            try:
                row = yield from self._prepare_inputs(xs[cursor.stream], policy)
                check_row(row, self._declared)
            except ClientError as error:
                if error.code != "bad_input":
                    raise
                rejected[cursor.stream] = error
            else:
                rows[cursor.stream] = row
        fitting = [cursor for cursor in cursors if cursor.stream in rows]
        if sources is not None:
            return rejected | (yield from self._apply_from_sources(fitting, rows, policy, sources))
        for cursor in fitting:
            yield from self._ensure_cursor(cursor, policy)
        return rejected | (yield from self._apply_bulk(fitting, rows, policy))

    def _apply_from_sources(
        self, cursors: Sequence[StreamCursor], rows: _Rows, policy: RetryPolicy, sources: Mapping[str, Source]
    ) -> Exchange[_Results]:
        """Send a timestep of each stream's source; as `_apply_from_source`."""
        for cursor in cursors:
            self._forget_position(cursor)
        results = yield from self._send_rows(cursors, rows, policy, sources)
        for cursor in cursors:
            if isinstance(result := results[cursor.stream], StepResult):
                self._on_source_result(cursor, result)
        return results

    def _apply_bulk(self, cursors: Sequence[StreamCursor], rows: _Rows, policy: RetryPolicy) -> Exchange[_Results]:
        """Send a timestep of each stream with `seq`; as `_apply`. Streams that exist and new ones are two requests.

        No cursor moves before all streams have their results: a call that is cancelled in between returns none of them,
        and is repeated for all of its streams.

        Raises:
            ClientError: The first request failed as a whole.
        """
        new, existing = (
            [cursor for cursor in cursors if (cursor.state_id is None) is is_new] for is_new in (True, False)
        )
        results: _Results = {}
        for group in filter(None, (existing, new)):  # a request has one `create`, so each group has its own
            try:
                results |= yield from self._send_group(group, rows, policy)
            except ClientError as error:
                if not results:
                    raise
                results |= {cursor.stream: error for cursor in group}
        for cursor in cursors:
            if isinstance(result := results[cursor.stream], StepResult):
                single = {"inputs": packed(rows[cursor.stream]), **cursor.identifiers()}
                self._on_result(cursor, self._step_request(cursor, single), result)
        return results

    def _send_group(self, cursors: Sequence[StreamCursor], rows: _Rows, policy: RetryPolicy) -> Exchange[_Results]:
        """Send a timestep of each stream as a bulk request, and record the streams whose outcome is unknown."""
        were_in_doubt = [cursor.in_doubt for cursor in cursors]
        for cursor in cursors:
            cursor.in_doubt = True
        results: _Results = {}
        try:
            results = yield from self._send_rows(cursors, rows, replace(policy, in_doubt=False))
        except ClientError as error:
            results = {cursor.stream: error for cursor in cursors}
            raise
        finally:
            for cursor, was_in_doubt in zip(cursors, were_in_doubt, strict=True):
                if isinstance(result := results.get(cursor.stream), ClientError):
                    cursor.in_doubt = was_in_doubt or result.applied != "no"
        return results

    def _send_rows(
        self,
        cursors: Sequence[StreamCursor],
        rows: _Rows,
        policy: RetryPolicy,
        sources: Mapping[str, Source] | None = None,
    ) -> Exchange[_Results]:
        """Send a timestep of each stream as a bulk request, and retry the streams with a transient error."""
        results: _Results = {}
        in_doubt: set[str] = set()
        waiting, wait = list(cursors), 0.0
        while waiting:
            document = {
                "streams": [cursor.stream for cursor in waiting],
                "inputs": packed(stack([rows[cursor.stream] for cursor in waiting])),
                **_identifiers(waiting, sources),
            }
            try:
                reply = yield from self._send_with_retry(
                    ClientRequest("POST", f"{self.path}/step", document, wait=wait), policy
                )
                bulk = decoding.bulk_results(decoding.bulk_reply(reply, len(waiting)))
            except ClientError as error:
                if not results:
                    raise
                error = policy.final_error(error, in_doubt=any(cursor.stream in in_doubt for cursor in waiting))
                return results | {cursor.stream: error for cursor in waiting}  # keep the results of earlier attempts
            again: list[tuple[StreamCursor, ClientError]] = []
            rolled_back = False
            for cursor, result in zip(waiting, bulk, strict=True):
                if isinstance(result, StepResult):
                    results[cursor.stream] = result
                    continue
                try:
                    if (yield from self._resend_lost(cursor, result, policy)):
                        again.append((cursor, result))
                        rolled_back = True
                        continue
                except ClientError as error:
                    results[cursor.stream] = policy.final_error(error, in_doubt=cursor.stream in in_doubt)
                    continue
                results[cursor.stream] = policy.final_error(result, in_doubt=cursor.stream in in_doubt)
                if result.applied != "no":
                    in_doubt.add(cursor.stream)
                if result.retry == "same":
                    again.append((cursor, result))
            pause = 0.0 if rolled_back else policy.pause(again[0][1]) if again else None
            if pause is None:
                break
            waiting, wait = [cursor for cursor, _ in again], pause
        return results


def _identifiers(cursors: Sequence[StreamCursor], sources: Mapping[str, Source] | None) -> dict[str, Any]:
    """Return the columns by which the service recognises a retry. Without sources all streams exist, or none does."""
    if sources is None:
        columns: dict[str, Any] = {"seq": [cursor.step + 1 for cursor in cursors]}
        if cursors[0].state_id is None:
            return columns | {"create": "must"}
        return columns | {"after": [cursor.state_id for cursor in cursors]}
    documents = [source_document(sources[cursor.stream]) for cursor in cursors]
    return {"source": {name: [document[name] for document in documents] for name in ("id", "at")}}
