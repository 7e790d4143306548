"""Log lines: one line per event on standard error, as text for people or JSON for machines.

Texts from clients (stream ids, paths) are escaped, so that they cannot forge a line; keys and inputs are left out.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Iterator
from pathlib import PurePath
from traceback import walk_tb
from typing import Any, Literal, TextIO

log = logging.getLogger(__package__)

LogFormat = Literal["text", "json"]

_UVICORN = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")
_VERBOSE = ("httpx2", "httpcore2")  # they log each request; in the demo these are its own
_MAX_FRAMES = 6  # logged frames of each exception, the innermost first
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message"}

# A bearer token, a WebSocket's first message, the password in a URL; each with its replacement.
_SECRETS = (
    (re.compile(r"(?i)\b(bearer\s+)[^\s'\",;]+"), r"\1***"),
    (re.compile(r"(?i)(['\"]auth['\"]\s*:\s*['\"])[^'\"]*"), r"\1***"),
    (re.compile(r"(\w://[^\s/:@]*:)[^\s/]*@"), r"\1***@"),
)
# "could not convert string to float: '...'": the texts of these exceptions contain the values that caused them.
_QUOTE_VALUES = (ValueError, TypeError, LookupError)


def configure(log_format: LogFormat) -> None:
    """Send the lines of every logger, including uvicorn's and warnings, to standard error; safe to call again."""
    for name in _UVICORN:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in _VERBOSE:
        logging.getLogger(name).setLevel(logging.WARNING)
    root = logging.getLogger()
    for before in [handler for handler in root.handlers if isinstance(handler, _StandardError)]:
        root.removeHandler(before)
    handler = _StandardError()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    handler.addFilter(_is_an_event)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)


def writes_json() -> bool:
    """Return whether log lines are JSON in this process."""
    handlers = logging.getLogger().handlers
    return any(isinstance(each, _StandardError) and isinstance(each.formatter, JsonFormatter) for each in handlers)


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z WARNING service.supervisor: Worker 71 ended code=9`; fields come from `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        parts = [f"{_time(record)} {record.levelname} {_logger(record)}: {_message(record)}"]
        parts += [f"{name}={_quoted(value)}" for name, value in _fields(record).items()]
        return _escaped(_redacted(" ".join(parts)))


class JsonFormatter(logging.Formatter):
    """One JSON object per line: `time`, `level`, `logger`, `process`, `message`, the fields, and `error`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": _logger(record),
            "process": record.process,
            "message": _redacted(_message(record)),
        }
        for name, value in _fields(record).items():
            fields[name] = value if isinstance(value, bool | int | float) else _redacted(str(value))
        return json.dumps(fields)  # escapes what is not ASCII, and control characters


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stderr`."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # an attribute there
        return sys.stderr


def _is_an_event(record: logging.LogRecord) -> bool:
    """Drop uvicorn's line for each WebSocket, which it logs even if its access log is off."""
    return record.levelno > logging.INFO or '"WebSocket ' not in str(record.msg)


def _time(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _logger(record: logging.LogRecord) -> str:
    return "uvicorn" if record.name in _UVICORN else record.name  # its main logger is called uvicorn.error


def _message(record: logging.LogRecord) -> str:
    return record.getMessage().strip()


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    if record.exc_info and record.exc_info[1] is not None:
        fields["error"] = " <- ".join(_descriptions(record.exc_info[1]))
    return fields


def _descriptions(exc: BaseException) -> Iterator[str]:
    """Yield a description of an exception, then of its causes: type, frames, and text if it has no client's inputs."""
    text = "" if isinstance(exc, _QUOTE_VALUES) else str(exc)
    frames = [
        f"{'/'.join(PurePath(frame.f_code.co_filename).parts[-2:])}:{line} {frame.f_code.co_name}"
        for frame, line in walk_tb(exc.__traceback__)
    ]
    yield f"{type(exc).__name__}{': ' if text else ''}{text} ({', '.join(frames[: -_MAX_FRAMES - 1 : -1])})"
    if isinstance(exc, BaseExceptionGroup):
        for part in exc.exceptions:
            yield from _descriptions(part)
    before = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
    if before is not None:
        yield from _descriptions(before)


def _redacted(text: str) -> str:
    for secret, replacement in _SECRETS:
        text = secret.sub(replacement, text)
    return text


def _quoted(value: Any) -> str:
    text = str(value)
    return text if text and not set(text) & set(' ="') else json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    """Escape the characters that could end the line, hide text, or control a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
