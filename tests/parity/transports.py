"""The transports: each sends whole sequences to a running service, in single timesteps or chunks, and returns every
prediction. A new transport is one function here and a line in `TRANSPORTS`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx2
import msgspec
import numpy as np
import numpy.typing as npt
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

Sequences = npt.NDArray[np.float32]
Transport = Callable[[str, str, Sequences], Awaitable[Sequences]]
"""From (service URL, model, sequences (N, T, features)) to predictions (N, T, classes)."""

INPUT, OUTPUT = "x", "y"
MSGPACK = {"content-type": "application/msgpack", "accept": "application/msgpack"}
_names = itertools.count()


def streams_for(sequences: Sequences) -> list[str]:
    """Return stream names that no other transport has used."""
    return [f"stream-{next(_names)}" for _ in sequences]


def chunk_slices(length: int, size: int) -> Iterator[slice]:
    """Return the slices that cut a sequence into chunks; the last one may be shorter."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def packed(array: npt.NDArray[Any]) -> dict[str, Any]:
    return {"d": array.dtype.name, "s": list(array.shape), "b": array.tobytes()}


def unpacked(tensor: dict[str, Any]) -> Sequences:
    return np.frombuffer(tensor["b"], tensor["d"]).reshape(tensor["s"])


async def post(http: httpx2.AsyncClient, path: str, body: dict[str, Any], *, msgpack: bool = False) -> dict[str, Any]:
    if msgpack:
        response = await http.post(path, content=msgspec.msgpack.encode(body), headers=MSGPACK)
        assert response.status_code == 200, response.content
        answer: dict[str, Any] = msgspec.msgpack.decode(response.content)
        return answer
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    return document


async def http_steps(url: str, model: str, sequences: Sequences, *, msgpack: bool = False) -> Sequences:
    """Send one POST per timestep, all streams concurrently."""

    async def run_stream(http: httpx2.AsyncClient, stream: str, sequence: Sequences) -> list[Any]:
        path = f"/v1/models/{model}/streams/{stream}/step"
        answers = []
        for seq, x in enumerate(sequence, 1):
            inputs = {INPUT: packed(x) if msgpack else x.tolist()}
            answer = await post(http, path, {"inputs": inputs, "seq": seq}, msgpack=msgpack)
            assert answer["step"] == seq
            answers.append(unpacked(answer["outputs"][OUTPUT]) if msgpack else answer["outputs"][OUTPUT])
        return answers

    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:
        found = [run_stream(http, s, x) for s, x in zip(streams_for(sequences), sequences, strict=True)]
        return np.array(await asyncio.gather(*found), np.float32)


async def http_steps_msgpack(url: str, model: str, sequences: Sequences) -> Sequences:
    return await http_steps(url, model, sequences, msgpack=True)


async def infer(url: str, model: str, sequences: Sequences, *, binary: bool = False) -> Sequences:
    """Send one infer request of the Open Inference Protocol per timestep, all streams concurrently."""

    async def run_stream(http: httpx2.AsyncClient, stream: str, sequence: Sequences) -> list[Any]:
        answers = []
        for step, x in enumerate(sequence, 1):
            about = {"size": {"parameters": {"binary_data_size": x.nbytes}}, "data": {"data": x.tolist()}}
            tensor = {"name": INPUT, "datatype": "FP32", "shape": [1, *x.shape], **about["size" if binary else "data"]}
            flags = {"sequence_start": step == 1, "sequence_end": step == len(sequence), "binary_data_output": binary}
            head = msgspec.json.encode({"inputs": [tensor], "parameters": {"sequence_id": stream, **flags}})
            response = await http.post(
                f"/v2/models/{model}/infer",
                content=head + x.tobytes() if binary else head,
                headers={"Inference-Header-Content-Length": str(len(head))} if binary else {},
            )
            assert response.status_code == 200, response.text
            at = int(response.headers.get("Inference-Header-Content-Length", 0))
            [output] = msgspec.json.decode(response.content[: at or None])["outputs"]
            answers.append(np.frombuffer(response.content[at:], np.float32) if binary else output["data"])
        return answers

    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:
        found = [run_stream(http, s, x) for s, x in zip(streams_for(sequences), sequences, strict=True)]
        return np.array(await asyncio.gather(*found), np.float32)


async def infer_binary(url: str, model: str, sequences: Sequences) -> Sequences:
    return await infer(url, model, sequences, binary=True)


async def http_chunks(url: str, model: str, sequences: Sequences) -> Sequences:
    """Send chunks of 7 timesteps, one stream after the other."""
    found = []
    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:
        for stream, sequence in zip(streams_for(sequences), sequences, strict=True):
            rows: list[Any] = []
            for piece in chunk_slices(len(sequence), 7):
                body = {"inputs": {INPUT: sequence[piece].tolist()}, "seq": piece.start + 1}
                answer = await post(http, f"/v1/models/{model}/streams/{stream}/steps", body)
                rows += answer["outputs"][OUTPUT]
            found.append(rows)
    return np.array(found, np.float32)


async def bulk_steps(url: str, model: str, sequences: Sequences) -> Sequences:
    """Send one bulk POST per timestep for all streams."""
    streams, found = streams_for(sequences), []
    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:
        for t in range(sequences.shape[1]):
            body = {"streams": streams, "inputs": {INPUT: sequences[:, t].tolist()}, "seq": [t + 1] * len(streams)}
            answer = await post(http, f"/v1/models/{model}/step", body)
            assert answer["errors"] == {}
            found.append(answer["outputs"][OUTPUT])
    return np.array(found, np.float32).swapaxes(0, 1)


async def bulk_chunks_msgpack(url: str, model: str, sequences: Sequences) -> Sequences:
    """Send bulk chunks of 6 timesteps, as packed tensors."""
    streams, found = streams_for(sequences), []
    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:
        for piece in chunk_slices(sequences.shape[1], 6):
            inputs = {INPUT: packed(np.ascontiguousarray(sequences[:, piece]))}
            answer = await post(http, f"/v1/models/{model}/steps", {"streams": streams, "inputs": inputs}, msgpack=True)
            found.append(unpacked(answer["outputs"][OUTPUT]))
    return np.concatenate(found, axis=1)


class FeedClient:
    """A feed over a WebSocket, in one of the two formats."""

    def __init__(self, socket: ClientConnection, *, msgpack: bool) -> None:
        self._socket = socket
        self._msgpack = msgpack

    async def send(self, message: dict[str, Any]) -> None:
        packer = msgspec.msgpack if self._msgpack else msgspec.json
        data = packer.encode(message)
        await self._socket.send(data if self._msgpack else data.decode())

    async def receive(self) -> dict[str, Any]:
        data = await self._socket.recv()
        answer: dict[str, Any] = msgspec.msgpack.decode(data) if self._msgpack else msgspec.json.decode(data)  # type: ignore[arg-type]  # bytes where the subprotocol is binary
        assert "error" not in answer, answer
        return answer

    def tensor(self, array: Sequences) -> Any:
        return packed(np.ascontiguousarray(array)) if self._msgpack else array.tolist()

    def array(self, tensor: Any) -> Any:
        return unpacked(tensor) if self._msgpack else tensor


def feed_url(url: str, path: str) -> str:
    return url.replace("http://", "ws://") + path


def subprotocol(msgpack: bool) -> list[Subprotocol]:
    return [Subprotocol("stepwell.msgpack" if msgpack else "stepwell.json")]


async def stream_feed(url: str, model: str, sequences: Sequences, *, msgpack: bool = False) -> Sequences:
    """Open one socket per stream; send all timesteps before reading any answer."""

    async def run_stream(stream: str, sequence: Sequences) -> list[Any]:
        path = feed_url(url, f"/v1/models/{model}/streams/{stream}/feed")
        async with connect(path, subprotocols=subprotocol(msgpack)) as socket:
            feed = FeedClient(socket, msgpack=msgpack)
            for seq, x in enumerate(sequence, 1):
                await feed.send({"inputs": {INPUT: feed.tensor(x)}, "seq": seq})
            answers = [await feed.receive() for _ in sequence]
            assert [answer["step"] for answer in answers] == list(range(1, len(sequence) + 1))
            return [feed.array(answer["outputs"][OUTPUT]) for answer in answers]

    found = [run_stream(s, x) for s, x in zip(streams_for(sequences), sequences, strict=True)]
    return np.array(await asyncio.gather(*found), np.float32)


async def stream_feed_msgpack(url: str, model: str, sequences: Sequences) -> Sequences:
    return await stream_feed(url, model, sequences, msgpack=True)


async def model_feed(url: str, model: str, sequences: Sequences) -> Sequences:
    """Open one socket for all streams; each message names its stream and has an id."""
    streams = streams_for(sequences)
    found = np.empty((*sequences.shape[:2], 0), np.float32).tolist()
    async with connect(feed_url(url, f"/v1/models/{model}/feed"), subprotocols=subprotocol(False)) as socket:
        feed = FeedClient(socket, msgpack=False)
        for t in range(sequences.shape[1]):
            for n, stream in enumerate(streams):
                await feed.send({"stream": stream, "inputs": {INPUT: sequences[n, t].tolist()}, "id": [n, t]})
            for _ in streams:
                answer = await feed.receive()
                n, at = answer["id"]
                assert (answer["stream"], at, answer["step"]) == (streams[n], t, t + 1)
                found[n][t] = answer["outputs"][OUTPUT]
    return np.array(found, np.float32)


async def model_feed_columns_msgpack(url: str, model: str, sequences: Sequences) -> Sequences:
    """Open one socket; each message holds a chunk of 4 timesteps of every stream."""
    streams, found = streams_for(sequences), []
    async with connect(feed_url(url, f"/v1/models/{model}/feed"), subprotocols=subprotocol(True)) as socket:
        feed = FeedClient(socket, msgpack=True)
        for piece in chunk_slices(sequences.shape[1], 4):
            await feed.send({"streams": streams, "inputs": {INPUT: feed.tensor(sequences[:, piece])}, "chunk": True})
            found.append(unpacked((await feed.receive())["outputs"][OUTPUT]))
    return np.concatenate(found, axis=1)


TRANSPORTS: dict[str, Transport] = {
    "HTTP, JSON": http_steps,
    "HTTP, msgpack": http_steps_msgpack,
    "HTTP, chunks": http_chunks,
    "HTTP, columns": bulk_steps,
    "HTTP, columns of chunks in msgpack": bulk_chunks_msgpack,
    "infer, JSON": infer,
    "infer, raw bytes": infer_binary,
    "WebSocket of a stream, JSON": stream_feed,
    "WebSocket of a stream, msgpack": stream_feed_msgpack,
    "WebSocket of a model, JSON": model_feed,
    "WebSocket of a model, columns of chunks in msgpack": model_feed_columns_msgpack,
}
