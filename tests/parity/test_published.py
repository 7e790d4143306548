"""Parity: published models, adopted unchanged, answer over HTTP as the inference code of their authors."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import msgspec
import numpy as np
import pytest

from stepwell_export.adoption.autoconfigure import adopt, write_sidecar
from tests.parity.transports import MSGPACK, packed, unpacked
from tests.processes import ServiceProcess, service_process
from tests.published import NAMES, published

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def served() -> Iterator[ServiceProcess]:
    originals = [published(name) for name in NAMES]
    with tempfile.TemporaryDirectory(prefix="sw") as folder:
        models = Path(folder) / "models"
        models.mkdir()
        for original in originals:
            file = models / original.file.name
            shutil.copyfile(original.file, file)
            write_sidecar(file, adopt(file, hints=original.hints).manifest)
        with service_process(models, Path(folder) / "s") as one:
            yield one


@pytest.mark.parametrize("name", NAMES)
def test_every_timestep_equals_the_authors_result(served: ServiceProcess, name: str) -> None:
    one = published(name)
    found = []
    with httpx2.Client(base_url=served.url, trust_env=False, timeout=30) as http:
        for seq, x in enumerate(one.xs, 1):
            body = msgspec.msgpack.encode({"inputs": {one.given: packed(x)}, "seq": seq})
            answer = http.post(f"/v1/models/{one.file.stem}/streams/one/step", content=body, headers=MSGPACK)
            assert answer.status_code == 200, answer.content
            found.append(unpacked(msgspec.msgpack.decode(answer.content)["outputs"][one.answered]).ravel())

    assert len(found) >= 40
    np.testing.assert_allclose(found, one.ys, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_recording_in_one_request_equals_the_authors_results(served: ServiceProcess, name: str) -> None:
    one = published(name)
    body = msgspec.msgpack.encode({"inputs": {one.given: packed(one.xs)}})
    with httpx2.Client(base_url=served.url, trust_env=False, timeout=30) as http:
        answer = http.post(f"/v1/models/{one.file.stem}/streams/whole/steps", content=body, headers=MSGPACK)
    found = unpacked(msgspec.msgpack.decode(answer.content)["outputs"][one.answered])

    np.testing.assert_allclose(found.reshape(one.ys.shape), one.ys, rtol=0, atol=TOLERANCE)
