"""Samples of 16 bits: a dtype of manifest and wire, in JSON and msgpack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest

from stepwell_client import Client
from stepwell_export.exporter import export_source
from stepwell_export.stages import PCM16, Frames, Pipeline
from tests.api.running import Service, running_service
from tests.api.test_streams import code_of
from tests.model_export.streaming.zoo_parts import graph
from tests.servers import Server


@pytest.fixture(scope="module")
def pcm(shared_redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A model that returns the last four samples, halved."""
    folder = tmp_path_factory.mktemp("models")
    half = tmp_path_factory.mktemp("part") / "half.onnx"
    onnx.save(graph("(float[b, 4] x) => (float[b, 4] y) { y = Mul (x, h) }", h=np.float32(0.5)), half)
    export_source(Pipeline([PCM16(), Frames(4, 2), half, PCM16().inverse()]), folder / "pcm.onnx")
    with running_service(shared_redis.url, folder) as one:
        yield one


def test_integers_of_16_bits_go_in_and_come_out_in_json(pcm: Service) -> None:
    first, second = (
        pcm.http.post(pcm.path("pcm", "json", "step"), json={"inputs": {"x": x}}).json()
        for x in ([7, 8], [-32768, 32767])
    )

    assert first["outputs"] == {"y": [0, 0, 4, 4]}  # 3.5 and 4, half to even
    assert second["outputs"] == {"y": [4, 4, -16384, 16384]}


def test_what_is_no_integer_of_16_bits_is_422(pcm: Service) -> None:
    others: list[list[Any]] = [[0, 32768], [0, -32769], [0, 1.5], [0, 2**70], [0, "1"], [0, True]]
    for x in others:
        answer = pcm.http.post(pcm.path("pcm", "wrong", "step"), json={"inputs": {"x": x}})

        assert (answer.status_code, code_of(answer)) == (422, "bad_input"), x


def test_they_are_int16_in_the_client(pcm: Service) -> None:
    with Client(str(pcm.http.base_url)) as client:
        found = client.model("pcm").stream("msgpack").steps(np.array([[2, 4], [6, 8]], np.int16))

    assert found.output.dtype == np.int16
    assert found.output.tolist() == [[0, 0, 1, 2], [1, 2, 3, 4]]
