"""`SocketAuth`: who is at the other end of a WebSocket, and whether it may come in and stay. Does no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from service.codec import JSON, MSGPACK, Format
from service.codec.strict_parse import parse
from service.errors import ServiceError
from service.requests.api_keys import ANYONE, Caller, Scope
from service.requests.context import AppContext

_SUBPROTOCOLS: Final = {"stepwell.json": JSON, "stepwell.msgpack": MSGPACK}
_RECHECK_INTERVAL_S: Final = 1.0


class SocketAuth:
    """Who is at the other end of a WebSocket.

    Attributes:
        subprotocol: The first of the offered ones that is known, or None.
        form: What messages are written in.
        caller: Whose streams they are about.
    """

    def __init__(self, context: AppContext, scope: Scope, authorization: str | None, offered: Iterable[str]) -> None:
        """Meet a visitor.

        Args:
            context: Knows the keys.
            scope: What the socket is for.
            authorization: The header, if there was one.
            offered: The subprotocols that the client speaks.
        """
        self.subprotocol = next((name for name in offered if name in _SUBPROTOCOLS), None)
        self.message_format: Format = _SUBPROTOCOLS.get(self.subprotocol or "", JSON)
        self.caller: Caller = ANYONE
        self._context = context
        self._scope = scope
        self._authorization = authorization
        self._opened_at = False
        self._check_at = 0.0
        self._counted_for: str | None = None  # the tenant

    @property
    def needs_auth_message(self) -> bool:
        """Whether its first message has to be `{"auth": KEY}`: keys are asked for, and the handshake had none."""
        return self._context.api_keys.required and self._authorization is None

    def authorize_handshake(self, origin: str | None, host: str | None) -> None:
        """Check all that a handshake tells.

        Raises:
            ServiceError: `forbidden`, `unauthenticated`, or too many sockets are open: `overloaded`, or where they
                are the tenant's `rate_limited`.
        """
        context = self._context
        context.check_origin(origin, host)
        most = context.settings.max_websockets
        if context.websockets >= most:
            raise ServiceError(
                "overloaded", f"{context.websockets} WebSockets are open; at most {most} are.", fix="Try again later."
            )
        if not self.needs_auth_message:
            self._check()
            self._check_tenant_room()

    def register(self) -> None:
        """Count an accepted socket, until `unregister`."""
        self._context.websockets += 1
        if not self.needs_auth_message:
            self._register_tenant()

    def unregister(self) -> None:
        """Count it no longer."""
        self._context.websockets -= 1
        if self._counted_for is not None:
            counts, tenant = self._context.websockets_of, self._counted_for
            counts[tenant] -= 1
            if not counts[tenant]:
                del counts[tenant]  # else each tenant that ever came would stay
            self._counted_for = None

    def handle_auth_message(self, message: bytes) -> bool:
        """Tell whether a message is no more than a key. Browsers send one first, also where nobody asks.

        Raises:
            ServiceError: `unauthenticated`: a key is owed, and this is none, or a wrong one; or what is missing in
                its scopes or its tenant's room.
        """
        if self._opened_at:
            return False
        self._opened_at = True
        key = _key_in(message, self.message_format)
        if self.needs_auth_message:
            if key is None:
                raise self.auth_timeout()
            self._authorization = f"Bearer {key}"
            self._check()
            self._check_tenant_room()
            self._register_tenant()
        return key is not None

    def recheck(self, now: float) -> None:
        """Check, once in a while, that its key is still in force.

        Args:
            now: The loop's clock.

        Raises:
            ServiceError: `unauthenticated` or `forbidden`.
        """
        if now >= self._check_at:
            self._check_at = now + _RECHECK_INTERVAL_S
            self._check()

    def auth_timeout(self) -> ServiceError:
        """Return what is told to one that owes its key too long."""
        within = self._context.settings.receive_timeout_s
        return ServiceError(
            "unauthenticated",
            'The socket has neither an Authorization header nor {"auth": KEY} as its first message, '
            f"within {within:g} s.",
            fix="Send one of them.",
        )

    def _check(self) -> None:
        self.caller = self._context.authenticate(self._authorization, self._scope)

    def _check_tenant_room(self) -> None:
        most = self._context.settings.tenant_max_websockets
        there = self._context.websockets_of[self.caller.tenant] if most is not None else 0
        if most is not None and there >= most:
            raise ServiceError(
                "rate_limited",
                f"The tenant has {there} open WebSockets in this worker; at most {most} are taken.",
                fix="Send several streams over one feed, or close others first.",
            )

    def _register_tenant(self) -> None:
        self._counted_for = self.caller.tenant
        self._context.websockets_of[self._counted_for] += 1


def _key_in(message: bytes, form: Format) -> str | None:
    """Return the key of `{"auth": KEY}`, or None where the message is another."""
    if b"auth" not in message[:64]:
        return None
    try:
        document: Any = parse(message, form)
    except ServiceError:
        return None
    key = document.get("auth") if isinstance(document, dict) and len(document) == 1 else None
    return key if isinstance(key, str) else None
