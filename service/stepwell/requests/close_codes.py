"""Close codes of WebSockets (RFC 6455, section 7.4, and the IANA registry), and the timeout of a blocked send."""

from __future__ import annotations

from typing import Final

UNREADABLE: Final = 1007
POLICY: Final = 1008
TOO_BIG: Final = 1009
FAILED: Final = 1011
DRAINING: Final = 1012
TOO_SLOW: Final = 1013

SEND_TIMEOUT_S: Final = 10.0
"""Seconds that one send may block before the connection is closed."""
