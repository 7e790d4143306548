"""`tritonclient[grpc]`, unmodified, against a running service: calls, streams, asyncio, errors."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from tests.addons.grpc_api.conftest import GrpcService
from tests.graphs import fold, fold_reference, latch, lstm, stateless, two_inputs, write_models
from tests.servers import Server
from tests.triton.laws import VALUES, ClientLaws, y_of

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


class TestGrpcClient(ClientLaws):
    """The client over gRPC."""

    triton, utils = triton, utils
    statuses = ("StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND")

    def integer(self, x: int) -> list[Any]:
        return [self.infer_input("x", np.array([[x]], np.int64))]

    def is_replayed(self, result: Any) -> bool:
        return bool(result.get_response().parameters["replayed"].bool_param)

    def test_the_streaming_sequence_example_works(self, client: Any, stream: str) -> None:
        """As in Triton's example: two sequences over one stream, with callbacks."""
        results: queue.Queue[tuple[Any, Any]] = queue.Queue()
        client.start_stream(callback=partial(lambda sink, result, error: sink.put((result, error)), results))
        for at, value in enumerate(VALUES):
            for name, sign in ((stream, 1), (f"{stream}-b", -1)):
                client.async_stream_infer(
                    "fold", self.integer(sign * value), request_id=f"{name}_{at}", sequence_id=name,
                    sequence_start=at == 0, sequence_end=at == len(VALUES) - 1,
                )  # fmt: skip
        client.async_stream_infer("fold", self.integer(1), request_id="late", sequence_id=stream)
        got = [results.get(timeout=60) for _ in range(2 * len(VALUES) + 1)]
        client.stop_stream()

        assert [error for _, error in got[:-1]] == [None] * 16
        assert [y_of(result) for result, _ in got[:-1:2]] == fold_reference(VALUES)
        assert [y_of(result) for result, _ in got[1:-1:2]] == fold_reference([-value for value in VALUES])
        assert [result.get_response().id for result, _ in got[:2]] == [f"{stream}_0", f"{stream}-b_0"]
        assert "must specify the START flag" in got[-1][1].message()

    def test_callbacks_and_compression_work(self, client: Any, stream: str) -> None:
        got: queue.Queue[tuple[Any, Any]] = queue.Queue()
        client.async_infer(
            "fold", self.integer(5), callback=lambda result, error: got.put((result, error)), sequence_id=stream,
            sequence_start=True, compression_algorithm="gzip",
        )  # fmt: skip
        result, error = got.get(timeout=60)

        assert (error, y_of(result)) == (None, fold_reference([5])[0])

    async def test_the_asyncio_client_works(self, grpc_service: GrpcService, stream: str) -> None:
        """Its calls, and its streams."""
        aio = pytest.importorskip("tritonclient.grpc.aio", reason=REASON)

        async def requests() -> Any:
            for at, x in enumerate((4, 5, 6)):
                given = {"model_name": "fold", "inputs": self.integer(x), "sequence_id": f"{stream}-s"}
                yield {**given, "sequence_start": at == 0}

        async with aio.InferenceServerClient(f"127.0.0.1:{grpc_service.grpc_port}") as client:
            assert await client.is_server_live()
            found = [
                y_of(await client.infer("fold", self.integer(x), sequence_id=stream, sequence_start=at == 0))
                for at, x in enumerate((1, 2, 3))
            ]
            streamed = [y_of(result) async for result, _ in client.stream_infer(requests())]

        assert found == fold_reference([1, 2, 3])
        assert streamed == fold_reference([4, 5, 6])

    def test_the_other_calls_of_the_client_work(self, client: Any) -> None:
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
