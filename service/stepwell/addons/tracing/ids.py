"""The ids of requests that are traced, of their traces and of spans."""

from __future__ import annotations

import random

from stepwell.requests.request_ids import TracedId

_SAMPLED_DIGITS = b"13579bdf"  # last hexadecimal digit of the flags, if their lowest bit is set


def id_of_child(request_id: bytes, traceparent: bytes) -> TracedId:
    """Return the id of a request that continues a trace, from a valid `traceparent`."""
    traced = TracedId(request_id)
    traced.trace_id, traced.parent_id = int(traceparent[3:35], 16), int(traceparent[36:52], 16)
    return traced


def id_of_root(request_id: bytes, trace_id: int) -> TracedId:
    """Return the id of a request that starts a trace."""
    traced = TracedId(request_id)
    traced.trace_id, traced.parent_id = trace_id, 0
    return traced


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
