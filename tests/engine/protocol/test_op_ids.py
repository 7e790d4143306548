"""Operation ids: equal for every retry of a request, different for every other request."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from model_export.manifest import Manifest
from service.engine.protocol.op_ids import OpIdHasher
from service.types import StreamKey, Timestep
from tests.graphs import two_inputs

AFTER = b"a" * 16


def make_hasher() -> OpIdHasher:
    return OpIdHasher(two_inputs()[1])


def op_id(hasher: OpIdHasher, *, stream: str = "s", a: Any = ((1, 2),), b: Any = (3,), **more: Any) -> bytes:
    inputs = (np.array(a, np.int64).tobytes(), np.array(b, np.int32).tobytes())
    request = Timestep(StreamKey("default", "m", stream), inputs, length=len(b), **more)
    return hasher.for_timestep(request)


def test_a_retry_has_the_same_operation_id_in_every_process() -> None:
    requests: list[dict[str, Any]] = [
        {"seq": 4},
        {"after": AFTER},
        {"seq": 4, "after": AFTER},
        {"idempotency_key": "k"},
    ]

    for request in requests:
        assert op_id(make_hasher(), **request) == op_id(make_hasher(), **request)


def test_the_order_of_inputs_in_the_manifest_does_not_matter() -> None:
    manifest = two_inputs()[1]
    turned = Manifest.model_validate({**manifest.model_dump(by_alias=True), "inputs": [*manifest.inputs][::-1]})

    assert op_id(OpIdHasher(manifest), seq=1) == op_id(OpIdHasher(turned), seq=1)


def test_different_requests_have_different_operation_ids() -> None:
    places: list[dict[str, Any]] = [
        {"seq": seq, "after": after, "idempotency_key": key}
        for seq, after, key in itertools.product((None, 1, 2), (None, AFTER, b"b" * 16), (None, "k", "l"))
        if (seq, after, key) != (None, None, None)
    ]
    values: list[dict[str, Any]] = [
        {},
        {"a": ((2, 1),)},
        {"b": (4,)},
        {"a": ((1, 2), (1, 2)), "b": (3, 3)},
        {"a": ((1, 2), (3, 1)), "b": (3, 3)},
    ]
    hasher = make_hasher()

    found = [op_id(hasher, **place, **value) for place in places for value in values]

    assert len(set(found)) == len(found)


def test_a_request_without_a_name_gets_a_unique_operation_id() -> None:
    hasher = make_hasher()

    assert len({op_id(hasher), op_id(hasher), op_id(make_hasher())}) == 3
