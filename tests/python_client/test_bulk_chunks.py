"""Chunks in columns: what is sent again if some streams fail for a moment, and what the results then hold."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from stepwell_client.protocol.bulk_chunks import BulkChunks, ChunksResult
from stepwell_client.protocol.decoding import RawReply
from stepwell_client.protocol.exchange import drive
from stepwell_client.protocol.requests import ClientRequest
from stepwell_client.wire.formats import MSGPACK, encode_tensor

INPUTS = {"x": np.arange(12, dtype=np.float32).reshape(3, 2, 2)}
POSITIONS = np.array([[4, 5], [6, 7], [8, 9]])


def problem(code: str, retry: str) -> dict[str, Any]:
    return {"detail": "no", "code": code, "applied": "no", "retry": retry}


def reply(y: list[list[float]], step: list[int | None], **more: Any) -> RawReply:
    outputs = {"y": encode_tensor(np.array(y, np.float32), MSGPACK)}
    document = {"outputs": outputs, "step": step, "state_id": [None] * len(step), "errors": {}, **more}
    return RawReply(200, msgspec.msgpack.encode(document), MSGPACK)


def run(*replies: RawReply) -> tuple[ChunksResult, list[ClientRequest]]:
    """Return the result of a call that gets these replies, and its requests."""
    sent: list[ClientRequest] = []
    waiting = iter(replies)

    def send(request: ClientRequest) -> RawReply:
        sent.append(request)
        return next(waiting)

    protocol = BulkChunks("m", 60.0, clock=lambda: 0.0, jitter=lambda: 0.0)
    return drive(protocol.step_chunks(["a", "b", "c"], INPUTS, ["log"] * 3, POSITIONS), send), sent


def test_streams_with_a_transient_error_are_sent_again_alone() -> None:
    result, sent = run(
        reply([[1, 2], [0, 0], [5, 6]], [2, None, 12], errors={"1": problem("overloaded", "same")}),
        reply([[3, 4]], [7]),
    )

    second = sent[1].document
    assert second is not None
    assert (second["streams"], second["source"]["id"]) == (["b"], "log")
    assert np.frombuffer(second["source"]["at"]["b"], np.int64).tolist() == [6, 7]
    assert result.outputs["y"].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert result.steps.tolist() == [2, 7, 12]
    assert result.errors == {}


def test_a_stream_that_is_rejected_keeps_its_error_and_is_not_sent_again() -> None:
    errors = {"2": problem("model_changed", "never")}
    result, sent = run(reply([[1, 2], [3, 4], [0, 0]], [2, 2, None], errors=errors))

    assert len(sent) == 1
    assert {i: error.code for i, error in result.errors.items()} == {2: "model_changed"}


def test_timesteps_that_were_applied_before_are_counted_also_where_no_output_is_known() -> None:
    result, _ = run(
        reply(
            [[0, 2], [3, 4], [0, 0]], [2, 2, None],
            errors={"2": problem("source_passed", "never")}, skipped=[2, 1, 0], unknown=[1, 0, 0],
        )
    )  # fmt: skip

    assert result.skipped.tolist() == [2, 1, 2]
    assert result.unknown.tolist() == [1, 0, 2]
    assert result.errors[2].code == "source_passed"
