"""The whole decision table: what a request does to a missing stream, or to one at a given step."""

from __future__ import annotations

import itertools
from typing import Any, cast

import pytest

from stepwell.engine.protocol.decide import StepIntent, applies_without_store, check_idempotency_entry, decide
from stepwell.engine.stepping.batch import CoalescedBatch, RowBatch
from stepwell.engine.stepping.queued import QueuedStep
from stepwell.error_codes import CODES
from stepwell.errors import ServiceError
from stepwell.models.served import ServedModel
from stepwell.store.idempotency_entry import IdempotencyEntry
from stepwell.store.record import Kind, Record
from stepwell.store.record_arrays import read_headers
from stepwell.types import Create, StreamHandle, StreamKey, Timestep

HERE, ELSEWHERE = b"c" * 16, b"x" * 16
MODEL, OTHER_MODEL = b"model..1", b"model..2"
NEWEST, MINE = b"newest-operation", b"this-operation.."


def record_at(step: int, *, length: int = 1, fingerprint: bytes = MODEL) -> Record:
    return Record(9, step, length, Kind.STEP, NEWEST, HERE, fingerprint, 0, 0, b"", b"")


def request(**parts: Any) -> StepIntent:
    defaults: dict[str, Any] = {
        "op_id": MINE, "length": 1, "seq": None, "after": None, "create": "auto", "fingerprint": MODEL,
    }  # fmt: skip
    return StepIntent(**{**defaults, **parts})


def queued(**parts: Any) -> QueuedStep:
    timestep = Timestep(StreamKey("t", "m", "s"), (), **parts)
    return QueuedStep(timestep, lambda _: None, 0.0, "s", cast(ServedModel, None), 1, MINE)


def decision_or_code(record: Record | None, intent: StepIntent) -> str:
    try:
        return decide(record, intent).value
    except ServiceError as exc:
        return exc.code


def expected(record: Record | None, intent: StepIntent) -> str:
    """The protocol's table, written a second time, in another form."""
    q, r = intent, record
    if r is None:
        missing_ok = q.after is None and q.seq in (None, 1) and q.create != "never"
        return "apply" if missing_ok else "stream_not_found"
    first_match = [
        (r.op_id == q.op_id, "replay"),
        (q.create == "must", "stream_exists"),
        (q.after not in (None, r.history_hash), "state_changed"),
        (q.seq is not None and q.seq > r.step + 1, "seq_gap"),
        (q.seq is not None and r.length > 0 and q.seq == r.step - r.length + 1, "seq_conflict"),
        (q.seq is not None and q.seq <= r.step, "seq_passed"),
        (q.fingerprint not in (None, r.fingerprint), "model_changed"),
        (True, "apply"),
    ]
    return next(code for matches, code in first_match if matches)


RECORDS = [
    None,
    record_at(0, length=0),
    record_at(1),
    record_at(5),
    record_at(5, length=3),
    record_at(5, fingerprint=OTHER_MODEL),
]
CREATES: tuple[Create, ...] = ("auto", "never", "must")


def test_every_row_of_the_table() -> None:
    """Every combination of stream, operation, `seq` near the step, `after`, `create` and model."""
    rows = itertools.product(
        RECORDS, (MINE, NEWEST), (None, 1, 2, 3, 5, 6, 7, 2**53 - 1), (None, HERE, ELSEWHERE), CREATES, (MODEL, None)
    )

    for record, op_id, seq, after, create, fingerprint in rows:
        intent = request(op_id=op_id, seq=seq, after=after, create=create, fingerprint=fingerprint)
        assert decision_or_code(record, intent) == expected(record, intent), (record, intent)


REJECTED: list[tuple[Record | None, StepIntent, str, tuple[int | None, int | None, str]]] = [
    (None, request(seq=2), "no", (None, 1, "resend_from")),
    (None, request(create="never"), "no", (None, 1, "never")),
    (record_at(5), request(seq=9), "no", (5, 6, "resend_from")),
    (record_at(5), request(seq=2), "yes", (5, 6, "never")),
    (record_at(5), request(seq=5), "no", (5, 6, "never")),
    (record_at(5), request(after=ELSEWHERE), "no", (5, 6, "never")),
    (record_at(5), request(seq=9, after=ELSEWHERE), "no", (5, 6, "resend_from")),
    (record_at(5), request(create="must"), "no", (5, None, "never")),
]


def test_a_rejection_reports_the_position_of_the_stream() -> None:
    for record, intent, applied, facts in REJECTED:
        with pytest.raises(ServiceError) as refused:
            decide(record, intent)

        error = refused.value
        assert (error.applied, (error.step, error.expected, error.retry)) == (applied, facts), intent
        assert error.code in CODES
        assert error.fix


def test_an_idempotency_key_replays_its_own_request_only() -> None:
    entry = IdempotencyEntry(MINE, 1, 4, HERE, 1, b"")

    assert check_idempotency_entry(entry, request()) is entry
    with pytest.raises(ServiceError, match="used for another request"):
        check_idempotency_entry(entry, request(op_id=NEWEST))


def test_a_request_that_surely_applies_is_applied() -> None:
    """For every record of the same model whose newest operation is another one."""
    sure = 0
    rows = itertools.product(
        (record_at(0, length=0), record_at(1), record_at(5), record_at(5, length=3)),
        (None, 1, 2, 3, 5, 6, 7),
        (None, HERE, ELSEWHERE),
        CREATES,
    )
    for record, seq, after, create in rows:
        ask = queued(seq=seq, after=after, create=create)
        [applies] = RowBatch([ask]).certainly_apply(read_headers([record.encode()]))
        expected = create != "must" and applies_without_store(record.step, record.history_hash, seq, after)
        assert applies == expected, (record, ask)
        if applies:
            sure += 1
            assert decision_or_code(record, request(seq=seq, after=after, create=create)) == "apply", (record, ask)

    assert sure > 20


@pytest.mark.parametrize(
    "parts", [{"seq": 6, "idempotency_key": "k"}, {"seq": 6, "create": "must"}], ids=["a key", "create: must"]
)
def test_a_request_with_more_than_a_position_is_decided_by_the_record(parts: dict[str, Any]) -> None:
    batch = RowBatch([queued(**parts)])

    assert not batch.certainly_apply(read_headers([record_at(5).encode()])).any()
    assert not batch.is_decided_by_position(0)


def test_a_row_that_was_answered_meanwhile_begins_no_stream() -> None:
    """Its deadline has passed while its stream was loaded: it has an object then, and must not be applied."""
    batch = CoalescedBatch(cast(ServedModel, None), 2, has_source=False)
    for name in ("s", "t"):
        handle = StreamHandle(StreamKey("t", "m", name), name, None, "http")
        batch.add((handle, name, 1, None, None, (), lambda _: None, 0.0))
    batch.close(lambda *_: [MINE, NEWEST])
    batch.row(0).answered = True

    assert [batch.begins_stream(i) for i in (0, 1)] == [False, True]
