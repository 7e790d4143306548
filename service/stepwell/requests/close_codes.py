"""Close codes of WebSockets (RFC 6455, section 7.4, and the IANA registry)."""

from __future__ import annotations

from typing import Final

UNREADABLE: Final = 1007
POLICY: Final = 1008
TOO_BIG: Final = 1009
FAILED: Final = 1011
DRAINING: Final = 1012
TOO_SLOW: Final = 1013
