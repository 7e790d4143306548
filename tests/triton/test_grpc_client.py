"""`tritonclient[grpc]`, unmodified, against a running service: calls, streams, asyncio, errors."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from stepwell_export.runtime.manifest import Array
from tests.addons.grpc_api.conftest import GrpcService
from tests.graphs import fold, fold_reference, latch, lstm, stateless, two_inputs, write_models
from tests.servers import Server
from tests.triton.offline import offline_predictions

REASON = "tritonclient[grpc] is not installed: STEPWELL_EXTRAS=triton"
triton = pytest.importorskip("tritonclient.grpc", reason=REASON)
utils = pytest.importorskip("tritonclient.utils", reason=REASON)
pytest.importorskip("grpc_reflection", reason="grpcio-reflection is not installed: STEPWELL_EXTRAS=grpc")


@pytest.fixture(scope="module")
def grpc_service(shared_redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrpcService]:
    folder = tmp_path_factory.mktemp("grpc")
    models = write_models(folder / "models", fold, two_inputs, latch, lstm, stateless)
    one = GrpcService(models, folder, "--redis", shared_redis.url, "--drain-s", "0")
    with one.running():
        yield one


@pytest.fixture
def client(grpc_service: GrpcService) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{grpc_service.grpc_port}") as one:
        yield one


def infer_input(name: str, array: Array) -> Any:
    one = triton.InferInput(name, list(array.shape), utils.np_to_triton_dtype(array.dtype))
    one.set_data_from_numpy(array)
    return one


def integer(x: int) -> list[Any]:
    return [infer_input("x", np.array([[x]], np.int64))]


def y_of(result: Any) -> int:
    return int(result.as_numpy("y")[0, 0])


@pytest.mark.parametrize("kind", ["number", "text", "UUID"])
def test_interleaved_sequences_are_each_answered(client: Any, stream: str, kind: str) -> None:
    """As in Triton's example: two sequences, some values, start and end flags."""
    ids: dict[str, tuple[int | str, int | str]] = {
        "number": (2007, 2009),
        "text": (stream, f"{stream}-b"),
        "UUID": ("e333c95a-07fc-42d2-ab16-033b1a566ed7", "e333c95a-07fc-42d2-ab16-033b1a566ed8"),
    }
    values = [0, 11, 7, 5, 3, 2, 0, 1]
    found: list[list[int]] = [[], []]
    for at, value in enumerate(values):
        flags = {"sequence_start": at == 0, "sequence_end": at == len(values) - 1}
        for one, sign in ((0, 1), (1, -1)):
            result = client.infer("fold", integer(sign * value), sequence_id=ids[kind][one], **flags)
            found[one].append(y_of(result))

    assert found == [fold_reference(values), fold_reference([-value for value in values])]


def test_the_streaming_sequence_example_works(client: Any, stream: str) -> None:
    """As in Triton's example: two sequences over one stream, with callbacks."""
    values = [0, 11, 7, 5, 3, 2, 0, 1]
    results: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(callback=partial(lambda sink, result, error: sink.put((result, error)), results))
    for at, value in enumerate(values):
        for name, sign in ((stream, 1), (f"{stream}-b", -1)):
            client.async_stream_infer(
                "fold", integer(sign * value), request_id=f"{name}_{at}", sequence_id=name,
                sequence_start=at == 0, sequence_end=at == len(values) - 1,
            )  # fmt: skip
    client.async_stream_infer("fold", integer(1), request_id="late", sequence_id=stream)
    got = [results.get(timeout=60) for _ in range(2 * len(values) + 1)]
    client.stop_stream()

    assert [error for _, error in got[:-1]] == [None] * 16
    assert [y_of(result) for result, _ in got[:-1:2]] == fold_reference(values)
    assert [y_of(result) for result, _ in got[1:-1:2]] == fold_reference([-value for value in values])
    assert [result.get_response().id for result, _ in got[:2]] == [f"{stream}_0", f"{stream}-b_0"]
    assert "must specify the START flag" in got[-1][1].message()


def test_float_predictions_equal_those_of_onnxruntime(client: Any, stream: str) -> None:
    xs = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)
    outputs = [triton.InferRequestedOutput("y")]
    answers = [
        client.infer("lstm", [infer_input("x", x[None])], outputs=outputs, sequence_id=stream,
                     sequence_start=at == 0, sequence_end=at == 19).as_numpy("y")[0]
        for at, x in enumerate(xs)
    ]  # fmt: skip

    np.testing.assert_array_equal(answers, offline_predictions(lstm, xs))


def test_several_tensors_of_several_dtypes_can_be_sent(client: Any, stream: str) -> None:
    a, b = np.array([[1, 2**60]], np.int64), np.array([3], np.int32)
    result = client.infer(
        "two_inputs", [infer_input("b", b), infer_input("a", a)], sequence_id=stream, sequence_start=True
    )
    flags = client.infer(
        "latch", [infer_input("x", np.array([[True, False]]))], sequence_id=stream, sequence_start=True
    )

    assert result.as_numpy("total").tolist() == [[4, 2**60 + 3]]
    assert flags.as_numpy("y").tolist() == [[True, False]]


def test_a_stateless_model_accepts_batches_without_a_sequence(client: Any) -> None:
    x = np.arange(20, dtype=np.float32).reshape(10, 2)

    assert client.infer("stateless", [infer_input("x", x)]).as_numpy("y").tolist() == (2 * x).tolist()


def test_a_retry_is_applied_once(client: Any, stream: str) -> None:
    client.infer("fold", integer(1), sequence_id=stream, sequence_start=True)
    found = [client.infer("fold", integer(2), sequence_id=stream, parameters={"step": 2}) for _ in range(2)]

    assert [y_of(one) for one in found] == [fold_reference([1, 2])[1]] * 2
    assert [one.get_response().parameters["replayed"].bool_param for one in found] == [False, True]


def test_callbacks_and_compression_work(client: Any, stream: str) -> None:
    got: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.async_infer(
        "fold", integer(5), callback=lambda result, error: got.put((result, error)), sequence_id=stream,
        sequence_start=True, compression_algorithm="gzip",
    )  # fmt: skip
    result, error = got.get(timeout=60)

    assert (error, y_of(result)) == (None, fold_reference([5])[0])


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        ({}, "INVALID_ARGUMENT", "inference request for sequence {} to model 'fold' must specify the START flag"),
        ({"model_version": "9"}, "NOT_FOUND", "Request for unknown model: 'fold' version 9 is not found"),
        ({"sequence_id": 0}, "INVALID_ARGUMENT", "must specify a non-zero or non-empty correlation ID"),
    ],
)
def test_a_rejection_is_an_exception_with_tritons_status(
    client: Any, stream: str, more: dict[str, Any], status: str, words: str
) -> None:
    with pytest.raises(utils.InferenceServerException) as refused:
        client.infer("fold", integer(1), **{"sequence_id": stream, **more})

    assert refused.value.status() == f"StatusCode.{status}"
    assert words.format(stream) in refused.value.message()


async def test_the_asyncio_client_works(grpc_service: GrpcService, stream: str) -> None:
    """Its calls, and its streams."""
    aio = pytest.importorskip("tritonclient.grpc.aio", reason=REASON)

    async def requests() -> Any:
        for at, x in enumerate((4, 5, 6)):
            yield {"model_name": "fold", "inputs": integer(x), "sequence_id": f"{stream}-s", "sequence_start": at == 0}

    async with aio.InferenceServerClient(f"127.0.0.1:{grpc_service.grpc_port}") as client:
        assert await client.is_server_live()
        found = [
            y_of(await client.infer("fold", integer(x), sequence_id=stream, sequence_start=at == 0))
            for at, x in enumerate((1, 2, 3))
        ]
        streamed = [y_of(result) async for result, _ in client.stream_infer(requests())]

    assert found == fold_reference([1, 2, 3])
    assert streamed == fold_reference([4, 5, 6])


def test_the_other_calls_of_the_client_work(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("fold")
    assert client.is_model_ready("fold", "1")
    assert not client.is_model_ready("fold", "2")
    assert "sequence(string_id)" in client.get_server_metadata().extensions
    [about] = client.get_model_metadata("fold").inputs
    assert (about.name, about.datatype, list(about.shape)) == ("x", "INT64", [-1, 1])
    assert client.get_model_config("fold", as_json=True)["config"]["sequence_batching"]
    assert {one.name for one in client.get_inference_statistics().model_stats} >= {"fold", "lstm"}
    assert "fold" in {one.name for one in client.get_model_repository_index().models}
    client.unload_model("latch")
    assert not client.is_model_ready("latch")
    client.load_model("latch")
    assert client.is_model_ready("latch")
    with pytest.raises(utils.InferenceServerException) as refused:
        client.get_system_shared_memory_status()
    assert refused.value.status() == "StatusCode.UNIMPLEMENTED"
