"""Codecs: request bodies to arrays and predictions to bytes, in JSON and msgpack, for HTTP, WebSocket and the client.

`RequestDecoder` decodes request bodies for one model; `responses` builds the responses.
"""

from __future__ import annotations

from service.codec.formats import JSON, MSGPACK, Format
from service.codec.request_decoder import RequestDecoder
from service.codec.step_bodies import DecodedBulk, DecodedStep, StepBody
from service.ids import check_stream_id, decode_state_id, encode_state_id

__all__ = [
    "JSON",
    "MSGPACK",
    "DecodedBulk",
    "DecodedStep",
    "Format",
    "RequestDecoder",
    "StepBody",
    "check_stream_id",
    "decode_state_id",
    "encode_state_id",
]
