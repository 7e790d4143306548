"""`Visitor`: who is at the other end of a WebSocket, and whether it may come in and stay. Does no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from service.api.auth import ANYONE, Caller, Scope
from service.api.context import Context
from service.errors import ServiceError
from service.wire import JSON, MSGPACK, Format
from service.wire.document import parse

_SUBPROTOCOLS: Final = {"stepwell.json": JSON, "stepwell.msgpack": MSGPACK}
_CHECK_KEY_EVERY_S: Final = 1.0


class Visitor:
    """Who is at the other end of a WebSocket.

    Attributes:
        subprotocol: The first of the offered ones that is known, or None.
        form: What messages are written in.
        caller: Whose streams they are about.
    """

    def __init__(self, context: Context, scope: Scope, authorization: str | None, offered: Iterable[str]) -> None:
        """Meet a visitor.

        Args:
            context: Knows the keys.
            scope: What the socket is for.
            authorization: The header, if there was one.
            offered: The subprotocols that the client speaks.
        """
        self.subprotocol = next((name for name in offered if name in _SUBPROTOCOLS), None)
        self.form: Format = _SUBPROTOCOLS.get(self.subprotocol or "", JSON)
        self.caller: Caller = ANYONE
        self._context = context
        self._scope = scope
        self._authorization = authorization
        self._begun = False
        self._check_at = 0.0
        self._counted_for: str | None = None  # the tenant

    @property
    def owes_key(self) -> bool:
        """Whether its first message has to be `{"auth": KEY}`: keys are asked for, and the handshake had none."""
        return self._context.keys.asked and self._authorization is None

    def demand_entry(self, origin: str | None, host: str | None) -> None:
        """Check all that a handshake tells.

        Raises:
            ServiceError: `forbidden`, `unauthenticated`, or too many sockets are open: `overloaded`, or where they
                are the tenant's `rate_limited`.
        """
        context = self._context
        context.demand_own_origin(origin, host)
        most = context.settings.max_websockets
        if context.websockets >= most:
            raise ServiceError(
                "overloaded", f"{context.websockets} WebSockets are open; at most {most} are.", fix="Try again later."
            )
        if not self.owes_key:
            self._check()
            self._demand_tenants_room()

    def enter(self) -> None:
        """Count an accepted socket, until `leave`."""
        self._context.websockets += 1
        if not self.owes_key:
            self._enter_tenant()

    def leave(self) -> None:
        """Count it no longer."""
        self._context.websockets -= 1
        if self._counted_for is not None:
            counts, tenant = self._context.websockets_of, self._counted_for
            counts[tenant] -= 1
            if not counts[tenant]:
                del counts[tenant]  # else each tenant that ever came would stay
            self._counted_for = None

    def introduces_itself(self, message: bytes) -> bool:
        """Tell whether a message is no more than a key. Browsers send one first, also where nobody asks.

        Raises:
            ServiceError: `unauthenticated`: a key is owed, and this is none, or a wrong one; or what is missing in
                its scopes or its tenant's room.
        """
        if self._begun:
            return False
        self._begun = True
        key = _key_in(message, self.form)
        if self.owes_key:
            if key is None:
                raise self.came_without_key()
            self._authorization = f"Bearer {key}"
            self._check()
            self._demand_tenants_room()
            self._enter_tenant()
        return key is not None

    def check(self, now: float) -> None:
        """Check, once in a while, that its key is still in force.

        Args:
            now: The loop's clock.

        Raises:
            ServiceError: `unauthenticated` or `forbidden`.
        """
        if now >= self._check_at:
            self._check_at = now + _CHECK_KEY_EVERY_S
            self._check()

    def came_without_key(self) -> ServiceError:
        """Return what is told to one that owes its key too long."""
        within = self._context.settings.receive_timeout_s
        return ServiceError(
            "unauthenticated",
            'The socket has neither an Authorization header nor {"auth": KEY} as its first message, '
            f"within {within:g} s.",
            fix="Send one of them.",
        )

    def _check(self) -> None:
        self.caller = self._context.recognised(self._authorization, self._scope)

    def _demand_tenants_room(self) -> None:
        most = self._context.settings.tenant_max_websockets
        there = self._context.websockets_of[self.caller.tenant] if most is not None else 0
        if most is not None and there >= most:
            raise ServiceError(
                "rate_limited",
                f"The tenant has {there} open WebSockets in this worker; at most {most} are taken.",
                fix="Send several streams over one feed, or close others first.",
            )

    def _enter_tenant(self) -> None:
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
