"""What comes back, read: a service's answer into values, a refusal or silence into a `ClientError`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import numpy as np
from msgspec import Struct

from model_export.manifest import Array
from service.client.results import ClientError, Event, Gap, Rollout, Snapshot, State, StepResult
from service.codec.formats import JSON, Format
from service.errors import Applied, Retry

T = TypeVar("T")

_PASSING = (429, 502, 503, 504)  # what a proxy says while a replica is away
_SHOWN = 80  # bytes of an answer that a message repeats


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it came.

    Attributes:
        status: Of HTTP; for a feed's message 200, or 400 where it is a problem.
        body: Its bytes.
        form: Their format.
        retry_after: Seconds that the service asks to wait, or None.
    """

    status: int
    body: bytes
    content_type: Format
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class NoReply:
    """No answer came.

    Attributes:
        why: What happened, with the address.
        sent: The request may have arrived.
    """

    why: str
    sent: bool


class PackedArray(Struct):
    """A tensor as msgpack carries it."""

    d: str
    s: list[int]
    b: bytes

    def array(self) -> Array:
        """Return it as an array of its own."""
        raw = np.frombuffer(bytearray(self.b), np.dtype(self.d).newbyteorder("<"))
        return raw.astype(self.d, copy=False).reshape(self.s)


class StepReply(Struct):
    """The answer to a step, a chunk or a reset."""

    step: int
    state_id: str
    outputs: dict[str, PackedArray] = {}
    replayed: bool = False
    created: bool = False

    def answer(self) -> StepResult:
        """Return it as an answer."""
        outputs = {name: packed.array() for name, packed in self.outputs.items()}
        return StepResult(outputs, self.step, self.state_id, self.replayed, self.created)


class Problem(Struct):
    """A problem document."""

    detail: str
    code: str
    applied: Applied
    retry: Retry
    step: int | None = None
    expected: int | None = None
    state_id: str | None = None

    def error(self, retry_after: float | None = None) -> ClientError:
        """Return it as an error; the detail says also what to do."""
        return ClientError(
            self.code,
            self.detail,
            applied=self.applied,
            retry=self.retry,
            step=self.step,
            expected=self.expected,
            state_id=self.state_id,
            retry_after=retry_after,
        )


class PeekReply(Struct):
    """The answer to a peek; a stream that is missing has no state id."""

    step: int
    outputs: dict[str, PackedArray]
    state_id: str = ""

    def answer(self) -> StepResult:
        """Return it as an answer."""
        return StepResult({name: packed.array() for name, packed in self.outputs.items()}, self.step, self.state_id)


class RolloutReply(Struct):
    """The answer to a rollout."""

    step: int
    outputs: dict[str, PackedArray]
    next: dict[str, PackedArray]
    state_id: str = ""
    seed: int | None = None
    replayed: bool = False
    created: bool = False

    def rollout(self) -> Rollout:
        """Return it as a rollout."""
        outputs, following = (
            {name: packed.array() for name, packed in tensors.items()} for tensors in (self.outputs, self.next)
        )
        return Rollout(outputs, self.step, self.state_id, self.replayed, self.created, following, self.seed)


class StateReply(Struct):
    """The answer that has a stream's state."""

    states: dict[str, PackedArray]
    step: int
    fingerprint: str

    def state(self) -> State:
        """Return it as a state."""
        return State({name: packed.array() for name, packed in self.states.items()}, self.step, self.fingerprint)


class SnapshotsReply(Struct):
    """The answer that lists snapshots."""

    snapshots: list[Snapshot]


class WatchMessage(Struct):
    """A message to one who watches: an event, a gap, or a problem."""

    model: str = ""
    stream: str = ""
    step: int = 0
    state_id: str = ""
    outputs: dict[str, PackedArray] = {}
    inputs: dict[str, PackedArray] = {}
    gap: int = 0
    error: Problem | None = None

    def news(self) -> Event | Gap:
        """Return it as what it tells."""
        if self.gap:
            return Gap(self.gap)
        outputs, inputs = (
            {name: packed.array() for name, packed in tensors.items()} for tensors in (self.outputs, self.inputs)
        )
        return Event(outputs, self.step, self.state_id, model=self.model, stream=self.stream, inputs=inputs)


class BulkReply(Struct):
    """The answer to columns; a failed row has nil, and stands in `errors` by its index as text."""

    outputs: dict[str, PackedArray]
    step: list[int | None]
    state_id: list[str | None]
    errors: dict[str, Problem] = {}
    replayed: list[int] = []


class InputInfo(Struct):
    """An input that a model declares."""

    name: str
    dtype: str


class ModelInfo(Struct):
    """What a model takes."""

    inputs: list[InputInfo]


class ServiceInfo(Struct):
    """What a service says of itself."""

    durability: str


def read(reply: Reply, kind: type[T]) -> T:
    """Return a good reply's body.

    Raises:
        ClientError: `unreadable_answer`.
    """
    decode = msgspec.json.decode if reply.content_type is JSON else msgspec.msgpack.decode
    try:
        return decode(reply.body, type=kind)
    except (msgspec.MsgspecError, ValueError) as exc:
        raise _unreadable(reply, str(exc), "unknown") from exc


def answers_in(reply: Reply, count: int) -> list[StepResult | ClientError]:
    """Return the answers in columns, one per stream, or the error where it failed.

    Raises:
        ClientError: `unreadable_answer`.
    """
    moved = read(reply, BulkReply)
    columns = {name: packed.array() for name, packed in moved.outputs.items()}
    if {len(moved.step), len(moved.state_id), *(len(column) for column in columns.values())} != {count}:
        raise _unreadable(reply, f"its columns are not of {count} streams", "unknown")
    found: list[StepResult | ClientError] = []
    for i, (step, state_id) in enumerate(zip(moved.step, moved.state_id, strict=True)):
        if step is None or state_id is None:
            found.append(moved.errors[str(i)].error() if str(i) in moved.errors else _unreadable(reply, "", "unknown"))
        else:
            outputs = {name: column[i] for name, column in columns.items()}
            found.append(StepResult(outputs, step, state_id, i in moved.replayed))
    return found


def error_in(got: Reply | NoReply, *, moves: bool) -> ClientError | None:
    """Return what a refusal or silence means, or None for a good reply.

    Args:
        got: What came.
        moves: The request was one that moves streams.
    """
    doubt: Applied = "unknown" if moves else "no"
    if isinstance(got, NoReply):
        fix = "See that the service is there; then make the same call again: it is applied at most once."
        return ClientError("no_answer", got.why, fix=fix, applied=doubt if got.sent else "no", retry="same")
    if 200 <= got.status < 300:
        return None
    try:
        problem = read(got, Problem)
    except ClientError:
        return _unreadable(got, "it is no problem document", doubt)
    return problem.error(got.retry_after)


def seconds(retry_after: str | None) -> float | None:
    """Return a `Retry-After` header in seconds; a date, which proxies may send, is not looked at."""
    try:
        found = float(retry_after or "")
    except ValueError:
        return None
    return found if math.isfinite(found) and found >= 0 else None


def _unreadable(reply: Reply, why: str, applied: Applied) -> ClientError:
    shown = reply.body[:_SHOWN].decode(errors="replace")
    return ClientError(
        "unreadable_answer",
        f"The answer, with status {reply.status}, is not one of a Stepwell service ({why}): {shown!r}.",
        fix="See that the address is the service's, and that service and client fit together.",
        applied=applied,
        retry="same" if reply.status in _PASSING else "never",
        retry_after=reply.retry_after,
    )
