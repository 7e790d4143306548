"""Log lines: one line an event on standard error, as text for people or JSON for machines.

What a client sent (stream ids, paths) is escaped, so that it cannot forge a line; keys and inputs are left out.
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

log = logging.getLogger("service")

LogFormat = Literal["text", "json"]

_UVICORN = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")
_CHATTY = ("httpx", "httpcore")  # a line for each request would be the demo's own noise
_PLACES = 6  # frames named for each exception, the innermost first
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message"}

# A bearer token, a WebSocket's first message, the password in a URL; and what stands there instead.
_SECRETS = (
    (re.compile(r"(?i)\b(bearer\s+)[^\s'\",;]+"), r"\1***"),
    (re.compile(r"(?i)(['\"]auth['\"]\s*:\s*['\"])[^'\"]*"), r"\1***"),
    (re.compile(r"(\w://[^\s/:@]*:)[^\s/]*@"), r"\1***@"),
)
# "could not convert string to float: '...'": these quote the values that they were given.
_QUOTING = (ValueError, TypeError, LookupError)


def configure(log_format: LogFormat) -> None:
    """Send every logger's lines, uvicorn's and warnings among them, to standard error; safe to call again."""
    for name in _UVICORN:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in _CHATTY:
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


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z WARNING service.supervisor: Worker 71 ended code=9`; fields come from `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        words = [f"{_time(record)} {record.levelname} {_logger(record)}: {_message(record)}"]
        words += [f"{name}={_word(value)}" for name, value in _fields(record).items()]
        return _escaped(_redacted(" ".join(words)))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `process`, `message`, the fields, and `error`."""

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
    """Writes to what standard error is at that moment."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # an attribute there
        return sys.stderr


def _is_an_event(record: logging.LogRecord) -> bool:
    """Say no to uvicorn's line for each WebSocket, which it writes though its access log is off."""
    return record.levelno > logging.INFO or '"WebSocket ' not in str(record.msg)


def _time(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _logger(record: logging.LogRecord) -> str:
    return "uvicorn" if record.name in _UVICORN else record.name  # it calls the main one uvicorn.error


def _message(record: logging.LogRecord) -> str:
    return record.getMessage().strip()


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    if record.exc_info and record.exc_info[1] is not None:
        fields["error"] = " <- ".join(_told(record.exc_info[1]))
    return fields


def _told(exc: BaseException) -> Iterator[str]:
    """Tell an exception, then what caused it: type, text where it cannot hold a caller's inputs, and place."""
    text = "" if isinstance(exc, _QUOTING) else str(exc)
    places = [
        f"{'/'.join(PurePath(frame.f_code.co_filename).parts[-2:])}:{line} {frame.f_code.co_name}"
        for frame, line in walk_tb(exc.__traceback__)
    ]
    yield f"{type(exc).__name__}{': ' if text else ''}{text} ({', '.join(places[: -_PLACES - 1 : -1])})"
    if isinstance(exc, BaseExceptionGroup):
        for part in exc.exceptions:
            yield from _told(part)
    before = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
    if before is not None:
        yield from _told(before)


def _redacted(text: str) -> str:
    for secret, instead in _SECRETS:
        text = secret.sub(instead, text)
    return text


def _word(value: Any) -> str:
    text = str(value)
    return text if text and not set(text) & set(' ="') else json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    """Return the text with everything escaped that could end the line, hide or steer a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
