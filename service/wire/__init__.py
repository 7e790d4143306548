"""JSON and msgpack: request bodies to arrays, predictions to bytes; shared by HTTP, WebSocket and the client.

`ModelWire` reads bodies for one model, `answers` writes the answers, `names` has the texts that name things.
"""

from __future__ import annotations

from service.wire.bodies import BulkBody, FeedMessage, StepBody
from service.wire.formats import JSON, MSGPACK, Format
from service.wire.model_wire import ModelWire
from service.wire.names import check_stream_id, decode_state_id, encode_state_id

__all__ = [
    "JSON",
    "MSGPACK",
    "BulkBody",
    "FeedMessage",
    "Format",
    "ModelWire",
    "StepBody",
    "check_stream_id",
    "decode_state_id",
    "encode_state_id",
]
