"""`tritonclient[http]`, unchanged, against a running service: its calls, its errors, its defaults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from model_export.manifest import Array
from tests.api.running import Service
from tests.graphs import fold_reference, lstm
from tests.triton.offline import offline

triton = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed: STEPWELL_EXTRAS=triton")
utils = pytest.importorskip("tritonclient.utils", reason="tritonclient is not installed: STEPWELL_EXTRAS=triton")

FORMS = pytest.mark.parametrize("binary", [False, True], ids=["JSON", "binary"])


@pytest.fixture
def client(service: Service) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{service.port}") as one:
        yield one


def given(name: str, array: Array, *, binary: bool = True) -> Any:
    one = triton.InferInput(name, list(array.shape), utils.np_to_triton_dtype(array.dtype))
    one.set_data_from_numpy(array, binary_data=binary)
    return one


def infer(client: Any, x: int, sequence: int | str, *, binary: bool = True, **more: Any) -> Any:
    """One timestep of `fold`."""
    outputs = None if binary else [triton.InferRequestedOutput("y", binary_data=False)]
    one = given("x", np.array([[x]], np.int64), binary=binary)
    return client.infer("fold", [one], outputs=outputs, sequence_id=sequence, **more)


def y(result: Any) -> int:
    return int(result.as_numpy("y")[0, 0])


@FORMS
@pytest.mark.parametrize("kind", ["number", "text", "UUID"])
def test_interleaved_sequences_are_each_answered(client: Any, stream: str, kind: str, binary: bool) -> None:
    """As Triton's own example of sequences has it: two of them, some values, start and end."""
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
            found[one].append(y(infer(client, sign * value, ids[kind][one], binary=binary, **flags)))

    assert found == [fold_reference(values), fold_reference([-value for value in values])]


@FORMS
def test_floats_equal_the_offline_fold(client: Any, stream: str, binary: bool) -> None:
    xs = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)
    outputs = [triton.InferRequestedOutput("y", binary_data=binary)]
    answers = [
        client.infer("lstm", [given("x", x[None], binary=binary)], outputs=outputs, sequence_id=stream,
                     sequence_start=at == 0, sequence_end=at == 19).as_numpy("y")[0]
        for at, x in enumerate(xs)
    ]  # fmt: skip

    np.testing.assert_array_equal(answers, offline(lstm, xs))


def test_several_tensors_of_several_types_travel(client: Any, stream: str) -> None:
    a, b = np.array([[1, 2**60]], np.int64), np.array([3], np.int32)
    result = client.infer(
        "two_inputs", [given("b", b, binary=False), given("a", a)], sequence_id=stream, sequence_start=True
    )

    assert result.as_numpy("total").tolist() == [[4, 2**60 + 3]]
    assert result.as_numpy("last").dtype == np.int32


@pytest.mark.parametrize("model", ["latch", "half"])
def test_booleans_and_halves_travel(client: Any, stream: str, model: str) -> None:
    x = np.array([[True, False]]) if model == "latch" else np.array([[0.5, -2]], np.float16)
    found = client.infer(model, [given("x", x)], sequence_id=stream, sequence_start=True).as_numpy("y")

    assert (found.dtype, found.tolist()) == (x.dtype, x.tolist())


def test_text_for_numbers_is_refused(client: Any, stream: str) -> None:
    one = given("x", np.array([[b"a"]], object))
    with pytest.raises(utils.InferenceServerException, match="data-type is 'BYTES', but model 'fold' expects 'INT64'"):
        client.infer("fold", [one], sequence_id=stream, sequence_start=True)


def test_a_model_without_state_takes_batches_and_no_sequence(client: Any) -> None:
    x = np.arange(20, dtype=np.float32).reshape(10, 2)

    assert client.infer("stateless", [given("x", x)]).as_numpy("y").tolist() == (2 * x).tolist()


@pytest.mark.parametrize("how", ["gzip", "deflate"])
def test_compression_is_taken(client: Any, stream: str, how: str) -> None:
    more: dict[str, Any] = {"request_compression_algorithm": how, "response_compression_algorithm": how}

    assert y(infer(client, 5, stream, sequence_start=True, **more)) == fold_reference([5])[0]


def test_what_the_answer_says_besides_is_there_to_read(client: Any, stream: str) -> None:
    result = infer(client, 5, stream, sequence_start=True, request_id="r1", parameters={"step": 1})

    told = result.get_response()
    assert (told["id"], told["model_name"], told["model_version"]) == ("r1", "fold", "1")
    assert told["parameters"] == {"sequence_id": stream, "step": 1, "replayed": False}


def test_a_retry_is_applied_once(client: Any, stream: str) -> None:
    """By its number, or by a key in a header."""
    infer(client, 1, stream, sequence_start=True)
    numbered = [infer(client, 2, stream, parameters={"step": 2}) for _ in range(2)]
    keyed = [infer(client, 3, stream, sequence_end=True, headers={"Idempotency-Key": "k"}) for _ in range(2)]

    assert [y(one) for one in [*numbered, *keyed]] == [fold_reference([1, 2, 3])[at] for at in (1, 1, 2, 2)]
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
def test_what_is_refused_is_an_exception_with_tritons_status(
    client: Any, stream: str, more: dict[str, Any], status: str, words: str
) -> None:
    with pytest.raises(utils.InferenceServerException) as refused:
        infer(client, 1, stream, **more)

    assert refused.value.status() == status
    assert refused.value.message().startswith(words.format(stream))


def test_a_sequence_without_id_is_an_exception(client: Any) -> None:
    """The client leaves out all flags where the id is zero."""
    with pytest.raises(utils.InferenceServerException, match="must specify a non-zero or non-empty correlation ID"):
        infer(client, 1, 0, sequence_start=True)


def test_many_requests_may_be_under_way(client: Any, service: Service, stream: str) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{service.port}", concurrency=8) as wide:
        for turn in (0, 1):
            asked = [
                wide.async_infer("fold", [given("x", np.array([[n]], np.int64))], sequence_id=f"{stream}-{n}",
                                 sequence_start=turn == 0)
                for n in range(40)
            ]  # fmt: skip
            found = [y(one.get_result()) for one in asked]

    assert found == [fold_reference([n, n])[1] for n in range(40)]


async def test_the_asyncio_client_works_too(service: Service, stream: str) -> None:
    aio = pytest.importorskip(
        "tritonclient.http.aio", reason="tritonclient is not installed with aiohttp: STEPWELL_EXTRAS=triton"
    )
    async with aio.InferenceServerClient(f"127.0.0.1:{service.port}") as client:
        assert await client.is_server_live()
        for at, x in enumerate((1, 2, 3)):
            one = given("x", np.array([[x]], np.int64))
            found = y(await client.infer("fold", [one], sequence_id=stream, sequence_start=at == 0))

    assert found == fold_reference([1, 2, 3])[-1]


def test_the_other_calls_of_the_client_are_answered(client: Any) -> None:
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
    with pytest.raises(utils.InferenceServerException, match="unload of 'fold' is not supported"):
        client.unload_model("fold")
    with pytest.raises(utils.InferenceServerException, match="There is no route"):
        client.get_system_shared_memory_status()
