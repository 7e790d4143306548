"""Records of a batch in arrays: the same bytes as the single records."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from stepwell.errors import ServiceError
from stepwell.store.record import Record, SourcePosition, decode, with_epoch
from stepwell.store.record_arrays import (
    HEADER_DTYPE,
    are_records,
    decode_records,
    empty_header,
    encode_records,
    guards,
    read_headers,
    sources_in,
    with_epochs,
)
from tests.store.test_record import RECORDS


def resized(record: Record, n: int) -> Record:
    """Return the record with outputs and state of given lengths."""
    outputs, state = record.outputs.ljust(40)[: n % 17], record.state.ljust(40)[: n % 23]
    return replace(record, outputs=outputs, state=state)


@given(st.lists(RECORDS, min_size=1, max_size=5), st.integers(0, 400))
def test_a_batch_is_encoded_as_its_records_are(records: list[Record], n: int) -> None:
    records = [resized(record, n) for record in records]
    heads = read_headers([replace(record, outputs=b"", state=b"other").encode() for record in records]).copy()

    table = np.empty((len(records), records[0].nbytes), np.uint8)
    encode_records(
        table,
        heads,
        np.frombuffer(b"".join(r.outputs for r in records), np.uint8).reshape(len(records), n % 17),
        np.frombuffer(b"".join(r.state for r in records), np.uint8).reshape(len(records), n % 23),
    )

    assert [row.tobytes() for row in table] == [record.encode() for record in records]


@given(st.lists(RECORDS, min_size=1, max_size=5))
def test_the_guards_of_a_batch_equal_those_of_its_records(records: list[Record]) -> None:
    found = guards(read_headers([record.encode() for record in records]))

    assert [guard.tobytes() for guard in found] == [record.guard for record in records]


MODEL = b"f" * 8


def of_one_model(records: list[Record], n: int) -> list[Record]:
    """Return the records as records of one model, all of the same length."""
    return [replace(resized(record, n), fingerprint=MODEL) for record in records]


@given(st.lists(RECORDS, min_size=1, max_size=5), st.integers(0, 400))
def test_valid_records_of_a_model_are_decoded_in_arrays_as_each_alone(records: list[Record], n: int) -> None:
    records = of_one_model(records, n)
    found = decode_records([record.encode() for record in records], MODEL, n % 23)

    assert found is not None
    assert [head.tobytes() for head in guards(found.headers)] == [record.guard for record in records]
    assert [state.tobytes() for state in found.states] == [record.state for record in records]
    assert found.sources is None


@given(st.lists(RECORDS, min_size=1, max_size=5), st.integers(0, 400), st.integers(1, 4), st.integers(0, 3), st.data())
def test_records_with_equally_many_sources_are_decoded_in_arrays_as_each_alone(
    records: list[Record], n: int, n_sources: int, n_answers: int, data: st.DataObject
) -> None:
    digest, at = st.binary(min_size=8, max_size=8), st.integers(0, 2**63 - 1)
    position = st.builds(SourcePosition, digest, at)
    records = [
        replace(
            record,
            sources=tuple(data.draw(st.lists(position, min_size=n_sources, max_size=n_sources))),
            answered_at=tuple(data.draw(st.lists(at, min_size=n_answers, max_size=n_answers))),
        )
        for record in of_one_model(records, n)
    ]
    whole = [record.encode() for record in records]
    found = decode_records(whole, MODEL, n % 23)

    assert found is not None
    assert [head.tobytes() for head in guards(found.headers)] == [record.guard for record in records]
    assert [state.tobytes() for state in found.states] == [record.state for record in records]
    assert found.sources is not None
    assert [sources_in(row) for row in found.sources] == [record.sources for record in records]
    assert found.headers.tobytes() != b"".join(one[:104] for one in whole)  # they are those of format 1
    broken = bytearray(whole[-1])
    broken[data.draw(st.integers(0, len(broken) - 1))] ^= data.draw(st.integers(1, 255))
    without = replace(records[-1], sources=(), answered_at=()).encode()
    for other in (bytes(broken), without, whole[-1][:-1], whole[-1] + b"x", b"", None):
        assert decode_records([*whole, other], MODEL, n % 23) is None
        assert decode_records([other, *whole], MODEL, n % 23) is None


@given(st.lists(RECORDS, min_size=1, max_size=4), st.integers(0, 400), st.data())
def test_a_record_that_is_refused_alone_is_not_decoded_in_arrays(
    records: list[Record], n: int, data: st.DataObject
) -> None:
    whole = [record.encode() for record in of_one_model(records, n)]
    at = data.draw(st.integers(0, len(whole) - 1))
    byte, change = data.draw(st.integers(0, len(whole[at]) - 1)), data.draw(st.integers(1, 255))
    broken = bytearray(whole[at])
    broken[byte] ^= change
    others: list[bytes | Exception | None] = [
        bytes(broken), whole[at][:-1], whole[at] + b"x", b"", None, ValueError(),
        replace(decode(whole[at]), fingerprint=b"another!").encode(),
    ]  # fmt: skip

    for other in others:
        assert decode_records([*whole[:at], other, *whole[at + 1 :]], MODEL, n % 23) is None
    assert decode_records(whole, MODEL, n % 23 + 1) is None


@given(st.lists(RECORDS, min_size=1, max_size=5), st.integers(0, 400), st.binary(min_size=40, max_size=40))
def test_records_get_other_epochs_in_arrays_as_each_alone(records: list[Record], n: int, epochs: bytes) -> None:
    encoded = [resized(record, n).encode() for record in records]
    epochs = epochs[: 8 * len(encoded)]
    found = with_epochs(encoded, epochs)

    assert found is not None
    assert found[0]["epoch"].tolist() == [record.epoch for record in records]
    assert found[1] == [with_epoch(raw, epochs[8 * i : 8 * i + 8]) for i, raw in enumerate(encoded)]


@given(RECORDS, st.integers(0, 400), st.data())
def test_records_with_a_damaged_byte_among_them_are_left_to_be_checked_alone(
    record: Record, n: int, data: st.DataObject
) -> None:
    whole = resized(record, n).encode()
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))

    assert are_records([whole, whole])
    assert with_epochs([whole, bytes(damaged)], bytes(16)) is None
    for other in (bytes(damaged), whole + b"x", whole[:60], b"", None, ServiceError("state_corrupt", "", fix="")):
        assert not are_records([whole, other])
        assert not are_records([other])


def test_a_header_has_the_layout_of_the_record() -> None:
    record = Record(1, 2, 3, 4, b"o" * 16, b"c" * 16, b"f" * 8, 5, 6, b"out", b"state")
    head = read_headers([record.encode()])[0]

    assert HEADER_DTYPE.itemsize == 104
    names = ("epoch", "step", "length", "flags", "op_id", "history_hash", "fingerprint")
    assert [head[name].item() for name in names] == [1, 2, 3, 4, b"o" * 16, b"c" * 16, b"f" * 8]
    assert [head[name].item() for name in ("output_bytes", "state_bytes", "updated_ms", "created_ms")] == [3, 5, 5, 6]


def test_an_empty_header_is_that_of_a_stream_at_step_0() -> None:
    table = np.empty((1, HEADER_DTYPE.itemsize + 4), np.uint8)
    encode_records(table, empty_header(b"f" * 8), np.zeros((1, 0), np.uint8), np.zeros((1, 4), np.uint8))
    record = decode(table.tobytes())

    assert (record.step, record.history_hash, record.fingerprint, record.state) == (0, bytes(16), b"f" * 8, bytes(4))
