"""Parity: published models, adopted as their authors ship them, answer over HTTP as their authors' own loops do."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest

from model_export.adopt import adopt, write_sidecar
from model_export.hints import Hints
from tests.parity.doors import MSGPACK, Sequences, packed, unpacked
from tests.processes import Service, service

SHARED = Path(__file__).resolve().parents[3] / "shared" / "models"
MODELS = {
    "dtln/model_1": Hints(),
    "dtln/model_2": Hints(),
    "silero-vad/silero_vad": Hints(constants={"sr": 16000}, windows={"input": 64}, shapes={"input": [512]}),
}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def served() -> Iterator[Service]:
    if not SHARED.is_dir():
        pytest.skip(f"the published models are not at {SHARED}")
    with tempfile.TemporaryDirectory(prefix="sw") as folder:
        models = Path(folder) / "models"
        models.mkdir()
        for name, hints in MODELS.items():
            file = models / f"{Path(name).name}.onnx"
            shutil.copyfile((SHARED / name).with_suffix(".onnx"), file)
            write_sidecar(file, adopt(file, hints=hints).manifest)
        with service(models, Path(folder) / "s") as one:
            yield one


def reference(name: str) -> tuple[str, Sequences, str, Sequences]:
    """Return the names and arrays of what goes in, without the part that Stepwell keeps, and of what comes out."""
    arrays = dict(np.load((SHARED / name).with_suffix(".reference.npz")))
    [given], [answered] = ([key for key in arrays if key.startswith(kind)] for kind in ("x:", "y:"))
    context = sum(MODELS[name].windows.values())
    xs = arrays[given].reshape(len(arrays[given]), -1)[:, context:]
    return given[2:], xs, answered[2:], arrays[answered].reshape(len(xs), -1)


@pytest.mark.parametrize("name", MODELS)
def test_every_timestep_equals_the_authors_answer(served: Service, name: str) -> None:
    given, xs, answered, expected = reference(name)
    found = []
    with httpx.Client(base_url=served.url, trust_env=False, timeout=30) as http:
        for seq, x in enumerate(xs, 1):
            body = msgspec.msgpack.encode({"inputs": {given: packed(x)}, "seq": seq})
            answer = http.post(f"/v1/models/{Path(name).name}/streams/one/step", content=body, headers=MSGPACK)
            assert answer.status_code == 200, answer.content
            found.append(unpacked(msgspec.msgpack.decode(answer.content)["outputs"][answered]).ravel())

    assert len(found) >= 40
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", MODELS)
def test_a_whole_recording_in_one_request_equals_the_authors_answers(served: Service, name: str) -> None:
    given, xs, answered, expected = reference(name)
    body = msgspec.msgpack.encode({"inputs": {given: packed(np.ascontiguousarray(xs))}})
    with httpx.Client(base_url=served.url, trust_env=False, timeout=30) as http:
        answer = http.post(f"/v1/models/{Path(name).name}/streams/whole/steps", content=body, headers=MSGPACK)
    found = unpacked(msgspec.msgpack.decode(answer.content)["outputs"][answered])

    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=0, atol=TOLERANCE)
