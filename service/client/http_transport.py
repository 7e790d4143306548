"""Asks and replies over HTTP, for both clients: bodies and answers in msgpack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from service.client.decoding import NoReply, Reply, seconds
from service.client.protocol import ClientRequest
from service.client.results import ClientError
from service.codec.formats import MSGPACK, encode, format_of_body

MAX_CONNECTIONS = 32
"""Connections that a client opens."""

_SCHEMES = {"http": "ws", "https": "wss"}
_LIMITS = httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS)
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


def options(url: str, key: str | None) -> dict[str, Any]:
    """Return what an HTTP client is made with.

    Raises:
        ClientError: `bad_url`: not an address of http or https.
    """
    try:
        address = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as exc:
        raise _bad_url(url) from exc
    if address.scheme not in _SCHEMES or not address.host:
        raise _bad_url(url)
    headers = {"Accept": MSGPACK.value} | ({} if key is None else {"Authorization": f"Bearer {key}"})
    return {"base_url": address, "headers": headers, "limits": _LIMITS}


@dataclass(frozen=True, slots=True)
class FeedAddress:
    """Where a model's feed is, and what its handshake shows.

    Attributes:
        url: `ws://` or `wss://`.
        headers: The key, where there is one.
    """

    url: str
    headers: Mapping[str, str]


def feed_address(client: httpx.AsyncClient | httpx.Client, path: str) -> FeedAddress:
    """Return the address of a WebSocket on the client's service."""
    base = client.base_url
    url = str(base.copy_with(scheme=_SCHEMES[base.scheme])).rstrip("/") + path
    return FeedAddress(url, {name: client.headers[name] for name in ("Authorization",) if name in client.headers})


def request(ask: ClientRequest) -> dict[str, Any]:
    """Return an ask as what an HTTP client sends."""
    headers = {} if ask.key is None else {"Idempotency-Key": ask.key}
    content = None
    if ask.document is not None:
        headers["Content-Type"] = MSGPACK.value
        content = encode(ask.document, MSGPACK)
    return {"method": ask.method, "url": ask.path, "headers": headers, "content": content, "timeout": ask.timeout}


def reply(response: httpx.Response) -> Reply:
    """Return a response as a reply."""
    form = format_of_body(response.headers.get("content-type"))
    return Reply(response.status_code, response.content, form, seconds(response.headers.get("retry-after")))


def lost(error: Exception, url: object, *, sent: bool = True) -> NoReply:
    """Return what it means that a request failed."""
    why = f"No answer from {url}: {type(error).__name__} {error}".strip()
    return NoReply(f"{why}.", sent and not isinstance(error, _NEVER_SENT))


def closed() -> ClientError:
    """Return the refusal of a call on a client that was closed, before the call or while it waited."""
    return ClientError(
        "closed",
        "The client was closed.",
        fix="Make another client and the same call again: a step is applied at most once.",
        applied="unknown",
        retry="same",
    )


def _bad_url(url: str) -> ClientError:
    return ClientError(
        "bad_url", f"The address is {url!r}; expected http://HOST:PORT or https://HOST.", fix="Give it so."
    )
