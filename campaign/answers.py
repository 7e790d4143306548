"""`python -m campaign answers`: the same requests of every kind to this working tree and to another, answer by answer.

Each tree runs two workers on one store of its own. Requests are a function of the seed: single steps, chunks, feeds,
columns, peeks, the Open Inference Protocol, replays, gaps, refused rows, new streams, keys, sources, and streams that a
release moves. Answers have to be the same byte for byte; state ids of requests that nothing identifies are left out.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from websockets.sync.client import connect

from tests.graphs import fold, stateless, write_model
from tests.processes import ServiceProcess
from tests.servers import AOF, Server

_ROOT = Path(__file__).resolve().parents[1]
_STREAMS = 60
_STATE_ID = re.compile(rb"[A-Za-z0-9_-]{22}(?=[\"\x80-\xff]|$)")
_RELEASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("PUT", "", {"current": 1}),
    ("PUT", "", {"candidate": 2, "mode": "shadow", "percent": 40, "salt": "a"}),
    ("POST", "/abort", {}),
    ("PUT", "", {"candidate": 2, "mode": "ramp", "percent": 60, "salt": "b", "warm_steps": 3}),
    ("POST", "/promote", {}),
    ("PUT", "", {"candidate": 1, "mode": "switch", "percent": 50, "salt": "c"}),
)


class Request(NamedTuple):
    """A request, or messages of a feed that are sent without waiting for replies.

    Attributes:
        kind: What is compared, for the table.
        worker: Which worker gets it, 0 or 1.
        method: Of HTTP; `FEED`: the body is a list of messages.
        path: Its path.
        body: The document.
        headers: Further headers.
        packed: Whether it is sent as msgpack.
        identified: Whether its state ids have to be the same.
    """

    kind: str
    worker: int
    method: str
    path: str
    body: Any
    headers: dict[str, str]
    packed: bool = False
    identified: bool = True


class Differing(NamedTuple):
    """A request whose answers differ."""

    at: int
    request: Request
    before: bytes
    now: bytes


class _Maker:
    """Makes requests, each a function of the seed and of those before it."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._steps: dict[tuple[str, str], int] = {}
        self._sent: dict[tuple[str, str], list[Request]] = {}
        self._at = 0

    def requests(self, count: int) -> Iterator[Request]:
        releases = iter(_RELEASES)
        kinds = (self._single, self._single, self._single, self._bulk, self._bulk, self._feed, self._other)
        for i in range(count):
            if i % (count // (len(_RELEASES) + 1)) == count // 20 and (change := next(releases, None)) is not None:
                method, path, body = change
                yield Request("release", 0, method, f"/v1/models/tried/release{path}", body, {}, identified=False)
            yield self._rng.choice(kinds)()

    def _model(self) -> tuple[str, int]:
        """Return a model and a worker; that with releases has one, as a worker follows another's change later."""
        return ("fold", self._rng.randrange(2)) if self._rng.random() < 0.65 else ("tried", 0)

    def _row(self, model: str, stream: str, length: int, *, odd: float = 0.15) -> dict[str, Any]:
        """Return the fields of a timestep: mostly the stream's next one."""
        rng, step = self._rng, self._steps.get((model, stream), 0)
        roll = rng.random()
        seq: int | None = step + 1
        if roll < odd:
            seq = rng.choice([max(step - length + 1, 1), max(step, 1), step + 2, 1, None if stream[0] == "u" else step])
            seq = None if seq is None else max(seq, 1)
        x = [step * 7 % 1000] if roll >= odd / 2 else [rng.randrange(10**6)]
        if seq is None or seq == step + 1:
            self._steps[model, stream] = step + length
        if stream[0] == "u":
            return {"x": x}
        return {"x": x, "seq": seq} if seq is not None else {"x": x, "seq": step + 1}

    def _name(self) -> str:
        return f"{self._rng.choice('ssssssu')}{self._rng.randrange(_STREAMS)}"

    def _single(self) -> Request:
        rng, (model, worker) = self._rng, self._model()
        stream = self._name()
        if (earlier := self._sent.get((model, stream))) and rng.random() < 0.15:
            return rng.choice(earlier[-3:])._replace(kind="replay", worker=worker)
        length = rng.choice([1, 1, 1, 3])
        body = self._row(model, stream, length)
        x = body.pop("x")
        body["inputs"] = {"x": x if length == 1 else [[x[0] + t] for t in range(length)]}
        headers, kind = dict[str, str](), "step" if length == 1 else "chunk"
        if rng.random() < 0.1:
            body["create"] = rng.choice(["never", "must", "auto"])
        if rng.random() < 0.1:
            headers["Idempotency-Key"] = f"k{rng.randrange(40)}"
            kind = "key"
        elif rng.random() < 0.2:
            stream, kind = f"k{rng.randrange(20)}", "source"
            self._at += rng.choice([0, 1, 1, 2])
            at = self._at - rng.choice([0, 0, 0, 1, 4])
            body.pop("seq", None)
            body["source"] = {
                "id": f"log/{rng.randrange(3)}",
                "at": max(at, 0) if length == 1 else [max(at, 0) + t for t in range(length)],
            }
        if length > 1 and rng.random() < 0.3:
            body["return"] = rng.choice(["last", "none"])
        version = f"?version={rng.choice([1, 2])}" if model == "tried" and rng.random() < 0.05 else ""
        path = f"/v1/models/{model}/streams/{stream}/{'step' if length == 1 else 'steps'}{version}"
        identified = stream[0] == "s" or kind == "source"
        one = Request(kind, worker, "POST", path, body, headers, rng.random() < 0.2, identified)
        if stream[0] == "s":
            self._sent.setdefault((model, stream), []).append(one)
        return one

    def _bulk(self) -> Request:
        rng, (model, worker) = self._rng, self._model()
        rows, odd = rng.choice([1, 5, 20, 40, 50]), rng.choice([0.0, 0.1, 0.4])
        first = rng.choice("sssu")
        names = rng.sample([f"{first}{n}" for n in range(_STREAMS + 4)], rows)
        length = rng.choice([1, 1, 1, 2])
        found = [self._row(model, name, length, odd=odd) for name in names]
        xs: list[Any] = [row["x"] if length == 1 else [[row["x"][0] + t] for t in range(length)] for row in found]
        body: dict[str, Any] = {"streams": names, "inputs": {"x": xs}}
        if first == "s":
            body["seq"] = [row.get("seq") for row in found]
        if rng.random() < 0.1:
            xs[rng.randrange(rows)] = ["no number"] if length == 1 else [["no number"]] * length
        if rng.random() < 0.08:
            body["create"] = rng.choice(["never", "must"])
        if rng.random() < 0.15:
            body.pop("seq", None)
            names[:] = [f"k{name[1:]}" for name in names]
            self._at += 1
            at = self._at - rng.choice([0, 0, 1])
            body["source"] = {"id": "log/0", "at": [at if length == 1 else [at + t for t in range(length)]] * rows}
        if length > 1 and rng.random() < 0.3:
            body["return"] = rng.choice(["last", "none"])
        headers = {"Idempotency-Key": f"b{rng.randrange(40)}"} if rng.random() < 0.05 else {}
        path = f"/v1/models/{model}/{'step' if length == 1 else 'steps'}"
        identified = (names[0][0] != "u" and "seq" in body) or "source" in body
        return Request("bulk", worker, "POST", path, body, headers, rng.random() < 0.4, identified)

    def _feed(self) -> Request:
        rng, (model, worker) = self._rng, self._model()
        messages = []
        for i in range(rng.choice([1, 8, 40])):
            stream = f"s{rng.randrange(_STREAMS)}"
            body = self._row(model, stream, 1, odd=0.1)
            messages.append({"id": i, "stream": stream, "inputs": {"x": body["x"]}, "seq": body["seq"]})
        return Request("feed", worker, "FEED", f"/v1/models/{model}/feed", messages, {})

    def _other(self) -> Request:
        rng, (model, worker) = self._rng, self._model()
        stream, roll = self._name(), rng.random()
        path = f"/v1/models/{model}/streams/{stream}"
        if roll < 0.3:
            return Request(
                "peek", worker, "POST", f"{path}/peek", {"inputs": {"x": [3]}}, {}, identified=stream[0] == "s"
            )
        if roll < 0.4:
            self._steps[model, stream] = 0
            return Request("delete", worker, "DELETE", path, None, {}, identified=False)
        if roll < 0.5:
            self._steps[model, stream] = 0
            self._at += 1
            key = {"Idempotency-Key": f"reset-{self._at}"}
            return Request("reset", worker, "POST", f"{path}/reset", None, key, identified=stream[0] == "s")
        if roll < 0.6:
            tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [rng.random(), 2.0]}
            return Request("stateless", worker, "POST", "/v2/models/stateless/infer", {"inputs": [tensor]}, {})
        tensor = {"name": "x", "datatype": "INT64", "shape": [1, 1], "data": [rng.randrange(100)]}
        marks: dict[str, Any] = {"sequence_start": True} if rng.random() < 0.15 else {}
        marks |= {"sequence_end": True} if rng.random() < 0.1 else {}
        marks |= {"peek": True} if not marks and rng.random() < 0.1 else {}
        name = f"o{rng.randrange(8)}"
        step = self._steps.get((model, name), 0) * ("sequence_start" not in marks) + 1
        if rng.random() < 0.7 and "peek" not in marks:
            marks["step"] = step
        if "peek" not in marks:
            self._steps[model, name] = 0 if "sequence_end" in marks else step
        infer = {"inputs": [tensor], "parameters": {"sequence_id": name, **marks}}
        return Request("oip", worker, "POST", f"/v2/models/{model}/infer", infer, {}, identified=False)


@contextlib.contextmanager
def _tree(tree: Path, folder: Path) -> Iterator[list[ServiceProcess]]:
    """Run two workers of a tree on a store of their own."""
    for version, factor in ((1, 31), (2, 37)):
        write_model(folder / "models", "tried", partial(fold, factor), version=version)
    write_model(folder / "models", "fold", fold)
    write_model(folder / "models", "stateless", stateless)
    code = ":".join(str(tree / part) for part in ("service", "model_export", "clients/python"))
    launch, env = [sys.executable, "-P", "-m", "stepwell", "serve"], {"PYTHONPATH": code}
    store = Server(folder / "r", *AOF).start()
    workers = []
    try:
        for n in range(2):
            flags = ("--redis", store.url, "--max-batch-size", "256")
            one = ServiceProcess(folder / "models", folder / f"w{n}", *flags, env=env, launch=launch)
            workers.append(one)
            one.start()
        yield workers
    finally:
        for worker in workers:
            worker.kill()
        store.kill()


class _Client:
    """Sends requests to the workers of a tree, one after another."""

    def __init__(self, workers: list[ServiceProcess]) -> None:
        self._ports = [worker.port for worker in workers]
        self._http = [http.client.HTTPConnection("127.0.0.1", port, timeout=60) for port in self._ports]
        self._feeds: dict[tuple[int, str], Any] = {}

    def answer(self, request: Request) -> bytes:
        """Return status and body; of a feed, its replies in the order of their ids."""
        if request.method == "FEED":
            return self._replies(request)
        encode = msgspec.msgpack.encode if request.packed else msgspec.json.encode
        headers = {"Content-Type": "application/msgpack" if request.packed else "application/json", **request.headers}
        connection = self._http[request.worker]
        body = None if request.body is None else encode(request.body)
        connection.request(request.method, request.path, body, headers)
        response = connection.getresponse()
        answer = b"%d %b" % (response.status, response.read())
        if request.kind == "release":
            return answer[:3]  # its document has times, and how many streams were counted so far
        return _comparable(answer, identified=request.identified)

    def _replies(self, request: Request) -> bytes:
        key = request.worker, request.path
        if key not in self._feeds:
            url = f"ws://127.0.0.1:{self._ports[request.worker]}{request.path}"
            self._feeds[key] = connect(url, proxy=None, max_size=None)
        feed = self._feeds[key]
        for message in request.body:
            feed.send(json.dumps(message))
        replies = [str(feed.recv(60)) for _ in request.body]
        return "\n".join(sorted(replies, key=lambda reply: int(json.loads(reply).get("id", -1)))).encode()


def _comparable(answer: bytes, *, identified: bool) -> bytes:
    return answer if identified else _STATE_ID.sub(b"*", answer)


def differing(before: Path, folder: Path, *, seed: int, count: int) -> tuple[dict[str, int], list[Differing]]:
    """Send requests to both trees; return how many there were of each kind, and those whose answers differ.

    Args:
        before: The other tree: a checkout.
        folder: For models, stores and logs; its path must be short enough for a unix socket.
        seed: Of all random choices.
        count: Number of requests.
    """
    counts, found = dict[str, int](), list[Differing]()
    with _tree(before, folder / "a") as old, _tree(_ROOT, folder / "b") as new:
        clients = _Client(old), _Client(new)
        for at, request in enumerate(_Maker(seed).requests(count)):
            counts[request.kind] = counts.get(request.kind, 0) + (len(request.body) if request.method == "FEED" else 1)
            was, now = (client.answer(request) for client in clients)
            if was != now:
                found.append(Differing(at, request, was, now))
    return counts, found
