"""How long a promotion can be rolled back."""

from __future__ import annotations

from typing import Final

ROLLBACK_S: Final = 3600.0
"""Seconds after a promotion in which `abort` still restores the old version, if the release has `rollback`."""
