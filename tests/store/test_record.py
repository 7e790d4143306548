"""The record's bytes: every written record can be read, and nothing else can."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from stepwell.errors import CorruptRecordError, RecordVersionError
from stepwell.store.idempotency_entry import IdempotencyEntry
from stepwell.store.record import (
    CHANGED_VERSION,
    GUARD_AT,
    HAD_KEY,
    HEADER_BYTES,
    MAX_SOURCES,
    Kind,
    Record,
    SourcePosition,
    blake2b_128,
    decode,
    encode_next,
    extend_history,
    history_hash_of,
    step_of,
    version_flags,
    version_of,
)

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
B16 = st.binary(min_size=16, max_size=16)
B8 = st.binary(min_size=8, max_size=8)
RECORDS = st.builds(
    Record,
    epoch=U64,
    step=U64,
    length=U32,
    flags=U32,
    op_id=B16,
    history_hash=B16,
    fingerprint=st.binary(min_size=8, max_size=8),
    updated_ms=U64,
    created_ms=U64,
    outputs=st.binary(max_size=40),
    state=st.binary(max_size=40),
)
POSITIONS = st.integers(0, 2**63 - 1)
SOURCES = st.lists(st.builds(SourcePosition, B8, POSITIONS), min_size=1, max_size=MAX_SOURCES).map(tuple)
WITH_SOURCES = st.builds(replace, RECORDS, sources=SOURCES, answered_at=st.lists(POSITIONS, max_size=5).map(tuple))


def a_record() -> Record:
    return Record(7, 3, 1, Kind.STEP, b"o" * 16, b"c" * 16, b"f" * 8, 5, 4, b"out", b"state")


def after(history_hash: bytes, kind: Kind, op_id: bytes, fingerprint: bytes) -> bytes:
    return extend_history([history_hash], kind, [op_id], fingerprint)[0]


def with_sources() -> Record:
    sources = SourcePosition(b"d" * 8, 12), SourcePosition(b"e" * 8, 2**63 - 1)
    return replace(a_record(), sources=sources, answered_at=(10, 12))


@given(RECORDS | WITH_SOURCES)
def test_a_decoded_record_equals_the_encoded_one(record: Record) -> None:
    raw = record.encode()

    assert decode(raw) == record
    assert len(raw) == record.nbytes


def test_only_a_record_with_positions_of_sources_has_format_2() -> None:
    """16 bytes for each source, 8 for each answer; all else is as in format 1."""
    without, given = a_record().encode(), with_sources().encode()

    assert (without[:4], given[:4]) == (b"SW1\0", b"SW2\0")
    assert len(given) == len(without) + 8 + 2 * 16 + 2 * 8
    assert (given[8:84], given[88:104]) == (without[8:84], without[88:104])
    assert given.endswith(without[104:])


def test_a_record_whose_counts_do_not_fit_its_header_is_corrupt() -> None:
    for n_sources, n_answers in ((0, 6), (5, 0), (3, 1), (2**32 - 1, 2)):
        raw = bytearray(with_sources().encode())
        raw[104:112] = n_sources.to_bytes(4, "little") + n_answers.to_bytes(4, "little")
        raw[84:88] = zlib.crc32(raw[:84] + bytes(4) + raw[88:]).to_bytes(4, "little")

        with pytest.raises(CorruptRecordError, match=f"{n_sources} sources"):
            decode(bytes(raw))


@given(RECORDS | WITH_SOURCES)
def test_the_guard_is_bytes_8_to_63(record: Record) -> None:
    """The commit script compares exactly these bytes."""
    assert record.encode()[8:64] == record.guard


@given(RECORDS | WITH_SOURCES)
def test_fields_read_from_the_header_alone_are_those_of_the_record(record: Record) -> None:
    header = record.encode()[:HEADER_BYTES]

    assert (step_of(header), history_hash_of(header), header[GUARD_AT]) == (
        record.step,
        record.history_hash,
        record.guard,
    )


@given(RECORDS | WITH_SOURCES, B16, U64, st.binary(max_size=40), st.binary(max_size=40))
def test_the_record_after_one_more_timestep_is_encoded_like_any_other(
    before: Record, op_id: bytes, now: int, outputs: bytes, state: bytes
) -> None:
    before = replace(before, step=min(before.step, 2**64 - 2))

    encoded, step, history_hash = encode_next(
        before.encode()[:HEADER_BYTES], op_id, now, outputs, state, before.sources, before.answered_at
    )

    assert (step, history_hash) == (before.step + 1, after(before.history_hash, Kind.STEP, op_id, before.fingerprint))
    changed: dict[str, Any] = {
        "step": step,
        "length": 1,
        "flags": Kind.STEP,
        "op_id": op_id,
        "history_hash": history_hash,
        "updated_ms": now,
    }
    assert encoded == replace(before, **changed, outputs=outputs, state=state).encode()


@given(RECORDS | WITH_SOURCES)
def test_the_checksum_is_the_crc_32_of_the_record_without_it(record: Record) -> None:
    raw = record.encode()

    assert int.from_bytes(raw[84:88], "little") == zlib.crc32(raw[:84] + bytes(4) + raw[88:])


def test_each_flipped_bit_is_detected() -> None:
    for raw in (a_record().encode(), with_sources().encode()):
        for bit in range(8 * len(raw)):
            broken = bytearray(raw)
            broken[bit // 8] ^= 1 << bit % 8
            with pytest.raises((CorruptRecordError, RecordVersionError)):
                decode(bytes(broken))


def test_each_truncation_is_detected() -> None:
    for raw in (a_record().encode(), with_sources().encode()):
        for length in range(len(raw)):
            with pytest.raises(CorruptRecordError):
                decode(raw[:length])


@given(st.binary(max_size=300))
def test_foreign_bytes_are_never_a_record(raw: bytes) -> None:
    with pytest.raises((CorruptRecordError, RecordVersionError)):
        decode(raw)


def test_another_format_version_is_named() -> None:
    raw = bytearray(a_record().encode())
    raw[2:3] = b"4"

    with pytest.raises(RecordVersionError, match="format version b'4'"):
        decode(bytes(raw))


@given(
    st.builds(
        IdempotencyEntry,
        op_id=B16,
        epoch=U64,
        step=U64,
        history_hash=B16,
        length=U32,
        outputs=st.binary(max_size=40),
        fingerprint=B8,
    )
)
def test_a_decoded_entry_equals_the_encoded_one(entry: IdempotencyEntry) -> None:
    assert IdempotencyEntry.decode(entry.encode()) == entry


ENTRY = IdempotencyEntry(b"o" * 16, 1, 2, b"c" * 16, 1, b"outputs", b"f" * 8).encode()


def test_each_flipped_bit_of_an_entry_is_detected() -> None:
    for bit in range(8 * len(ENTRY)):
        raw = bytearray(ENTRY)
        raw[bit // 8] ^= 1 << bit % 8
        with pytest.raises((CorruptRecordError, RecordVersionError)) as refused:
            IdempotencyEntry.decode(bytes(raw))
        assert refused.value.applied == "unknown"


def test_each_truncation_of_an_entry_is_detected() -> None:
    for length in range(len(ENTRY)):
        with pytest.raises(CorruptRecordError):
            IdempotencyEntry.decode(ENTRY[:length])


def test_an_entry_of_another_format_version_is_named() -> None:
    with pytest.raises(RecordVersionError, match="format version b'4'"):
        IdempotencyEntry.decode(b"SK4\0" + ENTRY[4:])


@given(st.lists(st.binary(max_size=5), max_size=4), st.lists(st.binary(max_size=5), max_size=4))
def test_different_parts_have_different_digests(a: list[bytes], b: list[bytes]) -> None:
    """Even if their concatenations are equal."""
    assert (blake2b_128(*a) == blake2b_128(*b)) == (a == b)


def test_the_chain_depends_on_every_part_of_a_history() -> None:
    base = (b"c" * 16, Kind.STEP, b"o" * 16, b"f" * 8)
    others = [
        (b"C" * 16, *base[1:]),
        (base[0], Kind.RESET, *base[2:]),
        (*base[:2], b"O" * 16, base[3]),
        (*base[:3], b"F" * 8),
    ]

    assert after(*base) not in [after(*other) for other in others]


def test_the_chains_of_a_batch_equal_those_of_its_rows() -> None:
    history_hashes, op_ids = [bytes([n]) * 16 for n in range(5)], [bytes([n + 9]) * 16 for n in range(5)]

    together = extend_history(history_hashes, Kind.STEP, op_ids, b"f" * 8)

    assert together == [
        after(history_hash, Kind.STEP, op_id, b"f" * 8)
        for history_hash, op_id in zip(history_hashes, op_ids, strict=True)
    ]


def test_the_epoch_is_in_the_guard_but_not_in_the_chain() -> None:
    """A stream that was lost and sent again has its old state ids, and no old commit can be applied to it."""
    one, two = a_record(), replace(a_record(), epoch=8)

    assert one.guard != two.guard
    assert one.history_hash == two.history_hash


def test_the_flags_keep_the_version_that_a_step_changed_to() -> None:
    for version, kept in ((1, 1), (2**22 - 1, 2**22 - 1), (2**22, 0)):
        flags = Kind.STEP | HAD_KEY | version_flags(version, changed=True)

        assert flags < 2**32
        assert (flags & 0xFF, flags & HAD_KEY, flags & CHANGED_VERSION) == (Kind.STEP, HAD_KEY, CHANGED_VERSION)
        assert version_of(flags) == kept
