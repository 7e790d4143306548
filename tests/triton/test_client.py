"""`tritonclient[http]`, unmodified, against a running service: its calls, errors and defaults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from stepwell_export.runtime.manifest import Array
from tests.api.running import Service
from tests.graphs import fold_reference, lstm
from tests.triton.offline import offline_predictions

triton = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed: STEPWELL_EXTRAS=triton")
utils = pytest.importorskip("tritonclient.utils", reason="tritonclient is not installed: STEPWELL_EXTRAS=triton")

FORMS = pytest.mark.parametrize("binary", [False, True], ids=["JSON", "binary"])


class ClosedOnce(triton.InferenceServerClient):  # type: ignore[name-defined, misc]  # what importorskip returned
    """Triton's client, which otherwise closes again in whichever thread collects it; gevent refuses other threads."""

    def __del__(self) -> None:
        pass


@pytest.fixture
def client(service: Service) -> Iterator[Any]:
    with ClosedOnce(f"127.0.0.1:{service.port}") as one:
        yield one


def infer_input(name: str, array: Array, *, binary: bool = True) -> Any:
    one = triton.InferInput(name, list(array.shape), utils.np_to_triton_dtype(array.dtype))
    one.set_data_from_numpy(array, binary_data=binary)
    return one


def infer(client: Any, x: int, sequence: int | str, *, binary: bool = True, **more: Any) -> Any:
    """Send one timestep of `fold`."""
    outputs = None if binary else [triton.InferRequestedOutput("y", binary_data=False)]
    one = infer_input("x", np.array([[x]], np.int64), binary=binary)
    return client.infer("fold", [one], outputs=outputs, sequence_id=sequence, **more)


def y_of(result: Any) -> int:
    return int(result.as_numpy("y")[0, 0])


@FORMS
@pytest.mark.parametrize("kind", ["number", "text", "UUID"])
def test_interleaved_sequences_are_each_answered(client: Any, stream: str, kind: str, binary: bool) -> None:
    """As in Triton's example: two sequences, some values, start and end flags."""
    ids: dict[str, tuple[int | str, int | str]] = {
        "number": (1007 + binary, 1009 + binary),
        "text": (stream, f"{stream}-b"),
        "UUID": ("e333c95a-07fc-42d2-ab16-033b1a566ed5", "e333c95a-07fc-42d2-ab16-033b1a566ed6"),
    }
    values = [0, 11, 7, 5, 3, 2, 0, 1]
    found: list[list[int]] = [[], []]
    for at, value in enumerate(values):
        flags = {"sequence_start": at == 0, "sequence_end": at == len(values) - 1}
        for one, sign in ((0, 1), (1, -1)):
            found[one].append(y_of(infer(client, sign * value, ids[kind][one], binary=binary, **flags)))

    assert found == [fold_reference(values), fold_reference([-value for value in values])]


@FORMS
def test_float_predictions_equal_those_of_onnxruntime(client: Any, stream: str, binary: bool) -> None:
    xs = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)
    outputs = [triton.InferRequestedOutput("y", binary_data=binary)]
    answers = [
        client.infer("lstm", [infer_input("x", x[None], binary=binary)], outputs=outputs, sequence_id=stream,
                     sequence_start=at == 0, sequence_end=at == 19).as_numpy("y")[0]
        for at, x in enumerate(xs)
    ]  # fmt: skip

    np.testing.assert_array_equal(answers, offline_predictions(lstm, xs))


def test_several_tensors_of_several_dtypes_can_be_sent(client: Any, stream: str) -> None:
    a, b = np.array([[1, 2**60]], np.int64), np.array([3], np.int32)
    result = client.infer(
        "two_inputs", [infer_input("b", b, binary=False), infer_input("a", a)], sequence_id=stream, sequence_start=True
    )

    assert result.as_numpy("total").tolist() == [[4, 2**60 + 3]]
    assert result.as_numpy("last").dtype == np.int32


@pytest.mark.parametrize("model", ["latch", "half"])
def test_booleans_and_float16_can_be_sent(client: Any, stream: str, model: str) -> None:
    x = np.array([[True, False]]) if model == "latch" else np.array([[0.5, -2]], np.float16)
    found = client.infer(model, [infer_input("x", x)], sequence_id=stream, sequence_start=True).as_numpy("y")

    assert (found.dtype, found.tolist()) == (x.dtype, x.tolist())


def test_strings_for_numbers_are_rejected(client: Any, stream: str) -> None:
    one = infer_input("x", np.array([[b"a"]], object))
    with pytest.raises(utils.InferenceServerException, match="data-type is 'BYTES', but model 'fold' expects 'INT64'"):
        client.infer("fold", [one], sequence_id=stream, sequence_start=True)


def test_a_stateless_model_accepts_batches_without_a_sequence(client: Any) -> None:
    x = np.arange(20, dtype=np.float32).reshape(10, 2)

    assert client.infer("stateless", [infer_input("x", x)]).as_numpy("y").tolist() == (2 * x).tolist()


@pytest.mark.parametrize("how", ["gzip", "deflate"])
def test_compressed_requests_are_accepted(client: Any, stream: str, how: str) -> None:
    more: dict[str, Any] = {"request_compression_algorithm": how, "response_compression_algorithm": how}

    assert y_of(infer(client, 5, stream, sequence_start=True, **more)) == fold_reference([5])[0]


def test_the_response_parameters_can_be_read(client: Any, stream: str) -> None:
    result = infer(client, 5, stream, sequence_start=True, request_id="r1", parameters={"step": 1})

    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("r1", "fold", "1")
    assert response["parameters"] == {"sequence_id": stream, "step": 1, "replayed": False}


def test_a_retry_is_applied_once(client: Any, stream: str) -> None:
    """With `seq`, or with an idempotency key in a header."""
    infer(client, 1, stream, sequence_start=True)
    numbered = [infer(client, 2, stream, parameters={"step": 2}) for _ in range(2)]
    keyed = [infer(client, 3, stream, sequence_end=True, headers={"Idempotency-Key": "k"}) for _ in range(2)]

    assert [y_of(one) for one in [*numbered, *keyed]] == [fold_reference([1, 2, 3])[at] for at in (1, 1, 2, 2)]
    assert [one.get_response()["parameters"]["replayed"] for one in [*numbered, *keyed]] == [False, True, False, True]


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        (
            {},
            "400",
            "inference request for sequence {} to model 'fold' must specify the START flag on the first request",
        ),
        ({"parameters": {"step": 7}, "sequence_start": True}, "400", "'step' is 7 with 'sequence_start'"),
        ({"model_version": "9"}, "404", "Request for unknown model: 'fold' version 9 is not found"),
    ],
)
def test_a_rejection_is_an_exception_with_tritons_status(
    client: Any, stream: str, more: dict[str, Any], status: str, words: str
) -> None:
    with pytest.raises(utils.InferenceServerException) as refused:
        infer(client, 1, stream, **more)

    assert refused.value.status() == status
    assert refused.value.message().startswith(words.format(stream))


def test_a_sequence_without_id_is_an_exception(client: Any) -> None:
    """The client omits all flags if the id is zero."""
    with pytest.raises(utils.InferenceServerException, match="must specify a non-zero or non-empty correlation ID"):
        infer(client, 1, 0, sequence_start=True)


def test_many_concurrent_requests_are_answered(client: Any, service: Service, stream: str) -> None:
    with ClosedOnce(f"127.0.0.1:{service.port}", concurrency=8) as wide:
        for turn in (0, 1):
            asked = [
                wide.async_infer("fold", [infer_input("x", np.array([[n]], np.int64))], sequence_id=f"{stream}-{n}",
                                 sequence_start=turn == 0)
                for n in range(40)
            ]  # fmt: skip
            found = [y_of(one.get_result()) for one in asked]

    assert found == [fold_reference([n, n])[1] for n in range(40)]


async def test_the_asyncio_client_works(service: Service, stream: str) -> None:
    aio = pytest.importorskip(
        "tritonclient.http.aio", reason="tritonclient is not installed with aiohttp: STEPWELL_EXTRAS=triton"
    )
    async with aio.InferenceServerClient(f"127.0.0.1:{service.port}") as client:
        assert await client.is_server_live()
        for at, x in enumerate((1, 2, 3)):
            one = infer_input("x", np.array([[x]], np.int64))
            found = y_of(await client.infer("fold", [one], sequence_id=stream, sequence_start=at == 0))

    assert found == fold_reference([1, 2, 3])[-1]


def test_the_other_calls_of_the_client_work(client: Any) -> None:
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
