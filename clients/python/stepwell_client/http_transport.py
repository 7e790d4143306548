"""Requests and replies over HTTP with msgpack bodies, for both clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from stepwell_client.errors import ClientError
from stepwell_client.protocol.decoding import NoReply, RawReply, seconds
from stepwell_client.protocol.inputs import encode_body
from stepwell_client.protocol.requests import ClientRequest
from stepwell_client.wire.formats import EVENT_STREAM, MSGPACK, format_of_body
from stepwell_client.wire.ids import API_KEY

MAX_CONNECTIONS = 32
"""Maximum open HTTP connections per client."""

LIMITS = httpx2.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS)

_SCHEMES = {"http": "ws", "https": "wss"}
_LAST_PORT = 65_535
_UNIX = "unix://"
_LOCAL = "http://localhost"  # of requests to a unix socket
_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)


def options(url: str, key: str | None) -> dict[str, Any]:
    """Return the constructor arguments of an httpx2 client, except its transport.

    Args:
        url: `http://HOST:PORT`, `https://HOST`, or `unix://PATH`, the socket of an engine in this process.
        key: The API key, if there is one.

    Raises:
        ClientError: `bad_url`: it is none of these; `bad_request`: no header can have the key.
    """
    if key is not None and not API_KEY.fullmatch(key):
        raise ClientError(
            "bad_request",
            "The key is empty, or has a line end or characters other than ASCII.",
            fix="Strip the text that it was read from: `key.strip()`.",
        )
    headers = {"Accept": MSGPACK.value} | ({} if key is None else {"Authorization": f"Bearer {key}"})
    if socket_of(url):
        return {"base_url": _LOCAL, "headers": headers}
    try:
        address = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError) as exc:
        raise _bad_url(url) from exc
    if address.scheme not in _SCHEMES or not address.host or (address.port or 0) > _LAST_PORT:
        raise _bad_url(url)
    return {"base_url": address, "headers": headers, "limits": LIMITS}


def socket_of(url: str) -> str | None:
    """Return the path of a `unix://PATH` URL; None for any other."""
    return url.removeprefix(_UNIX) if isinstance(url, str) and url.startswith(f"{_UNIX}/") else None


@dataclass(frozen=True, slots=True)
class FeedAddress:
    """The address of a WebSocket and the headers of its handshake.

    Attributes:
        url: `ws://...` or `wss://...`.
        headers: `Authorization`, if the client has a key.
        socket: The path of the unix socket; None: TCP.
    """

    url: str
    headers: Mapping[str, str]
    socket: str | None = None


def feed_address(client: httpx2.AsyncClient | httpx2.Client, path: str, socket: str | None = None) -> FeedAddress:
    """Return the WebSocket address of a path of the client's service, which may be at a unix socket."""
    base = client.base_url
    url = str(base.copy_with(scheme=_SCHEMES[base.scheme])).rstrip("/") + path
    headers = {name: client.headers[name] for name in ("Authorization",) if name in client.headers}
    return FeedAddress(url, headers, socket)


def request_options(request: ClientRequest) -> dict[str, Any]:
    """Return the arguments of `httpx2.Client.request` for a request."""
    headers = {} if request.key is None else {"Idempotency-Key": request.key}
    content = None
    if request.document is not None:
        headers["Content-Type"] = MSGPACK.value
        content = encode_body(request.document)
    return {
        "method": request.method,
        "url": request.path,
        "headers": headers,
        "content": content,
        "timeout": request.timeout,
    }


def event_options(request: ClientRequest) -> dict[str, Any]:
    """Return the arguments of `httpx2.Client.stream` for a request whose response is a stream of events."""
    options = request_options(request)
    options["headers"]["Accept"] = EVENT_STREAM
    return options


def has_events(response: httpx2.Response) -> bool:
    """Return whether a response is a stream of events."""
    return str(response.headers.get("content-type", "")).startswith(EVENT_STREAM)


def reply(response: httpx2.Response) -> RawReply:
    """Return an httpx2 response as a reply."""
    content_type = format_of_body(response.headers.get("content-type"))
    return RawReply(response.status_code, response.content, content_type, seconds(response.headers.get("retry-after")))


def no_reply(error: Exception, url: object, *, sent: bool = True) -> NoReply:
    """Return a transport error as a `NoReply`."""
    reason = f"No response from {url}: {type(error).__name__} {error}".strip()
    return NoReply(f"{reason}.", sent and not isinstance(error, _NEVER_SENT))


def client_closed() -> ClientError:
    """Return the error of a call on a client that was closed before or during the call."""
    return ClientError(
        "closed",
        "The client was closed.",
        fix="Create another client and repeat the call: a step is applied at most once.",
        applied="unknown",
        retry="same",
    )


def _bad_url(url: str) -> ClientError:
    return ClientError(
        "bad_url",
        f"The address is {url!r}; expected http://HOST:PORT, https://HOST or :memory:.",
        fix="Give the service's address in this form, or :memory: for an engine in this process.",
    )
