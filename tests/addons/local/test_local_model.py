"""`stepwell.LocalModel`: the same model file here and in a service, and streams that move between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stepwell
from stepwell import AsyncClient, Client, ClientError, LocalModel, LocalStream, PackedState
from tests.all_clients.kit import KIT, Case
from tests.all_clients.model import doubling
from tests.all_clients.python_kit import plain_result
from tests.api.running import Service, running_service
from tests.exactly_once.test_learned import timesteps, write_learning_model
from tests.graphs import (
    Built,
    batch_axis_1,
    fold,
    last_seen,
    latch,
    latest,
    lstm,
    moving_sum,
    nan_at,
    no_batch_axis,
    scaled,
    stateless,
    time_axis,
    total_half,
    two_inputs,
    write_model,
    write_models,
)
from tests.servers import Server

MODELS: list[Callable[[], Built]] = [
    *(batch_axis_1, doubling, fold, last_seen, latch, latest, lstm, moving_sum, no_batch_axis, scaled, stateless),
    *(time_axis, total_half, two_inputs),
]
NAMES = [build.__name__ for build in MODELS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), *MODELS, nan_at=lambda: nan_at(3))


@pytest.fixture(scope="module")
def service(shared_redis: Server, folder: Path) -> Iterator[Service]:
    with running_service(shared_redis.url, folder) as running:
        yield running


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{service.port}") as made:
        yield made


def load(folder: Path, name: str) -> LocalModel:
    return LocalModel.load(folder / f"{name}.onnx")


def rows(model: LocalModel, count: int) -> list[dict[str, Any]]:
    """Timesteps of a model, as arrays of its dtypes."""
    numbers = np.random.default_rng(0)

    def row(dtype: str, shape: list[int]) -> Any:
        if np.dtype(dtype).kind == "f":
            return numbers.normal(size=shape).astype(dtype)
        return numbers.integers(0, 2, shape).astype(dtype)

    return [{spec.name: row(spec.dtype, spec.shape) for spec in model.describe().inputs} for _ in range(count)]


def plain(outputs: dict[str, Any]) -> dict[str, Any]:
    return {name: array.tolist() for name, array in outputs.items()}


# ------------------------------------------------------------------- the same as in a service


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_here_equals_one_in_a_service_bit_for_bit(
    client: Client, folder: Path, stream: str, name: str
) -> None:
    model = load(folder, name)
    here, there = model.stream(), client.model(name).stream(stream.replace("[", "-").replace("]", ""))
    for x in rows(model, 5):
        mine, theirs = here.step(x), there.step(x)
        assert (plain(mine.outputs), mine.step) == (plain(theirs.outputs), theirs.step)
    assert here.state() == there.packed_state()
    assert model.stream(here.state()).state() == here.state()


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name != "total_half"]
)  # whose state is rounded at each step
def test_a_chunk_equals_its_timesteps(folder: Path, name: str) -> None:
    model = load(folder, name)
    xs = rows(model, 4)
    whole, single = model.stream(), model.stream()
    chunk = whole.steps({name: np.stack([x[name] for x in xs]) for name in xs[0]})
    steps = [single.step(x) for x in xs]

    for output, array in chunk.outputs.items():
        np.testing.assert_allclose(array, np.stack([step.outputs[output] for step in steps]), atol=1e-6)
    assert chunk.step == steps[-1].step == 4


def test_a_stream_moves_to_a_service_and_back(client: Client, folder: Path, stream: str) -> None:
    model = load(folder, "lstm")
    xs = rows(model, 9)
    expected = [plain(one.outputs) for one in map(model.stream().step, xs)]

    local = model.stream()
    found = [local.step(x) for x in xs[:3]]
    there = client.model("lstm").stream(stream)
    moved = local.move_to(there)
    found += [there.step(x) for x in xs[3:6]]
    back = LocalStream.from_stream(model, there)
    found += [back.step(x) for x in xs[6:]]

    assert (moved.step, [one.step for one in found]) == (3, [*range(1, 10)])
    assert [plain(one.outputs) for one in found] == expected


async def test_a_stream_moves_by_the_client_for_asyncio(service: Service, folder: Path, stream: str) -> None:
    model = load(folder, "fold")
    local = model.stream()
    local.step([5])
    async with AsyncClient(f"http://127.0.0.1:{service.port}") as client:
        there = client.model("fold").stream(stream)
        await local.move_to(there)
        back = model.stream(await there.packed_state())

    assert back.state() == local.state()


def test_a_run_of_a_service_goes_on_from_a_local_state(client: Client, folder: Path) -> None:
    local = load(folder, "fold").stream()
    local.step([5])
    run = client.model("fold").run([7], local.state().state)

    assert plain(run.outputs) == plain(local.step([7]).outputs)


# ------------------------------------------------------------------- streams


@pytest.mark.parametrize("case", KIT["local"], ids=[case["name"] for case in KIT["local"]])
def test_a_local_model_behaves_as_the_case_expects(folder: Path, case: dict[str, Any]) -> None:
    run, model = Case(case), load(folder, KIT["model"])
    streams = {name: model.stream() for name in ("a", "b")}
    for action in case["do"]:
        call = run.fill(action)
        stream = streams[call.get("stream", "a")]
        try:
            match call["call"]:
                case "steps":
                    found: Any = stream.steps(call["inputs"], call.get("return", "all"))
                case "step":
                    found = stream.step(call["inputs"])
                case "fork":
                    found = streams[call["to"]] = stream.fork()
                case "from":
                    found = streams[call.get("stream", "a")] = model.stream(PackedState(call["state"], call["step"]))
                case method:
                    found = getattr(stream, method)()
        except ClientError as error:
            found = error
        found = {} if isinstance(found, LocalStream) else plain_result(found)
        assert ("error" in action) == ("code" in found), f"{action}: {found}"
        run.check(action, found)


def test_a_model_with_learning_stages_learns_here_and_in_runs(
    shared_redis: Server, tmp_path: Path, stream: str
) -> None:
    learning = write_learning_model(tmp_path)
    model = load(learning, "machine")
    here, state = model.stream(), None
    with running_service(shared_redis.url, learning) as running, Client(f"http://127.0.0.1:{running.port}") as client:
        there = client.model("machine").stream(stream)
        for x in timesteps(12):
            run = client.model("machine").run(x, state)
            mine, theirs, state = here.step(x), there.step(x), run.state
            assert plain(mine.outputs) == plain(theirs.outputs) == plain(run.outputs)
        assert here.state() == there.packed_state() == PackedState(run.state, 12)


def test_missing_values_reach_the_graph(folder: Path) -> None:
    stream = load(folder, "last_seen").stream()
    stream.step({"a": [3, 4], "b": 5})

    assert plain(stream.step({"a": np.array([1, None])}).outputs) == {"y": [1, 4], "z": 5}
    assert plain(stream.steps({"a": np.array([[None, 2], [1, None]])}).outputs) == {"y": [[1, 2], [1, 2]], "z": [5, 5]}


def test_a_timestep_whose_state_is_not_finite_leaves_the_state(folder: Path) -> None:
    stream = load(folder, "nan_at").stream()
    stream.steps([[1], [1]])
    before = stream.state()
    with pytest.raises(ClientError) as caught:
        stream.step([1])

    assert caught.value.code == "non_finite_state"
    assert stream.state() == before


@pytest.mark.parametrize(
    ("name", "x"),
    [("lstm", [1.0]), ("lstm", {"z": [1, 2, 3, 4]}), ("fold", [0.5]), ("two_inputs", {"a": [1, 2]}), ("lstm", "text")],
)
def test_an_input_that_does_not_fit_is_refused(folder: Path, name: str, x: Any) -> None:
    with pytest.raises(ClientError) as caught:
        load(folder, name).stream().step(x)

    assert caught.value.code == "bad_input"


def test_a_state_is_refused_as_a_service_refuses_it(folder: Path) -> None:
    model, other = load(folder, "lstm"), load(folder, "fold")
    for state, code in (("AAAA", "bad_request"), (other.stream().state(), "model_changed")):
        with pytest.raises(ClientError) as caught:
            model.stream(state)
        assert caught.value.code == code


def test_a_model_is_loaded_from_its_bytes_and_has_labels(tmp_path: Path) -> None:
    def labelled() -> Built:
        graph, manifest = doubling()
        manifest.inputs[0].model_extra.update(labels=["level"], unit="m")  # type: ignore[union-attr]  # it has some
        return graph, manifest

    write_model(tmp_path, "labelled", labelled)
    model = LocalModel.load((tmp_path / "labelled.onnx").read_bytes())

    assert [(one.name, one.labels, one.unit) for one in model.describe().inputs] == [("x", ["level"], "m")]


def test_stepwell_imports_it_when_it_is_used() -> None:
    assert stepwell.LocalModel is LocalModel
