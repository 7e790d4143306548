"""Log lines: one line an event, as text or JSON, to standard error."""

from __future__ import annotations

import logging

log = logging.getLogger("service")


def configure(log_format: str) -> None:
    """Set up logging."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
