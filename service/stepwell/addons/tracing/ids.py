"""`TracedId`: the id of a request that is traced, as it passes through the transports."""

from __future__ import annotations

import random

_SAMPLED_DIGITS = b"13579bdf"  # last hexadecimal digit of the flags, if their lowest bit is set


class TracedId(bytes):
    """A request's id, empty if it has none, with the place of its span in a trace.

    Attributes:
        trace_id: 128 bits.
        parent_id: Id of the caller's span, 64 bits; 0: this request starts the trace.
    """

    trace_id: int
    parent_id: int

    @classmethod
    def of_parent(cls, request_id: bytes, traceparent: bytes) -> TracedId:
        """Return the id of a request that continues a trace, from a valid `traceparent`."""
        traced = cls(request_id)
        traced.trace_id, traced.parent_id = int(traceparent[3:35], 16), int(traceparent[36:52], 16)
        return traced

    @classmethod
    def of_root(cls, request_id: bytes, trace_id: int) -> TracedId:
        """Return the id of a request that starts a trace."""
        traced = cls(request_id)
        traced.trace_id, traced.parent_id = trace_id, 0
        return traced

    @property
    def trace_hex(self) -> str:
        """The trace id as 32 hexadecimal digits."""
        return f"{self.trace_id:032x}"


class UntracedId(bytes):
    """The id of a request whose caller has decided that it is not traced."""

    __slots__ = ()


def is_sampled(traceparent: bytes) -> bool:
    """Return whether the caller of a valid `traceparent` has sampled the trace."""
    return traceparent[54] in _SAMPLED_DIGITS


def new_trace_id() -> int:
    """Return a random trace id."""
    return random.getrandbits(128) or 1


def new_span_id() -> int:
    """Return a random span id."""
    return random.getrandbits(64) or 1
