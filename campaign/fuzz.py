"""Fuzz targets: every reader of foreign bytes accepts any input, or rejects it with its documented errors.

A target is a function of bytes that raises nothing. The tests run targets with Hypothesis; `python -m campaign fuzz
NAME` runs one with atheris, guided by coverage, for as long as needed.
"""

from __future__ import annotations

import contextlib
import re
import struct
import zlib
from collections.abc import Callable

from msgspec import UNSET
from msgspec.structs import replace

from stepwell.addons.copies.bodies import read_fork, read_snapshot, read_state, states_of
from stepwell.addons.fast_path.header_cache import HeaderCache
from stepwell.addons.fast_path.ws_frames import encode_frames, next_frame
from stepwell.addons.packed_states import read_packed_state
from stepwell.codec.request_decoder import RequestDecoder
from stepwell.codec.resets import read_reset
from stepwell.codec.step_bodies import guess_correlation
from stepwell.engine.protocol.replay import replay_prediction
from stepwell.errors import ServiceError
from stepwell.store.idempotency_entry import IdempotencyEntry
from stepwell.store.record import HEADER_BYTES, MAGIC, decode
from stepwell.types import StreamKey, Timestep
from stepwell_client.wire.formats import JSON, MSGPACK, Format
from stepwell_client.wire.ids import decode_state_id
from stepwell_client.wire.outcomes import ReturnMode
from stepwell_export.runtime.errors import StepwellError
from stepwell_export.runtime.manifest import Manifest
from stepwell_export.runtime.state_packing import pack_layout
from tests.graphs import fold, two_inputs

Target = Callable[[bytes], None]

_FOLD = fold()[1]
_WIRES = [RequestDecoder(manifest, max_chunk_steps=64) for manifest in (_FOLD, two_inputs()[1])]
_STATES = pack_layout(_FOLD)
_CRC_AT = 84
_ASK = Timestep(StreamKey("t", "m", "s"), (bytes(8),))
_KEEPS: tuple[ReturnMode, ...] = ("all", "last", "none")


def record(data: bytes) -> None:
    """A stream's record."""
    try:
        found = decode(data)
    except ServiceError:
        return
    _replay(found.outputs, found.step, found.history_hash)


def sound_record(data: bytes) -> None:
    """A record with correct magic, lengths and checksum."""
    if len(data) < HEADER_BYTES:
        return
    raw = bytearray(data)
    raw[:8] = MAGIC + struct.pack("<I", HEADER_BYTES)
    body = len(raw) - HEADER_BYTES
    outputs = min(int.from_bytes(raw[72:76], "little") % (body + 1), body)
    raw[72:80] = struct.pack("<II", outputs, body - outputs)
    raw[_CRC_AT : _CRC_AT + 4] = bytes(4)
    raw[_CRC_AT : _CRC_AT + 4] = struct.pack("<I", zlib.crc32(raw))
    found = decode(bytes(raw))
    _replay(found.outputs, found.step, found.history_hash)


def key_entry(data: bytes) -> None:
    """The entry of an idempotency key."""
    try:
        entry = IdempotencyEntry.decode(data)
    except ServiceError:
        return
    _replay(entry.outputs, entry.step, entry.history_hash)


def body(data: bytes) -> None:
    """A request body, in both formats and for every route; the first byte selects them."""
    if not data:
        return
    form = JSON if data[0] & 1 else MSGPACK
    for wire in _WIRES:
        _read_body(wire, data[1:], form)


def operation(data: bytes) -> None:
    """The body of a reset, a fork, a snapshot or an imported state."""
    for form in (JSON, MSGPACK):
        for read in (read_reset, read_fork, read_snapshot):
            _refusing(lambda form=form, read=read: read(data, form))  # type: ignore[misc]  # mypy infers no defaults
        _refusing(lambda form=form: _imported_state(data, form))  # type: ignore[misc]  # as above


def _imported_state(data: bytes, form: Format) -> None:
    body = read_state(data, form)
    if body.states is not UNSET:
        states_of(body.states, _STATES)
    if body.state is not UNSET:
        read_packed_state(body.state)


def manifest(data: bytes) -> None:
    """A manifest."""
    _refusing(lambda: Manifest.from_json(data, where="somewhere"))


def state_id(data: bytes) -> None:
    """A state id."""
    text = data.decode("latin-1")
    if re.fullmatch(r"[A-Za-z0-9_-]{22}", text):
        assert len(decode_state_id(text)) == 16


def head(data: bytes) -> None:
    """The header lines of a request on the fast lane."""
    HeaderCache(1000).read(b"\r\n" + data + b"\r\n")


def frame(data: bytes) -> None:
    """WebSocket frames on the fast lane."""
    at = 0
    while at < len(data):
        message, end = next_frame(data, at)
        assert message is None or at < end <= len(data)
        if message is None:
            break
        encode_frames([message], text=bool(data[0] & 1))
        at = end


TARGETS: dict[str, Target] = {
    "record": record,
    "sound-record": sound_record,
    "key-entry": key_entry,
    "body": body,
    "operation": operation,
    "manifest": manifest,
    "state-id": state_id,
    "head": head,
    "frame": frame,
}


def _read_body(wire: RequestDecoder, data: bytes, form: Format) -> None:
    _refusing(lambda: wire.step(data, form))
    _refusing(lambda: wire.steps(data, form))
    _refusing(lambda: wire.peek(data, form))
    for flag in (False, True):
        _refusing(lambda flag=flag: wire.bulk(data, form, chunk=flag))  # type: ignore[misc]  # as above
        _refusing(lambda flag=flag: wire.feed(data, form, {}, many=flag))  # type: ignore[misc]  # as above
    _refusing(lambda: wire.run(data, form))
    guess_correlation(data, form)


def _replay(outputs: bytes, step: int, chain: bytes) -> None:
    """A replay of stored predictions."""
    for keep in _KEEPS:
        _refusing(lambda keep=keep: replay_prediction(_FOLD, replace(_ASK, keep=keep), outputs, step, chain))  # type: ignore[misc]  # as above


def _refusing(read: Callable[[], object]) -> None:
    with contextlib.suppress(StepwellError):
        read()
