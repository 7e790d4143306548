"""Every reader of foreign bytes accepts or rejects any input, and raises only its documented errors."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from campaign.fuzz import TARGETS
from stepwell.store.idempotency_entry import IdempotencyEntry
from stepwell.store.record import Kind, Record
from tests.graphs import fold

_RECORD = Record(9, 5, 1, Kind.STEP, b"o" * 16, b"c" * 16, b"f" * 8, 1, 1, bytes(8), bytes(8)).encode()
_ENTRY = IdempotencyEntry(b"o" * 16, 9, 5, b"c" * 16, 1, bytes(8)).encode()
_BODIES: list[Any] = [
    {"inputs": {"x": [5]}, "seq": 1, "after": "A" * 22, "create": "auto", "return": "all", "chunk": True, "id": 1},
    {"streams": ["a", "b"], "inputs": {"x": [[1], [2]]}, "seq": [1, None], "after": [None, "A" * 22]},
    {"stream": "a", "inputs": [[1], [2]]},
    {"inputs": {"a": [1, 2], "b": 3}},
    {"inputs": {"x": {"d": "int64", "s": [1], "b": bytes(8)}}},
    {"to": {"snapshot": "s"}, "after": "A" * 22},
    {"to": "b", "from": {"snapshot": "s"}, "after": "A" * 22},
    {"states": {"h": [5]}, "step": 3, "fingerprint": "00" * 8, "after": "A" * 22},
    {"states": {"h": {"d": "int64", "s": [1], "b": bytes(8)}}},
]
_PACKED = [b"\0" + msgspec.msgpack.encode(body) for body in _BODIES]
_TEXTS = [b"\1" + json.dumps(body).encode() for body in _BODIES if "b'" not in repr(body)]
_SOUND: dict[str, list[bytes]] = {
    "record": [_RECORD],
    "sound-record": [_RECORD],
    "key-entry": [_ENTRY],
    "body": [*_PACKED, *_TEXTS],
    "operation": [body[1:] for body in (*_PACKED[-4:], *_TEXTS[-4:])],
    "manifest": [fold()[1].to_json().encode()],
    "state-id": [b"A" * 22],
    "head": [b"Host: x\r\nContent-Length: 5\r\nIdempotency-Key: k\r\nAccept: */*\r\n"],
    "frame": [b"\x81\x85mask" + b"hello", b"\x82\xfe\0\x80mask" + bytes(128)],
}


@st.composite
def mutated(draw: st.DrawFn, sound: list[bytes]) -> bytes:
    """Draw valid bytes with some of them changed, removed or inserted."""
    data = bytearray(draw(st.sampled_from(sound)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        until = draw(st.integers(at, min(len(data), at + 4)))
        data[at:until] = draw(st.binary(max_size=6))
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_accepted_or_rejected(name: str) -> None:
    @settings(max_examples=250, deadline=None)
    @given(st.one_of(st.binary(max_size=200), mutated(_SOUND[name])))
    def feed(data: bytes) -> None:
        TARGETS[name](data)

    feed()
