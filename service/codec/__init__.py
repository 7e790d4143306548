"""JSON and msgpack: request bodies to arrays, predictions to bytes; shared by HTTP, WebSocket and the client.

`RequestDecoder` reads bodies for one model, `answers` writes the answers, `names` has the texts that name things.
"""

from __future__ import annotations

from service.codec.envelopes import BulkBody, FeedMessage, StepBody
from service.codec.formats import JSON, MSGPACK, Format
from service.codec.request_decoder import RequestDecoder
from service.ids import check_stream_id, decode_state_id, encode_state_id

__all__ = [
    "JSON",
    "MSGPACK",
    "BulkBody",
    "FeedMessage",
    "Format",
    "RequestDecoder",
    "StepBody",
    "check_stream_id",
    "decode_state_id",
    "encode_state_id",
]
