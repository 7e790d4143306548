"""How long a client may read nothing before its connection is closed, on every transport."""

from __future__ import annotations

from typing import Final

SEND_TIMEOUT_S: Final = 10.0
"""Seconds that one send may block before the connection is closed."""
