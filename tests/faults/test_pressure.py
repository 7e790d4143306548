"""Overload, slow clients and malformed bodies."""

from __future__ import annotations

import asyncio
import itertools
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from tests.faults.pressure import KINDS, held, overload, under_pressure
from tests.graphs import fold_reference
from tests.processes import ServiceProcess

pytestmark = pytest.mark.usefixtures("real_programs")
RECEIVE_S = 1
GROWTH = 50 * 2**20
CANARIES = (b"Traceback", b"site-packages", b'.py"', b"/service/", b"redis://", b"unix://", b"File \\")
"""Text that no response may contain: tracebacks, file paths, the store's address."""


@pytest.fixture(scope="module")
def one() -> Iterator[ServiceProcess]:
    with under_pressure("--receive-timeout-s", str(RECEIVE_S), "--drain-s", "0") as running:
        yield running


def rss(service: ServiceProcess) -> int:
    return int(Path(f"/proc/{service.process.pid}/statm").read_text().split()[1]) * 4096


# ------------------------------------------------------------------- load


@pytest.mark.slow
def test_excess_load_is_rejected_at_once_and_accepted_requests_are_fast() -> None:
    with under_pressure("--drain-s", "0") as own:

        async def run() -> dict[str, float]:
            return await overload(own, seconds=3, calm_s=1.5)

        found = asyncio.run(run())

    assert found["refused"] > 0
    assert (found["badly_told"], found["lost"]) == (0, 0)
    assert found["slowest_s"] < 9  # no request waited until the deadline of 10 s
    assert found["goodput_per_s"] > 0


# ------------------------------------------------------------------- slow clients


def test_two_hundred_slow_clients_of_four_kinds_are_disconnected(one: ServiceProcess) -> None:
    async def run() -> list[float]:
        async with asyncio.timeout(30):
            return await asyncio.gather(*(held(one.port, KINDS[n % len(KINDS)]) for n in range(200)))

    assert max(asyncio.run(run())) >= RECEIVE_S
    assert httpx2.get(one.url + "/readyz", trust_env=False, timeout=30).status_code == 200


# ------------------------------------------------------------------- malformed bodies


NUMBERS = (
    *("1e999", "-1e999", "9" * 5_000, "1" + "0" * 400, "NaN", "-Infinity"),
    *("1.5", "true", "null", '"1"', "0x1"),
)
TEXTS = (
    *('"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', f'"{"x" * 100_000}"'),
    *("[]", "{}", "[[[]]]", '{"x": [1], "y": [1]}'),
)
BYTES = (
    *(b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\xef\xbb\xbf{}", b"\0" * 1_000),
    *(b"", b" ", b"null", b"1", b'"a"'),
)
PACKED = (
    *(b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"),
    *(b"\x91" * 100_000, b"\xc1", b"\xd4\x00\x00"),
)


def json_bodies(rng: random.Random) -> Iterator[bytes]:
    good = b'{"inputs": [1], "seq": 1}'
    yield from (good[:n] for n in range(len(good)))
    for depth in (31, 33, 1_000, 100_000):
        yield b'{"inputs": ' + b"[" * depth + b"]" * depth + b"}"
        yield b'{"a":' * depth + b"1" + b"}" * depth
        yield b"[" * depth
    for number in NUMBERS:
        yield f'{{"inputs": [{number}]}}'.encode()
        yield f'{{"inputs": {number}}}'.encode()
        yield f'{{"inputs": [1], "seq": {number}}}'.encode()
    for text in TEXTS:
        for key in ("inputs", "after", "create", "return", "streams", "to", "states", "horizon"):
            yield f'{{"{key}": {text}}}'.encode()
            yield f'{{"inputs": [1], "{key}": {text}}}'.encode()
    yield from (b'{"inputs": [1], "inputs": [2]}', b'{"inputs": {"x": [1], "x": [1]}}')
    yield from BYTES
    for _ in range(120):
        damaged = bytearray(good)
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        yield bytes(damaged)


def msgpack_bodies(rng: random.Random) -> Iterator[bytes]:
    tensor = {"d": "int64", "s": [1], "b": struct.pack("<q", 1)}
    good: bytes = msgspec.msgpack.encode({"inputs": tensor, "seq": 1})
    yield from (good[:n] for n in range(len(good)))
    odd: list[dict[str, Any]] = [
        {**tensor, "d": "object"},
        {**tensor, "d": "float32"},
        {**tensor, "d": "<i8"},
        {**tensor, "d": "O"},
        {**tensor, "d": 1},
        {**tensor, "s": [2**62, 2**62]},
        {**tensor, "s": [-1]},
        {**tensor, "s": [0]},
        {**tensor, "s": [1] * 100},
        {**tensor, "s": ["1"]},
        {**tensor, "b": b""},
        {**tensor, "b": "text"},
        {"d": "int64"},
        {},
    ]
    yield from (msgspec.msgpack.encode({"inputs": one}) for one in odd)
    yield from PACKED
    for _ in range(80):
        damaged = bytearray(good)
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        yield bytes(damaged)


ROUTES = (
    ("POST", "/v1/models/fold/streams/h/step"),
    ("POST", "/v1/models/fold/streams/h/steps"),
    ("POST", "/v1/models/fold/step"),
    ("POST", "/v1/models/fold/streams/h/peek"),
    ("POST", "/v1/models/fold/streams/h/reset"),
    ("POST", "/v1/models/fold/streams/h/fork"),
    ("PUT", "/v1/models/fold/streams/h/state"),
)


def test_malformed_bodies_cause_no_500_and_no_leak_and_the_service_keeps_working(one: ServiceProcess) -> None:
    """More than 400 bodies, each on several routes: every error is a problem document, and memory does not grow."""
    rng = random.Random(7)
    sent = [(body, "application/json") for body in json_bodies(rng)]
    sent += [(body, "application/msgpack") for body in msgpack_bodies(rng)]
    with httpx2.Client(base_url=one.url, timeout=30, trust_env=False) as http:
        http.post("/v1/models/fold/streams/h/step", json={"inputs": [1]})
        before = rss(one)
        worst: list[tuple[Any, ...]] = []
        for (body, kind), (method, path) in zip(sent * 3, itertools.cycle(ROUTES), strict=False):
            answer = http.request(method, path, content=body, headers={"content-type": kind})
            known = answer.status_code < 300 or (400 <= answer.status_code < 500 and "code" in answer.json())
            if not known or any(canary in answer.content for canary in CANARIES):
                worst.append((method, path, body[:80], answer.status_code, answer.content[:200]))
        growth = rss(one) - before
        after = [http.post("/v1/models/fold/streams/fine/step", json={"inputs": [x], "seq": x}).json() for x in (1, 2)]

    assert len(sent) >= 400
    assert worst == []
    assert growth < GROWTH
    assert [answer["outputs"]["y"][0] for answer in after] == fold_reference([1, 2])


def test_the_log_contains_neither_keys_nor_inputs(one: ServiceProcess) -> None:
    secrets = ("canary-of-a-key", "canary-of-an-input", "4242424242")
    with httpx2.Client(base_url=one.url, timeout=30, trust_env=False) as http:
        for method, path in (*ROUTES, ("GET", "/v1/models/canary-of-an-input%0aERROR%20forged")):
            for body in ('{"inputs": ["canary-of-an-input"]}', '{"inputs": [4242424242, 1]}', '{"inputs": [4242424242'):
                http.request(method, path, content=body, headers={"authorization": f"Bearer {secrets[0]}"})
    log = one.log.read_text()

    assert [secret for secret in secrets if secret in log] == []
    assert "Traceback" not in log
    assert "\nERROR" not in log
