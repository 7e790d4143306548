"""Decoding of responses: into result values, or into a `ClientError` for an error or a missing response."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import msgspec
import numpy as np
from msgspec import Struct

from stepwell_client.errors import ClientError
from stepwell_client.protocol.retry import REPEATED_STATUSES
from stepwell_client.results import Event, Gap, Rollout, RunResult, Snapshot, State, StepResult
from stepwell_client.wire.formats import JSON, Array, Format
from stepwell_client.wire.outcomes import Applied, Retry

T = TypeVar("T")

_PREVIEW_BYTES = 80  # of a response body, in error messages


@dataclass(frozen=True, slots=True)
class RawReply:
    """An undecoded response.

    Attributes:
        status: The HTTP status; for a feed message 200, or 400 if it is a problem.
        body: The body's bytes.
        content_type: The body's format.
        retry_after: Seconds of the `Retry-After` header, or None.
    """

    status: int
    body: bytes
    content_type: Format
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class NoReply:
    """No response arrived.

    Attributes:
        reason: What failed, with the address.
        sent: The request may have reached the service.
    """

    reason: str
    sent: bool


class PackedArray(Struct):
    """A tensor in msgpack: dtype, shape and little-endian bytes."""

    d: str
    s: list[int]
    b: bytes

    def array(self) -> Array:
        """Return a writable array with a copy of the data."""
        raw = np.frombuffer(bytearray(self.b), np.dtype(self.d).newbyteorder("<"))
        return raw.astype(self.d, copy=False).reshape(self.s)


def _arrays(tensors: Mapping[str, PackedArray]) -> dict[str, Array]:
    return {name: packed.array() for name, packed in tensors.items()}


class StepReply(Struct):
    """The response to a step, a chunk or a reset."""

    step: int
    state_id: str | None
    outputs: dict[str, PackedArray] = {}
    replayed: bool = False
    created: bool = False
    skipped: int = 0
    unknown: int = 0
    source_changed: bool = False
    version: int | None = None
    versions: tuple[int | None, ...] = ()

    def result(self) -> StepResult:
        """Return the response as a `StepResult`."""
        return StepResult(
            _arrays(self.outputs),
            self.step,
            self.state_id or "",
            self.replayed,
            self.created,
            skipped=self.skipped,
            unknown=self.unknown,
            source_changed=self.source_changed,
            version=self.version,
            versions=self.versions,
        )


class ProblemReply(Struct):
    """A problem document."""

    detail: str
    code: str
    applied: Applied
    retry: Retry
    step: int | None = None
    expected: int | None = None
    state_id: str | None = None
    at: int | None = None

    def error(self, retry_after: float | None = None) -> ClientError:
        """Return the problem as an error; `detail` includes the fix."""
        return ClientError(
            self.code,
            self.detail,
            applied=self.applied,
            retry=self.retry,
            step=self.step,
            expected=self.expected,
            state_id=self.state_id,
            retry_after=retry_after,
            at=self.at,
        )


class PeekReply(Struct):
    """The response to a peek; `state_id` is empty if the stream does not exist."""

    step: int
    outputs: dict[str, PackedArray]
    state_id: str = ""

    def result(self) -> StepResult:
        """Return the response as a `StepResult`."""
        return StepResult(_arrays(self.outputs), self.step, self.state_id)


class RolloutReply(Struct):
    """The response to a rollout."""

    step: int
    outputs: dict[str, PackedArray]
    next: dict[str, PackedArray]
    state_id: str = ""
    seed: int | None = None
    replayed: bool = False
    created: bool = False

    def rollout(self) -> Rollout:
        """Return the response as a `Rollout`."""
        outputs, following = _arrays(self.outputs), _arrays(self.next)
        return Rollout(outputs, self.step, self.state_id, self.replayed, self.created, following, self.seed)


class StateReply(Struct):
    """The response with a stream's state."""

    states: dict[str, PackedArray]
    step: int
    fingerprint: str

    def state(self) -> State:
        """Return the response as a `State`."""
        return State(_arrays(self.states), self.step, self.fingerprint)


class RunReply(Struct):
    """The response to a timestep whose state was in the request."""

    outputs: dict[str, PackedArray]
    state: str

    def result(self) -> RunResult:
        """Return the response as a `RunResult`."""
        return RunResult(_arrays(self.outputs), self.state)


class RunManyReply(Struct):
    """The response to columns of such timesteps; a failed row is nil, with its problem in `errors`."""

    outputs: dict[str, PackedArray]
    state: list[str | None]
    errors: dict[str, ProblemReply] = {}

    def results(self) -> list[RunResult | ClientError]:
        """Return the result of each row, or its error."""
        arrays = _arrays(self.outputs)
        return [
            self.errors[str(i)].error()
            if state is None
            else RunResult({name: array[i] for name, array in arrays.items()}, state)
            for i, state in enumerate(self.state)
        ]


class SnapshotsReply(Struct):
    """The response with a list of snapshots."""

    snapshots: list[Snapshot]


class WatchMessage(Struct):
    """A message of a watch: an event, a gap, or a problem."""

    model: str = ""
    stream: str = ""
    step: int = 0
    state_id: str = ""
    outputs: dict[str, PackedArray] = {}
    inputs: dict[str, PackedArray] = {}
    gap: int = 0
    error: ProblemReply | None = None

    def event(self) -> Event | Gap:
        """Return the message as an `Event` or a `Gap`."""
        if self.gap:
            return Gap(self.gap)
        outputs, inputs = _arrays(self.outputs), _arrays(self.inputs)
        return Event(outputs, self.step, self.state_id, model=self.model, stream=self.stream, inputs=inputs)


class BulkReply(Struct):
    """The response to a bulk step; a failed row is nil, with its problem in `errors` under the row index as text."""

    outputs: dict[str, PackedArray]
    step: list[int | None]
    state_id: list[str | None]
    errors: dict[str, ProblemReply] = {}
    replayed: list[int] = []
    skipped: list[int] = []
    unknown: list[int] = []
    source_changed: list[int] = []
    version: list[int | None] = []
    versions: list[tuple[int | None, ...] | None] = []

    def arrays(self) -> dict[str, Array]:
        """Return the columns of outputs, writable."""
        return _arrays(self.outputs)


class TensorInfo(Struct):
    """An input or an output in a model's description.

    Attributes:
        name: Its name.
        dtype: Its dtype, as NumPy names it.
        shape: The shape of one row.
        labels: The names of the numbers of a row, if it has any.
        unit: Its unit, if it has one; a list has one for each number.
        missing: Of an input, `nan` if it may have missing values.
        latency: Of an output, the samples by which it is behind the input; None: it has no samples.
    """

    name: str
    dtype: str
    shape: list[int] = []
    labels: list[str] | None = None
    unit: str | list[str] | None = None
    missing: Literal["refuse", "nan"] = "refuse"
    latency: int | None = None


class ModelInfo(Struct):
    """A model's description, as far as the client uses it.

    Attributes:
        inputs: Its inputs.
        outputs: Its outputs.
        latency: The largest latency of its outputs, in samples; None: none of them has samples.
        every: The time from one timestep to the next that it was trained with, such as `1s`; None: it is not known.
    """

    inputs: list[TensorInfo]
    outputs: list[TensorInfo] = []
    latency: int | None = None
    every: str | None = None


class ServiceInfo(Struct):
    """The response of `GET /v1/info`, as far as the client uses it."""

    durability: str


def read(reply: RawReply, kind: type[T]) -> T:
    """Return the decoded body of a successful reply.

    Raises:
        ClientError: `unreadable_answer`.
    """
    decode = msgspec.json.decode if reply.content_type is JSON else msgspec.msgpack.decode
    try:
        return decode(reply.body, type=kind)
    except (msgspec.MsgspecError, ValueError) as exc:
        raise _unreadable(reply, str(exc), "unknown") from exc


def bulk_reply(reply: RawReply, count: int) -> BulkReply:
    """Return a bulk response after checking that each of its columns has a row for each stream.

    Raises:
        ClientError: `unreadable_answer`.
    """
    bulk = read(reply, BulkReply)
    lengths = {
        len(bulk.step),
        len(bulk.state_id),
        *(packed.s[0] if packed.s else 0 for packed in bulk.outputs.values()),
    }
    lengths |= {len(column) or count for column in (bulk.skipped, bulk.unknown, bulk.version, bulk.versions)}
    if lengths != {count}:
        raise _unreadable(reply, f"its columns do not have {count} rows", "unknown")
    return bulk


def bulk_results(bulk: BulkReply) -> list[StepResult | ClientError]:
    """Return one result per stream of a bulk response, or the stream's error."""
    columns = bulk.arrays()
    results: list[StepResult | ClientError] = []
    for i, (step, state_id) in enumerate(zip(bulk.step, bulk.state_id, strict=True)):
        if step is None:
            results.append(bulk.errors[str(i)].error() if str(i) in bulk.errors else _missing_row(i))
        else:
            outputs = {name: column[i] for name, column in columns.items()}
            results.append(
                StepResult(
                    outputs,
                    step,
                    state_id or "",
                    i in bulk.replayed,
                    skipped=bulk.skipped[i] if bulk.skipped else 0,
                    unknown=bulk.unknown[i] if bulk.unknown else 0,
                    source_changed=i in bulk.source_changed,
                    version=bulk.version[i] if bulk.version else None,
                    versions=(bulk.versions[i] if bulk.versions else None) or (),
                )
            )
    return results


def error_in(reply: RawReply | NoReply, *, mutates: bool) -> ClientError | None:
    """Return the error of a failed request, or None for a successful reply."""
    applied: Applied = "unknown" if mutates else "no"
    if isinstance(reply, NoReply):
        fix = "Check that the service is running, then repeat the same call: it is applied at most once."
        return ClientError("no_answer", reply.reason, fix=fix, applied=applied if reply.sent else "no", retry="same")
    if 200 <= reply.status < 300:
        return None
    try:
        problem = read(reply, ProblemReply)
    except ClientError:
        return _unreadable(reply, "not a problem document", applied)
    return problem.error(reply.retry_after)


def seconds(retry_after: str | None) -> float | None:
    """Return a `Retry-After` header in seconds; None without one or for a date, which proxies may send."""
    try:
        value = float(retry_after or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _missing_row(row: int) -> ClientError:
    return ClientError(
        "unreadable_answer",
        f"The response has neither a result nor an error for row {row}.",
        fix="Check that the versions of client and service match.",
        applied="unknown",
    )


def _unreadable(reply: RawReply, reason: str, applied: Applied) -> ClientError:
    preview = reply.body[:_PREVIEW_BYTES].decode(errors="replace")
    return ClientError(
        "unreadable_answer",
        f"The response with status {reply.status} is not one of a Stepwell service ({reason}): {preview!r}.",
        fix="Check the service's address, and that the versions of client and service match.",
        applied=applied,
        retry="same" if reply.status in REPEATED_STATUSES else "never",
        retry_after=reply.retry_after,
    )
