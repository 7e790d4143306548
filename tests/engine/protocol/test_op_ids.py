"""Operation ids: equal for every retry of a request, different for every other request."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from stepwell.engine.protocol.op_ids import OpIdHasher
from stepwell.types import BatchSources, BulkTimesteps, Source, StreamKey, Timestep
from stepwell_export.runtime.manifest import Manifest
from tests.graphs import fold, two_inputs

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


def test_the_operation_id_of_a_timestep_with_a_source_is_that_of_earlier_releases() -> None:
    expected: list[tuple[dict[str, Any], str]] = [
        ({}, "e41e3da683aaebe9a5098b0d774f2871"),
        ({"seq": 3}, "1ddde31a6b5ce02b54048907576b2be2"),
        ({"after": AFTER}, "6b979164069808eba1e68882f1a0af4e"),
        ({"seq": 3, "after": AFTER}, "b06d41410d3807214893c1e1e65e48db"),
    ]
    source = Source(b"log.....", (2**40,))

    assert [op_id(make_hasher(), source=source, **more).hex() for more, _ in expected] == [text for _, text in expected]


def test_columns_have_the_operation_ids_of_their_timesteps() -> None:
    seqs, afters = [None, 3, None, 2**50], [None, None, AFTER, AFTER]
    sources = [Source(bytes([i]) * 8, (i, 2**63 - 1)) for i in range(4)]
    inputs = [(np.array([[i, 1], [2, 3]], np.int64).tobytes(), np.array([i, 2], np.int32).tobytes()) for i in range(4)]
    key = StreamKey("default", "m", "s")
    columns = BulkTimesteps(
        keys=[key] * 4, names=["s"] * 4, inputs={}, packed=inputs, length=2, seqs=seqs, afters=afters,
        sources=BatchSources.of(sources),
    )  # fmt: skip
    hasher = make_hasher()

    assert columns.rows() == [
        Timestep(key, packed, 2, seq, after, name="s", source=source)
        for packed, seq, after, source in zip(inputs, seqs, afters, sources, strict=True)
    ]
    assert hasher.for_bulk(columns) == [hasher.for_timestep(row) for row in columns.rows()]


@pytest.mark.parametrize("afters", [[None] * 3, [None, AFTER, None]], ids=["by seq", "one by after"])
@pytest.mark.parametrize("graph", [fold, two_inputs])
def test_columns_without_sources_have_the_operation_ids_of_their_timesteps(graph: Any, afters: list[Any]) -> None:
    """Rows of equal inputs, so that their positions alone tell them apart."""
    manifest = graph()[1]
    key = StreamKey("default", "m", "s")
    columns = BulkTimesteps(
        keys=[key] * 3, names=["s"] * 3, inputs={}, packed=[(b"12345678",) * len(manifest.inputs)] * 3, length=1,
        seqs=[3, 4, 5], afters=afters,
    )  # fmt: skip
    hasher = OpIdHasher(manifest)

    found = hasher.for_bulk(columns)

    assert found == [hasher.for_timestep(row) for row in columns.rows()]
    assert len(set(found)) == 3


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
