"""`KafkaMetadata`: a relay that keeps the text beside each committed offset, as Kafka does and Tansu does not."""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from aiokafka.protocol import commit

_COMMIT, _FETCH = 8, 9


class KafkaMetadata:
    """Relays to a broker.

    Attributes:
        texts: By group, topic and partition, the text beside the offset that was committed last.
        target: The broker's port.
    """

    def __init__(self, port: int) -> None:
        self.texts: dict[tuple[str, str, int], str] = {}
        self.target = 0
        self._listener = socket.create_server(("127.0.0.1", port))

    def __enter__(self) -> KafkaMetadata:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                broker = socket.create_connection(("127.0.0.1", self.target))
                asked: dict[int, tuple[int, str]] = {}  # by the number of a request: its version and group
                for one, other, change in ((client, broker, self._request), (broker, client, self._response)):
                    threading.Thread(target=_relay, args=(one, other, change, asked), daemon=True).start()

    def _request(self, frame: bytes, asked: dict[int, tuple[int, str]]) -> bytes:
        key, version, number, length = struct.unpack_from(">hhih", frame)
        if key in (_COMMIT, _FETCH):
            name = "OffsetCommitRequest" if key == _COMMIT else "OffsetFetchRequest"
            body: Any = getattr(commit, f"{name}_v{version}").decode(io.BytesIO(frame[10 + max(length, 0) :]))
            if key == _FETCH:
                asked[number] = version, body.consumer_group
            else:
                for topic, partitions in body.topics:
                    self.texts |= {(body.consumer_group, topic, one[0]): one[-1] for one in partitions}
        return frame

    def _response(self, frame: bytes, asked: dict[int, tuple[int, str]]) -> bytes:
        (number,) = struct.unpack_from(">i", frame)
        version, group = asked.pop(number, (0, ""))
        if not group:
            return frame
        body: Any = getattr(commit, f"OffsetFetchResponse_v{version}").decode(io.BytesIO(frame[4:]))
        body.topics = [
            (topic, [(one, at, self.texts.get((group, topic, one), ""), error) for one, at, _, error in partitions])
            for topic, partitions in body.topics
        ]
        return frame[:4] + bytes(body.encode())


def _relay(
    one: socket.socket, other: socket.socket, change: Callable[[bytes, Any], bytes], asked: dict[int, tuple[int, str]]
) -> None:
    with contextlib.suppress(OSError, EOFError), one, other:
        while True:
            (size,) = struct.unpack(">i", _exactly(one, 4))
            frame = change(_exactly(one, size), asked)
            other.sendall(struct.pack(">i", len(frame)) + frame)


def _exactly(one: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        data = one.recv(size - len(found))
        if not data:
            raise EOFError
        found += data
    return bytes(found)
