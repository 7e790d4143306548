"""Request bodies of the Open Inference Protocol: valid ones are decoded, as JSON or binary; others are rejected."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.addons.oip.infer_codec import InferCodec, InferRequest
from stepwell.addons.oip.tensors import DATATYPES
from stepwell.errors import ServiceError
from stepwell_export.runtime.manifest import DTYPES, Array, Manifest
from tests.graphs import manifest_of


def manifest(dtype: str, shape: list[int]) -> Manifest:
    tensor = {"name": "x", "dtype": dtype, "shape": shape}
    return manifest_of(name="m", inputs=[tensor], outputs=[{**tensor, "name": "y"}], states=[])


def wire(dtype: str = "float32", shape: tuple[int, ...] = (4,), *, stateful: bool = False) -> InferCodec:
    return InferCodec("m", manifest(dtype, list(shape)), stateful=stateful, max_rows=8)


def asked(dtype: str, array: Array, *, binary: bool, nested: bool = False, **more: Any) -> tuple[bytes, int | None]:
    one: dict[str, Any] = {"name": "x", "datatype": DATATYPES[dtype], "shape": list(array.shape)}
    if binary:
        one["parameters"] = {"binary_data_size": array.nbytes}
    else:
        one["data"] = (array if nested else array.ravel()).tolist()
    head = json.dumps({"inputs": [one], **more}).encode()
    return (head + array.tobytes(), len(head)) if binary else (head, None)


def array_of(dtype: str, shape: tuple[int, ...], seed: int) -> Array:
    raw = np.random.default_rng(seed).integers(0, 256, 8 * int(np.prod(shape)), np.uint8).tobytes()
    array = np.frombuffer(raw, dtype)[: int(np.prod(shape))].reshape(shape)
    if dtype == "bool":
        return np.frombuffer(raw, np.uint8)[: int(np.prod(shape))].reshape(shape) > 127
    return np.where(np.isfinite(array), array, 1).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@given(row=st.lists(st.integers(1, 3), max_size=3), rows=st.integers(1, 3), seed=st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_json_and_binary_data_decode_to_the_same_rows(dtype: str, row: list[int], rows: int, seed: int) -> None:
    array = array_of(dtype, (rows, *row), seed)
    reader = wire(dtype, tuple(row))
    forms = [asked(dtype, array, binary=False), asked(dtype, array, binary=False, nested=True)]
    for body, length in [*forms, asked(dtype, array, binary=True)]:
        found = reader.read(body, length).rows

        assert found == [(one.tobytes(),) for one in array]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("binary", [False, True])
def test_an_encoded_response_decodes_to_the_same_array(dtype: str, binary: bool) -> None:
    array = array_of(dtype, (2, 3), 1)
    writer = wire(dtype, (3,))
    ask = writer.read(*asked(dtype, array, binary=binary, parameters={"binary_data_output": binary}))
    body, length = writer.write(ask, {"y": array}, 7, None)
    document = json.loads(body[:length])
    [output] = document["outputs"]
    flat = np.frombuffer(body[length:], dtype) if binary else np.array(output["data"], dtype)

    assert (document["model_version"], output["datatype"], output["shape"]) == ("7", DATATYPES[dtype], [2, 3])
    assert flat.tobytes() == array.tobytes()


@pytest.mark.parametrize("data", ["[1e999,0,0,0]", "[1e39,0,0,0]", "[-1e39,0,0,0]", "[[1e39,0,0,0]]"])
def test_a_number_that_overflows_is_not_finite(data: str) -> None:
    body = f'{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1,4],"data":{data}}}]}}'.encode()
    with pytest.raises(ServiceError) as refused:
        wire().read(body, None)

    assert refused.value.code in ("non_finite", "bad_json")


SOUND = [
    asked("float32", np.ones((1, 4), np.float32), binary=False, id="r", outputs=[{"name": "y"}],
          parameters={"sequence_id": 5, "sequence_start": True, "step": 1, "idempotency_key": "k"}),
    asked("float32", np.ones((2, 4), np.float32), binary=True,
          outputs=[{"name": "y", "parameters": {"binary_data": True}}]),
]  # fmt: skip


@given(
    which=st.integers(0, 1),
    at=st.integers(0, 500),
    gone=st.integers(0, 8),
    put=st.one_of(
        st.binary(max_size=4), st.sampled_from([b"1e999", b"NaN", b"null", b"-1", b"{}", b"[[[", b"\\ud800"])
    ),
    length=st.one_of(st.none(), st.integers(0, 400), st.just(-1)),
    stateful=st.booleans(),
)
@settings(max_examples=600, deadline=None)
def test_any_bytes_are_decoded_or_rejected(
    which: int, at: int, gone: int, put: bytes, length: int | None, stateful: bool
) -> None:
    body, header_length = SOUND[which]
    body = body[:at] + put + body[at + gone :]
    found = decode_or_error(wire(stateful=stateful), body, header_length if length == -1 else length)

    if isinstance(found, InferRequest):
        assert found.rows
        assert all(np.isfinite(np.frombuffer(one, np.float32)).all() and len(one) == 16 for [one] in found.rows)
    else:
        assert (found.applied, bool(str(found))) == ("no", True)


def decode_or_error(reader: InferCodec, body: bytes, length: int | None) -> InferRequest | ServiceError:
    try:
        return reader.read(body, length)
    except ServiceError as refused:
        return refused


KEYS = ["inputs", "outputs", "parameters", "name", "shape", "datatype", "data", "id", "sequence_id"]


@given(document=st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(KEYS),
            inner, max_size=5,
        ),
    ),
    max_leaves=12,
))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_any_document_is_decoded_or_rejected(document: Any) -> None:
    assert decode_or_error(wire(), json.dumps(document).encode(), None)
