"""`SocketAuth`: authenticates the client of a WebSocket, at its handshake and while it is open. Does no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from stepwell.codec.strict.parse import parse
from stepwell.errors import ServiceError
from stepwell.requests.auth.api_keys import ANYONE, Caller, Scope
from stepwell.requests.context import AppContext
from stepwell_client.wire.formats import JSON, MSGPACK, Format

_SUBPROTOCOLS: Final = {"stepwell.json": JSON, "stepwell.msgpack": MSGPACK}
_RECHECK_INTERVAL_S: Final = 1.0


class SocketAuth:
    """Authenticates and counts the client of one WebSocket.

    Attributes:
        subprotocol: The first offered subprotocol that the service supports, or None.
        message_format: The format of messages.
        caller: The authenticated caller.
    """

    def __init__(self, context: AppContext, scope: Scope, authorization: str | None, offered: Iterable[str]) -> None:
        """Prepare the checks; nothing is checked or counted yet.

        Args:
            context: The dependencies of every route.
            scope: The scope that the socket needs.
            authorization: The `Authorization` header of the handshake, or None.
            offered: The subprotocols that the client offers.
        """
        self.subprotocol = next((name for name in offered if name in _SUBPROTOCOLS), None)
        self.message_format: Format = _SUBPROTOCOLS.get(self.subprotocol or "", JSON)
        self.caller: Caller = ANYONE
        self._context = context
        self._scope = scope
        self._authorization = authorization
        self._has_first_message = False
        self._recheck_at = 0.0
        self._counted_for: str | None = None  # the tenant

    @property
    def needs_auth_message(self) -> bool:
        """Whether the first message has to be `{"auth": KEY}`: a key is required, and the handshake had none."""
        return self._context.api_keys.required and self._authorization is None

    def authorize_handshake(self, origin: str | None, host: str | None) -> None:
        """Check the origin, the key if it was sent, and the limits on open WebSockets.

        Raises:
            ServiceError: `forbidden`; `unauthenticated`; `overloaded`: this worker has too many open WebSockets;
                `rate_limited`: the tenant has too many.
        """
        context = self._context
        context.check_origin(origin, host)
        limit = context.settings.max_websockets
        if context.websockets >= limit:
            raise ServiceError(
                "overloaded",
                f"This worker has {context.websockets} open WebSockets; at most {limit} are allowed.",
                fix="Try again later.",
            )
        if not self.needs_auth_message:
            self._check()
            self._check_tenant_limit()

    def register(self) -> None:
        """Count an accepted socket until `unregister`."""
        self._context.websockets += 1
        if not self.needs_auth_message:
            self._register_tenant()

    def unregister(self) -> None:
        """Stop counting the socket."""
        self._context.websockets -= 1
        if self._counted_for is not None:
            counts, tenant = self._context.websockets_of, self._counted_for
            counts[tenant] -= 1
            if not counts[tenant]:
                del counts[tenant]  # or the counter would keep every tenant that ever connected
            self._counted_for = None

    def handle_auth_message(self, message: bytes) -> bool:
        """Handle `{"auth": KEY}`, if this is the first message. Browsers send it even if no key is required.

        Returns:
            True: The message was `{"auth": KEY}` and needs no further handling.

        Raises:
            ServiceError: `unauthenticated`: a key is required, and the message has none or an invalid one;
                `forbidden`: the key lacks the scope; `rate_limited`: the tenant has too many open WebSockets.
        """
        if self._has_first_message:
            return False
        self._has_first_message = True
        key = _key_in(message, self.message_format)
        if self.needs_auth_message:
            if key is None:
                raise self.auth_timeout()
            self._authorization = f"Bearer {key}"
            self._check()
            self._check_tenant_limit()
            self._register_tenant()
        return key is not None

    def recheck(self, now: float) -> None:
        """Check that the key is still valid, at most once a second.

        Args:
            now: The event loop's time in seconds.

        Raises:
            ServiceError: `unauthenticated` or `forbidden`.
        """
        if now >= self._recheck_at:
            self._recheck_at = now + _RECHECK_INTERVAL_S
            self._check()

    def auth_timeout(self) -> ServiceError:
        """Return the error for a socket that has not sent its key in time."""
        within = self._context.settings.receive_timeout_s
        return ServiceError(
            "unauthenticated",
            'The socket has neither an Authorization header nor {"auth": KEY} as its first message, '
            f"within {within:g} s.",
            fix="Send one of them.",
        )

    def _check(self) -> None:
        self.caller = self._context.authenticate(self._authorization, self._scope)

    def _check_tenant_limit(self) -> None:
        limit = self._context.settings.tenant_max_websockets
        n_open = self._context.websockets_of[self.caller.tenant] if limit is not None else 0
        if limit is not None and n_open >= limit:
            raise ServiceError(
                "rate_limited",
                f"The tenant has {n_open} open WebSockets in this worker; at most {limit} are allowed.",
                fix="Send several streams over one feed, or close others first.",
            )

    def _register_tenant(self) -> None:
        self._counted_for = self.caller.tenant
        self._context.websockets_of[self._counted_for] += 1


def _key_in(message: bytes, message_format: Format) -> str | None:
    """Return the key of `{"auth": KEY}`, or None if the message is anything else."""
    if b"auth" not in message[:64]:
        return None
    try:
        document: Any = parse(message, message_format)
    except ServiceError:
        return None
    key = document.get("auth") if isinstance(document, dict) and len(document) == 1 else None
    return key if isinstance(key, str) else None
