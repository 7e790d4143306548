"""Positions of sources: what the record shows to have been applied before, and what `decide` makes of it."""

from __future__ import annotations

import itertools

from msgspec.structs import replace

from stepwell.engine.protocol.decide import Decision, decide
from stepwell.engine.protocol.positions import advanced, overlap_of, passed_timesteps, position_of
from stepwell.store.record import MAX_SOURCES, Record, SourcePosition
from stepwell.types import Create, Source
from tests.engine.protocol.test_decide import (
    ELSEWHERE,
    HERE,
    MODEL,
    NEWEST,
    OTHER_MODEL,
    decision_or_code,
    record_at,
    request,
)

LOG, OTHER = b"log.....", b"other..."


def consumed(*answered_at: int, step: int = 9, others: tuple[SourcePosition, ...] = ()) -> Record:
    """Return the record of a stream whose newest operation was of these positions of `LOG`."""
    sources = (SourcePosition(LOG, answered_at[-1]), *others)
    return replace(record_at(step, length=len(answered_at)), sources=sources, answered_at=answered_at)


def test_a_request_overlaps_what_its_source_has_passed() -> None:
    expected: dict[tuple[int, ...], tuple[int, tuple[int, ...]]] = {
        (20,): (1, (2,)),
        (10, 15, 20): (3, (0, 1, 2)),
        (15, 20, 21): (2, (1, 2)),
        (21, 22): (0, ()),
        (5, 10, 15): (3, (0, 1)),
        (5, 6): (2, ()),
        (0, 30): (1, ()),
        (10, 12, 15): (3, (1,)),  # 12 was never applied: what is before it counts as unknown, too
        (10, 12): (2, ()),
    }

    assert {at: overlap_of(consumed(10, 15, 20), Source(LOG, at)) for at in expected} == expected


def test_another_source_passes_nothing_and_its_answers_are_unknown() -> None:
    record = consumed(10, 15, others=(SourcePosition(OTHER, 15),))

    assert overlap_of(record, Source(b"unknown.", (10,))) == (0, ())
    assert overlap_of(record, Source(OTHER, (15, 16))) == (1, ())  # the newest operation was of `LOG`


def test_after_an_operation_without_a_source_no_answer_is_known() -> None:
    record = replace(consumed(10, 15), answered_at=())

    assert overlap_of(record, Source(LOG, (15, 16))) == (1, ())


def test_a_fifth_source_replaces_the_one_used_longest_ago() -> None:
    sources: tuple[SourcePosition, ...] = ()
    for n, name in enumerate((b"1", b"2", b"3", b"4")):
        sources, replaced = advanced(sources, Source(name * 8, (n,)))
        assert not replaced
    sources, replaced = advanced(sources, Source(b"1" * 8, (7, 8)))
    assert not replaced
    sources, replaced = advanced(sources, Source(b"5" * 8, (0,)))

    assert replaced
    assert len(sources) == MAX_SOURCES
    assert [(name[:1], at) for name, at in sources] == [(b"5", 0), (b"1", 8), (b"4", 3), (b"3", 2)]


def expected(record: Record | None, source: Source, seq: int | None, after: bytes | None, create: Create) -> str:
    """The table of a request with a source, written a second time, in another form."""
    if record is None:
        missing_ok = after is None and seq in (None, 1) and create != "never"
        return "apply" if missing_ok else "stream_not_found"
    position = next((at for name, at in record.sources if name == source.digest), -1)
    left = [at for at in source.at if at > position]
    first = None if seq is None else seq + len(source.at) - len(left)
    first_match = [
        (not left, "skip"),
        (create == "must", "stream_exists"),
        (after not in (None, record.history_hash), "state_changed"),
        (first is not None and first > record.step + 1, "seq_gap"),
        (first is not None and record.length > 0 and first == record.step - record.length + 1, "seq_conflict"),
        (first is not None and first <= record.step, "seq_passed"),
        (record.fingerprint != MODEL, "model_changed"),
        (True, "apply"),
    ]
    return next(code for matches, code in first_match if matches)


def test_every_row_of_the_table_with_a_source() -> None:
    """Every combination of stream, cut of the log, `seq` near the step, `after` and `create`."""
    records = (
        None,
        record_at(9),
        consumed(10, 15, 20),
        consumed(0),
        replace(consumed(20), fingerprint=OTHER_MODEL),
        replace(consumed(20), length=0, step=0, answered_at=()),
    )
    cuts = ((0,), (10,), (15, 20), (20, 25), (5, 15, 25, 26), (25,), (21, 2**63 - 1))
    creates: tuple[Create, ...] = ("auto", "never", "must")
    rows = itertools.product(
        records, (LOG, OTHER), cuts, (None, 1, 2, 7, 8, 9, 10, 11), (None, HERE, ELSEWHERE), creates
    )

    found = set[str]()
    for record, name, at, seq, after, create in rows:
        source = Source(name, at)
        intent = request(length=len(at), seq=seq, after=after, create=create, source=source)
        wanted = expected(record, source, seq, after, create)
        assert decision_or_code(record, intent) == wanted, (record, intent)
        found.add(wanted)
    assert found == {
        "apply", "skip", "stream_not_found", "stream_exists", "state_changed", "seq_gap", "seq_conflict", "seq_passed",
        "model_changed",
    }  # fmt: skip


def test_a_start_whose_position_has_passed_resets_nothing() -> None:
    passed, new = (request(starts=True, source=Source(LOG, (at,))) for at in (20, 21))

    assert decide(consumed(20), passed) is Decision.SKIP
    assert decide(consumed(20), new) is Decision.APPLY


def test_the_same_operation_is_skipped_and_not_replayed() -> None:
    """It was applied by its positions, which also show what part of another cut was applied."""
    assert decide(consumed(15, 20), request(op_id=NEWEST, length=2, source=Source(LOG, (15, 20)))) is Decision.SKIP


def test_a_position_is_that_of_its_source() -> None:
    record = consumed(20, others=(SourcePosition(OTHER, 3),))

    assert position_of(record.sources, Source(OTHER, (1,))) == 3
    assert position_of(record.sources, Source(b"unknown.", (1,))) is None
    assert passed_timesteps(record.sources, Source(OTHER, (1, 3, 4))) == 2
