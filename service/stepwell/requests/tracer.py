"""`RequestTracer`: what an add-on that follows single requests implements."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from stepwell.errors import ServiceError
    from stepwell.models.served import ServedModel
    from stepwell.requests.feed_session import FeedSession


class Submits(Protocol):
    """A request whose body is not decoded yet: the handler of an HTTP request, or a call of gRPC."""

    @property
    def served(self) -> ServedModel:
        """The model version that the request is for."""

    def submit(self, body: bytes, done: Callable[[Any], None]) -> None:
        """Decode a body and submit it; `done` gets the result.

        Raises:
            ServiceError: The body was rejected; `done` is not called.
        """


class RequestTracer:
    """Base class: decides which requests are traced, and submits these. All others are submitted without it."""

    def identify(self, request_id: bytes, traceparent: bytes) -> bytes:
        """Return a request's id, as a `TracedId` if it continues a trace.

        Args:
            request_id: The id, or empty.
            traceparent: The valid header.
        """
        return request_id

    def sample(self, request_id: bytes) -> bytes:
        """Return a request's id, as a `TracedId` if the request is traced; it may start a trace."""
        return request_id

    def submit(
        self,
        request: Submits,
        body: bytes,
        done: Callable[[Any], None],
        *,
        request_id: bytes,
        route: str,
        status_of: Callable[[ServiceError], int],
        stream: str | None = None,
        received_s: float | None = None,
    ) -> None:
        """Submit a request as `Submits.submit` does.

        Args:
            request: What is submitted.
            body: Its body.
            done: Gets the result.
            request_id: The result of `sample`.
            route: Method and path of its route.
            status_of: Returns the HTTP status of an error.
            stream: The stream; None: that of the request's `key`, if it has one.
            received_s: When it was received, on the monotonic clock; None: now.

        Raises:
            ServiceError: The body was rejected; `done` is not called.
        """
        request.submit(body, done)

    def feed_session(self, traceparent: str | None) -> Callable[..., FeedSession] | None:
        """Return what creates the session of a feed, with the arguments of `FeedSession`; None: it is not traced.

        Args:
            traceparent: The header of the request that opened the feed, or None.
        """
        return None
