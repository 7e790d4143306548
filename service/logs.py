"""Log lines: one line an event on standard error, as text for people or JSON for machines.

What a client sent (stream ids, paths) is escaped, so that it cannot forge a line; keys and inputs are never logged.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Literal

log = logging.getLogger("service")

LogFormat = Literal["text", "json"]

_KEPT = range(0x20, 0x7F)


def configure(log_format: LogFormat) -> None:
    """Send every logger's lines, uvicorn's among them, to standard error; safe to call again."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its start and end are told in our own words


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z WARNING service.engine: words`; a traceback follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = f"{_time(record)} {record.levelname} {record.name}: {_escaped(record.getMessage())}"
        if trace := _trace(self, record):
            line += "\n" + "\n".join(f"  {_escaped(part)}" for part in trace.splitlines())
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, and `trace` after an unexpected error."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if trace := _trace(self, record):
            fields["trace"] = trace
        return json.dumps(fields)  # escapes what is not ASCII, and control characters


def _time(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else ""


def _escaped(text: str) -> str:
    """Return the text with everything escaped that could end the line or steer a terminal."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if ord(c) in _KEPT else c.encode("unicode_escape").decode() for c in text)
