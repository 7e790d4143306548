"""`BulkSteps`: a timestep of each of many streams in one request, on top of `ModelProtocol`; without network access."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from model_export.manifest import Array
from service.client.protocol import decoding
from service.client.protocol.exchange import Exchange
from service.client.protocol.inputs import Inputs, Source, packed, source_document, stack
from service.client.protocol.requests import ClientRequest, StreamCursor
from service.client.protocol.retry import RetryPolicy
from service.client.protocol.steps import ModelProtocol, timed
from service.client.results import ClientError, StepResult


class BulkSteps(ModelProtocol):
    """The exchanges of one model and its streams, with bulk steps."""

    @timed
    def step_many(
        self,
        policy: RetryPolicy,
        cursors: Sequence[StreamCursor],
        xs: Mapping[str, Inputs],
        sources: Mapping[str, Source] | None = None,
    ) -> Exchange[dict[str, StepResult | ClientError]]:
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
        for cursor in cursors:
            rows[cursor.stream] = yield from self._prepare_inputs(xs[cursor.stream], policy)
            if sources is None:
                yield from self._ensure_cursor(cursor, policy)
        if sources is not None:
            return (yield from self._apply_bulk(cursors, rows, policy, sources))
        were_in_doubt = [cursor.in_doubt for cursor in cursors]
        for cursor in cursors:
            cursor.in_doubt = True
        results: dict[str, StepResult | ClientError] = {}
        try:
            results = yield from self._apply_bulk(cursors, rows, policy)
        except ClientError as error:
            results = dict.fromkeys(rows, error)
            raise
        finally:
            for cursor, was_in_doubt in zip(cursors, were_in_doubt, strict=True):
                result = results.get(cursor.stream)
                if isinstance(result, ClientError):
                    cursor.in_doubt = was_in_doubt or result.applied != "no"
        return results

    def _apply_bulk(
        self,
        cursors: Sequence[StreamCursor],
        rows: Mapping[str, Mapping[str, Array]],
        policy: RetryPolicy,
        sources: Mapping[str, Source] | None = None,
    ) -> Exchange[dict[str, StepResult | ClientError]]:
        """Send a timestep of each stream as a bulk request, and retry the streams with a transient error."""
        results: dict[str, StepResult | ClientError] = {}
        in_doubt: set[str] = set()
        waiting, wait = list(cursors), 0.0
        while waiting:
            document = {
                "streams": [cursor.stream for cursor in waiting],
                "inputs": packed(stack([rows[cursor.stream] for cursor in waiting])),
                **_identifiers(waiting, sources),
            }
            if sources is not None:
                for cursor in waiting:
                    self._forget_position(cursor)
            try:
                reply = yield from self._send_with_retry(
                    ClientRequest("POST", f"{self.path}/step", document, wait=wait), policy
                )
                bulk = decoding.bulk_results(decoding.bulk_reply(reply, len(waiting)))
            except ClientError as error:
                if not results:
                    raise
                return results | {cursor.stream: error for cursor in waiting}  # keep the results of earlier attempts
            again: list[tuple[StreamCursor, ClientError]] = []
            rolled_back = False
            for cursor, result in zip(waiting, bulk, strict=True):
                if isinstance(result, StepResult) and sources is not None:
                    results[cursor.stream] = self._on_source_result(cursor, result)
                    continue
                if isinstance(result, StepResult):
                    single = {"inputs": packed(rows[cursor.stream]), "seq": cursor.step + 1}
                    single |= {} if cursor.state_id is None else {"after": cursor.state_id}
                    results[cursor.stream] = self._on_result(cursor, self._step_request(cursor, single), result)
                    continue
                try:
                    if (yield from self._resend_lost(cursor, result, policy)):
                        again.append((cursor, result))
                        rolled_back = True
                        continue
                except ClientError as error:
                    results[cursor.stream] = error
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
    """Return the columns by which the service recognises a retry."""
    if sources is None:
        return {"seq": [cursor.step + 1 for cursor in cursors], "after": [cursor.state_id for cursor in cursors]}
    documents = [source_document(sources[cursor.stream]) for cursor in cursors]
    return {"source": {name: [document[name] for document in documents] for name in ("id", "at")}}
