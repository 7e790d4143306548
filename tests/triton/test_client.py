"""`tritonclient[http]`, unmodified, against a running service: its calls, errors and defaults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.api.running import Service
from tests.graphs import fold_reference
from tests.triton.laws import ClientLaws, y_of

triton = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed: STEPWELL_EXTRAS=triton")
utils = pytest.importorskip("tritonclient.utils", reason="tritonclient is not installed: STEPWELL_EXTRAS=triton")


class ClosedOnce(triton.InferenceServerClient):  # type: ignore[name-defined, misc]  # what importorskip returned
    """Triton's client, which otherwise closes again in whichever thread collects it; gevent refuses other threads."""

    def __del__(self) -> None:
        pass


@pytest.fixture
def client(service: Service) -> Iterator[Any]:
    with ClosedOnce(f"127.0.0.1:{service.port}") as one:
        yield one


class TestClient(ClientLaws):
    """The client over HTTP, whose tensors are binary or JSON."""

    triton, utils = triton, utils
    forms = ({"binary_data": False}, {"binary_data": True})
    statuses = ("400", "404")

    def is_replayed(self, result: Any) -> bool:
        return bool(result.get_response()["parameters"]["replayed"])

    def test_float16_can_be_sent(self, client: Any, stream: str) -> None:
        x = np.array([[0.5, -2]], np.float16)
        found = client.infer("half", [self.infer_input("x", x)], sequence_id=stream, sequence_start=True).as_numpy("y")

        assert (found.dtype, found.tolist()) == (x.dtype, x.tolist())

    def test_strings_for_numbers_are_rejected(self, client: Any, stream: str) -> None:
        one = self.infer_input("x", np.array([[b"a"]], object))
        with pytest.raises(
            utils.InferenceServerException, match="data-type is 'BYTES', but model 'fold' expects 'INT64'"
        ):
            client.infer("fold", [one], sequence_id=stream, sequence_start=True)

    @pytest.mark.parametrize("how", ["gzip", "deflate"])
    def test_compressed_requests_are_accepted(self, client: Any, stream: str, how: str) -> None:
        more: dict[str, Any] = {"request_compression_algorithm": how, "response_compression_algorithm": how}

        assert y_of(self.infer(client, 5, stream, sequence_start=True, **more)) == fold_reference([5])[0]

    def test_the_response_parameters_can_be_read(self, client: Any, stream: str) -> None:
        result = self.infer(client, 5, stream, sequence_start=True, request_id="r1", parameters={"step": 1})

        response = result.get_response()
        assert (response["id"], response["model_name"], response["model_version"]) == ("r1", "fold", "1")
        assert response["parameters"] == {"sequence_id": stream, "step": 1, "replayed": False}

    def test_a_retry_with_an_idempotency_key_is_applied_once(self, client: Any, stream: str) -> None:
        self.infer(client, 1, stream, sequence_start=True)
        found = [self.infer(client, 3, stream, sequence_end=True, headers={"Idempotency-Key": "k"}) for _ in range(2)]

        assert [y_of(one) for one in found] == [fold_reference([1, 3])[1]] * 2
        assert [self.is_replayed(one) for one in found] == [False, True]

    def test_many_concurrent_requests_are_answered(self, client: Any, service: Service, stream: str) -> None:
        with ClosedOnce(f"127.0.0.1:{service.port}", concurrency=8) as wide:
            for turn in (0, 1):
                asked = [
                    wide.async_infer(
                        "fold", [self.infer_input("x", np.array([[n]], np.int64))],
                        sequence_id=f"{stream}-{n}", sequence_start=turn == 0,
                    )
                    for n in range(40)
                ]  # fmt: skip
                found = [y_of(one.get_result()) for one in asked]

        assert found == [fold_reference([n, n])[1] for n in range(40)]

    async def test_the_asyncio_client_works(self, service: Service, stream: str) -> None:
        aio = pytest.importorskip(
            "tritonclient.http.aio", reason="tritonclient is not installed with aiohttp: STEPWELL_EXTRAS=triton"
        )
        async with aio.InferenceServerClient(f"127.0.0.1:{service.port}") as client:
            assert await client.is_server_live()
            for at, x in enumerate((1, 2, 3)):
                one = self.infer_input("x", np.array([[x]], np.int64))
                found = y_of(await client.infer("fold", [one], sequence_id=stream, sequence_start=at == 0))

        assert found == fold_reference([1, 2, 3])[-1]

    def test_the_other_calls_of_the_client_work(self, client: Any) -> None:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("fold")
        assert client.is_model_ready("fold", "1")
        assert not client.is_model_ready("fold", "2")
        assert "sequence(string_id)" in client.get_server_metadata()["extensions"]
        assert client.get_model_metadata("fold")["inputs"] == [{"name": "x", "datatype": "INT64", "shape": [-1, 1]}]
        assert client.get_model_config("fold")["sequence_batching"]["max_sequence_idle_microseconds"] > 0
        assert {one["name"] for one in client.get_inference_statistics()["model_stats"]} >= {"fold", "lstm"}
        assert client.get_inference_statistics("fold", "1")["model_stats"][0]["name"] == "fold"
        assert {"name": "fold", "version": "1", "state": "READY", "reason": ""} in client.get_model_repository_index()
        client.load_model("fold")
        client.unload_model("latch")
        assert not client.is_model_ready("latch")
        client.load_model("latch")
        assert client.is_model_ready("latch")
        with pytest.raises(utils.InferenceServerException, match="There is no route"):
            client.get_system_shared_memory_status()
