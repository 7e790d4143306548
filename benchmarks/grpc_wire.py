"""Load over gRPC by a client of a few HTTP/2 frames, which takes less CPU than grpcio's; a kind of `client_load.py`."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final

from benchmarks.grpc_load import CALLS, Step, infer_request, prediction
from stepwell.addons.grpc_api.messages import SERVICE, ModelInferResponse, ModelStreamInferResponse
from stepwell_export.runtime.manifest import Array

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_LARGEST: Final = 2**31 - 1
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FIELDS: Final = ((":authority", "x"), ("te", "trailers"), ("content-type", "application/grpc"))


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _header(name: str, value: str) -> bytes:
    """Return a header in HPACK that is added to the table of the connection."""
    return b"\x40" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()


class _Connection(asyncio.Protocol):
    """One connection, for calls of one method."""

    def __init__(self, method: str) -> None:
        self._fields = ((":path", f"/{SERVICE.full_name}/{method}"), *_FIELDS)
        self._headers = b"\x83\x86" + b"".join(_header(*field) for field in self._fields)  # POST, http
        self._next = 1  # number of the next call
        self._received = b""
        self._data: dict[int, bytes] = {}  # of the message that is not complete yet, by call
        self.on_message: dict[int, Callable[[bytes], None]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Allow the server to send without limits."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        settings = _frame(_SETTINGS, 0, 0, struct.pack(">HI", 4, _LARGEST))
        window = _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _LARGEST - 65_535))
        transport.write(_PREFACE + settings + window)

    def open_call(self) -> int:
        """Open a call, and return its number."""
        call, self._next = self._next, self._next + 2
        self._transport.write(_frame(_HEADERS, _END_HEADERS, call, self._headers))
        # From the second call on, the headers are in the table; the last one has index 62, the first one that is free.
        self._headers = b"\x83\x86" + bytes(0x80 | 61 + n for n in range(len(self._fields), 0, -1))
        return call

    def send(self, call: int, message: bytes, *, is_last: bool = False) -> None:
        """Send a message; those on their way must fit into the server's window."""
        payload = b"\0" + struct.pack(">I", len(message)) + message
        self._transport.write(_frame(_DATA, _END_STREAM if is_last else 0, call, payload))

    def data_received(self, data: bytes) -> None:
        """Read the frames."""
        data, at = self._received + data, 0
        while len(data) - at >= 9:
            end = at + 9 + int.from_bytes(data[at : at + 3], "big")
            if end > len(data):
                break
            kind, flags = data[at + 3], data[at + 4]
            self._read_frame(kind, flags, int.from_bytes(data[at + 5 : at + 9], "big"), data[at + 9 : end])
            at = end
        self._received = data[at:]

    def _read_frame(self, kind: int, flags: int, call: int, payload: bytes) -> None:
        if kind == _DATA:
            self._read_messages(call, self._data.pop(call, b"") + payload)
        elif kind in {_SETTINGS, _PING} and not flags & _ACK:
            self._transport.write(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
        elif kind in {_RST_STREAM, _GOAWAY} or (kind == _HEADERS and flags & _END_STREAM and call in self.on_message):
            raise ConnectionError(f"call {call} was ended by a frame of kind {kind}: {payload!r}")

    def _read_messages(self, call: int, data: bytes) -> None:
        while len(data) >= 5 and len(data) >= (end := 5 + int.from_bytes(data[1:5], "big")):
            self.on_message[call](data[5:end])
            data = data[end:]
        if data:
            self._data[call] = data


async def unary(port: int, streams: int, run: Callable[[Step], Awaitable[None]]) -> None:
    """Step each stream by calls of `ModelInfer`, all over one connection."""
    started: set[int] = set()
    connection = await _connect(port, "ModelInfer")

    async def step(stream: int, row: Array) -> float:
        answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        call = connection.open_call()

        def on_message(message: bytes) -> None:
            del connection.on_message[call]
            answer.set_result(prediction(ModelInferResponse.FromString(message)))

        connection.on_message[call] = on_message
        request = infer_request(stream, row, start=stream not in started)
        started.add(stream)
        connection.send(call, request.SerializeToString(), is_last=True)
        return await answer

    await run(step)


async def streaming(port: int, streams: int, run: Callable[[Step], Awaitable[None]]) -> None:
    """Step the streams over a few calls of `ModelStreamInfer`."""
    waiting: dict[str, asyncio.Future[float]] = {}
    started: set[int] = set()
    connection = await _connect(port, "ModelStreamInfer")

    def on_message(message: bytes) -> None:
        response: Any = ModelStreamInferResponse.FromString(message)
        assert not response.error_message, response.error_message
        waiting.pop(response.infer_response.id).set_result(prediction(response.infer_response))

    calls = [connection.open_call() for _ in range(min(CALLS, streams))]
    connection.on_message = dict.fromkeys(calls, on_message)

    async def step(stream: int, row: Array) -> float:
        request = infer_request(stream, row, start=stream not in started)
        started.add(stream)
        answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        waiting[str(stream)] = answer
        connection.send(calls[stream % len(calls)], request.SerializeToString())
        return await answer

    await run(step)


async def _connect(port: int, method: str) -> _Connection:
    _, connection = await asyncio.get_running_loop().create_connection(lambda: _Connection(method), "127.0.0.1", port)
    return connection
