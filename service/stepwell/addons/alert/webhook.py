"""`Webhook`: posts alarms as JSON over HTTP, signed."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import urlsplit

import httpx2
import msgspec

from stepwell.addons.alert.rules import AlarmTarget
from stepwell.addons.connect.messages import BrokerUnavailableError, OutMessage, Undeliverable

SIGNATURE_HEADER: Final = "Stepwell-Signature"
"""`t=UNIX,v1=HEX`: the time of the attempt, and HMAC-SHA256 with the secret over the bytes `UNIX.BODY`."""

_TIMEOUT_S: Final = 10.0
_UNAVAILABLE: Final = frozenset((408, 425, 429))


class Webhook:
    """An HTTP receiver of alarms, a `MessageWriter`."""

    def __init__(self, target: AlarmTarget, clock: Callable[[], float] = time.time) -> None:
        """Create it; nothing is sent yet.

        Args:
            target: The receiver.
            clock: Returns seconds since 1970.
        """
        parts = urlsplit(target.url)
        self.name = f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
        self._url = target.url
        self._secret = target.secret
        self._clock = clock
        self._http = httpx2.AsyncClient(timeout=_TIMEOUT_S)

    async def open(self) -> None:
        """Do nothing: a request connects."""

    async def write(self, messages: Sequence[OutMessage]) -> Sequence[Undeliverable]:
        """Post the messages one after the other; the receiver accepts one with a status from 200 to 299.

        Returns:
            Those that it refuses, by a status that is about them.

        Raises:
            BrokerUnavailableError: There was no response, or one that is not about a message: 5xx, 408, 425, 429.
        """
        found = [(message, await self._post(msgspec.json.encode(message.document))) for message in messages]
        return [Undeliverable(message, reason) for message, reason in found if reason is not None]

    async def _post(self, body: bytes) -> str | None:
        """Post one message; return why it is refused."""
        headers = {"content-type": "application/json", "user-agent": "stepwell-alert"}
        if self._secret is not None:
            headers[SIGNATURE_HEADER] = signature(self._secret, int(self._clock()), body)
        try:
            response = await self._http.post(self._url, content=body, headers=headers)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as exc:
            raise BrokerUnavailableError(str(exc) or type(exc).__name__) from exc
        status = f"status {response.status_code}"
        if response.status_code >= 500 or response.status_code in _UNAVAILABLE:
            raise BrokerUnavailableError(status)
        if response.is_redirect:
            return f"{status}, a redirect, which is not followed"
        return None if response.is_success else status

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()


def signature(secret: bytes, at: int, body: bytes) -> str:
    """Return the value of the header of a request.

    Args:
        secret: The secret that the receiver has, too.
        at: The time of the attempt, seconds since 1970.
        body: The body of the request.
    """
    digest = hmac.new(secret, b"%d.%s" % (at, body), hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"
