"""What a stream has learned is a fold over its timesteps: retries, copies, resets, rollouts and kills change no bit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import onnx
import pytest

from stepwell.addons.releases.paired import PairedModel
from stepwell_client import Client, Stream
from stepwell_export.chunk.selection import choose_chunk
from stepwell_export.converted import with_manifest
from stepwell_export.exporter import convert_source
from stepwell_export.runtime.feedback import with_feedback
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.stages import AdaptiveThreshold, Conformal, Impute, Part, Pipeline, Readout
from stepwell_export.verify.tolerance import DEFAULT
from tests.model_export.streaming.zoo_parts import graph
from tests.processes import ServiceProcess, service_process
from tests.servers import AOF, Server, server

HORIZON = 2


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_learning_model(tmp_path_factory.mktemp("models"))


def write_learning_model(folder: Path) -> Path:
    """Write one model, `machine`: a running sum `h`, what is read out of it, an interval and a threshold."""
    sums = folder / "sums.onnx"
    onnx.save(graph("(float[b, t, 2] x) => (float[b, t, 2] h) { h = CumSum (x, a) }", a=np.int64(1)), sums)
    parts = [
        Impute(0.0, of="x", to="filled"),
        Part(sums, of="filled"),
        Readout("h", "x[0]", HORIZON, 0.95),
        Conformal("y", "x[0]", horizon=HORIZON),
        AdaptiveThreshold("h", warm=3),
    ]
    whole = convert_source(Pipeline(parts, outputs=["h", "y", "low", "high", "threshold", "exceeds"]), name="machine")
    manifest = with_feedback(whole.manifest, {"x": "h"})
    with tempfile.TemporaryDirectory() as work:
        written, model, _ = choose_chunk(
            whole.proto, manifest, [{"x": timesteps(20)[None]}], DEFAULT, folder=Path(work)
        )
        content = written.read_bytes()
    sums.unlink()
    (folder / "machine.onnx").write_bytes(with_manifest(content, model.manifest))
    return folder


@pytest.fixture
def redis(short_path: Path) -> Iterator[Server]:
    with server(short_path / "r", *AOF) as one:
        yield one


@pytest.fixture
def service(models: Path, redis: Server, tmp_path: Path) -> Iterator[ServiceProcess]:
    with service_process(models, tmp_path / "service", "--redis", redis.url, "--drain-s", "0") as one:
        yield one


def timesteps(count: int, seed: int = 0) -> Array:
    """Rows of quarters, whose sums are exact in float32; some truths are missing."""
    rng = np.random.default_rng(seed)
    x = (rng.integers(-8, 9, (count, 2)) / 4).astype(np.float32)
    x[rng.random(count) < 0.2, 0] = np.nan
    return x


def test_both_versions_of_a_pair_learn_from_the_same_truths_and_neither_in_a_rollout(models: Path) -> None:
    alone, other = (StepModel(models / "machine.onnx") for _ in range(2))
    pair = PairedModel(alone, other, "shadow")
    states, want, rows = pair.initial_states(1), alone.initial_states(1), timesteps(30)
    for t, row in enumerate(rows):
        learn = not 12 <= t < 17
        _, states = pair.step({"x": row[None]}, states, learn=learn)
        _, want = alone.step({"x": row[None]}, want, learn=learn)

    for name, array in want.items():
        assert states[f"old.{name}"].tobytes() == states[f"new.{name}"].tobytes() == array.tobytes(), name


class Fold:
    """What a stream's state has to be: the model's own steps over its timesteps, one at a time."""

    def __init__(self, model: StepModel) -> None:
        self.model = model
        self.states = model.initial_states(1)
        self.last: Array = np.zeros((1, 2), np.float32)

    def step(self, rows: Array, *, learn: bool = True) -> None:
        for row in rows:
            outputs, self.states = self.model.step({"x": row[None]}, self.states, learn=learn)
            self.last = outputs["h"]

    def rollout(self, horizon: int) -> None:
        for _ in range(horizon):
            self.step(self.last.copy(), learn=False)

    def copy(self) -> Fold:
        other = Fold(self.model)
        other.states, other.last = dict(self.states), self.last
        return other

    def assert_equals(self, stream: Stream) -> None:
        found = stream.state().states
        assert found.keys() == self.states.keys()
        for name, array in self.states.items():
            assert np.asarray(found[name]).tobytes() == array[0].tobytes(), name


def step_twice(service: ServiceProcess, stream: Stream, row: Array) -> None:
    """Send a timestep, and its request again."""
    values = [None if np.isnan(value) else float(value) for value in row]
    body = {"inputs": {"x": values}, "seq": stream.resume() + 1}
    path = f"{service.url}/v1/models/machine/streams/{stream.name}/step"
    first, again = (httpx2.post(path, json=body, timeout=30, trust_env=False).json() for _ in range(2))
    assert again.get("replayed"), again
    assert again["outputs"] == first["outputs"]
    stream.resume()


def test_weights_are_a_fold_over_the_timesteps_of_a_stream(models: Path, service: ServiceProcess) -> None:
    want = Fold(StepModel(models / "machine.onnx"))

    def crash() -> None:
        service.kill()
        service.start()

    with Client(service.url) as client:
        stream = client.model("machine").stream("a")
        for row in timesteps(12, 1):
            step_twice(service, stream, row)
        want.step(timesteps(12, 1))
        want.assert_equals(stream)

        crash()
        stream.peek(timesteps(1, 2)[0])
        stream.peek(timesteps(5, 2), chunk=True)
        stream.rollout(6)
        want.assert_equals(stream)

        stream.take_snapshot("before")
        kept = want.copy()
        stream.steps(timesteps(7, 3))
        crash()
        other = stream.fork("b")
        want.step(timesteps(7, 3))
        want.assert_equals(other)

        stream.reset("before")
        kept.assert_equals(stream)

        stream.rollout(5, commit=True)
        kept.rollout(5)
        kept.assert_equals(stream)
        crash()
        for row in timesteps(6, 4):  # the first of these belong to predictions of the rollout
            step_twice(service, stream, row)
        kept.step(timesteps(6, 4))
        kept.assert_equals(stream)

        for row in timesteps(6, 5):
            step_twice(service, other, row)
        want.step(timesteps(6, 5))
        want.assert_equals(other)
