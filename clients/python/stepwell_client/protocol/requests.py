"""Requests to send, requests that were sent, and the position of the stream that they are for."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from stepwell_client.errors import ClientError
from stepwell_client.results import StepResult
from stepwell_client.wire.ids import is_stream_id, stream_id_problem

R = TypeVar("R", bound=StepResult)

ATTEMPT_S: Final = 15.0
"""Seconds to wait for one reply: longer than the service's default limit for a request."""

SILENCE_S: Final = 30.0
"""Seconds to wait for the next line of a stream of events, which has a comment every 15 s."""

_OVERHEAD: Final = 400  # bytes of a kept request in addition to its inputs


@dataclass(slots=True)
class StreamCursor:
    """The last position of one stream that this client has received.

    Attributes:
        stream: The stream's id.
        step: Timesteps that the stream has consumed.
        state_id: The stream's state id; None if the stream does not exist yet.
        known: `step` and `state_id` were received, so the next step follows on them.
        in_doubt: The service may have applied a later step whose response did not arrive.
        past: The buffered requests of the stream, oldest first.
        keyed: The last call with an idempotency key, until it succeeds: the same call has the same key.
    """

    stream: str
    step: int = 0
    state_id: str | None = None
    known: bool = False
    in_doubt: bool = False
    past: deque[SentRequest] = field(default_factory=deque)
    keyed: KeyedCall | None = None

    @classmethod
    def of(cls, stream: str) -> StreamCursor:
        """Return the cursor of a stream whose position is not known yet.

        Raises:
            ClientError: `bad_request`: the id is not a valid stream id.
        """
        if not isinstance(stream, str):
            raise ClientError(
                "bad_request",
                f"The stream id is {stream!r:.80}, of type {type(stream).__name__}; expected a text.",
                fix="Convert it, as in `str(42)`.",
            )
        if not is_stream_id(stream):
            raise ClientError("bad_request", stream_id_problem(stream), fix="Use such a stream id.")
        return cls(stream)

    def set(self, step: int, state_id: str | None) -> None:
        """Record the stream's position."""
        self.step, self.state_id, self.known, self.in_doubt = step, state_id, True, False
        self.keyed = None

    def identifiers(self) -> dict[str, Any]:
        """Return the fields by which the service recognises a retry, or a late copy, of the stream's next timestep.

        Until the stream exists, there is no state id to name in `after`; without `create`, a copy of its first timestep
        would be applied to the state of a later reset.
        """
        return {"seq": self.step + 1} | ({"create": "must"} if self.state_id is None else {"after": self.state_id})

    def key_of(self, request: ClientRequest, position: str | None) -> str:
        """Return the idempotency key of a call: that of the call before, if it was the same and has not succeeded.

        Args:
            request: The call's request, without a key.
            position: The state id of the stream that the call reads.
        """
        if self.keyed is None or (self.keyed.request, self.keyed.position) != (request, position):
            self.keyed = KeyedCall(request, position, uuid.uuid4().hex)
        return self.keyed.key

    def advance_to(self, result: R) -> R:
        """Record the position of a result, and return the result."""
        self.set(result.step, result.state_id)
        return result


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """A request to send.

    Attributes:
        method: The HTTP method.
        path: The path below the service's address.
        document: The body, of plain values and bytes; None for no body.
        stream: For a step of one timestep, the stream's id; such a request may also be sent over a feed.
        key: The `Idempotency-Key`, or None.
        wait: Seconds to wait before sending.
        timeout: Seconds to wait for the reply.
        mutates: The request can change a stream, unless its method is GET.
    """

    method: str
    path: str
    document: Mapping[str, Any] | None = None
    stream: str | None = None
    key: str | None = None
    wait: float = 0.0
    timeout: float = ATTEMPT_S
    mutates: bool = True


@dataclass(frozen=True, slots=True)
class KeyedCall:
    """A call that an idempotency key identifies.

    Attributes:
        request: Its request, without the key.
        position: The state id of the stream that it reads; None if that is not known.
        key: The key.
    """

    request: ClientRequest
    position: str | None
    key: str


@dataclass(slots=True, eq=False)
class SentRequest:
    """A request that changed a stream.

    Attributes:
        request: The request.
        cursor: The stream's cursor.
        step: The stream's step before the request.
        before: The stream's state id before the request; None if the request created the stream.
        state_id: The stream's state id after the request.
        nbytes: Bytes of memory that the request occupies, estimated.
    """

    request: ClientRequest
    cursor: StreamCursor
    step: int
    before: str | None
    state_id: str
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.nbytes = _OVERHEAD + _size(self.request.document)


def _size(document: Any) -> int:
    if isinstance(document, bytes):
        return len(document)
    return sum(_size(part) for part in document.values()) if isinstance(document, dict) else 0
