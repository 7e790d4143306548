"""Log lines are one line each, whatever a client put into them."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from service.logs import JsonFormatter, TextFormatter, configure

FORGED = "stream 'a\r\n2026 ERROR forged\x1b[2J\u2028\x7f'"


def record(message: str, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    trouble = (type(error), error, error.__traceback__) if error is not None else None
    made = logging.LogRecord("service.engine", logging.WARNING, __file__, 1, message, args, trouble)
    made.created, made.msecs = 0.0, 7.0
    return made


def raised() -> ValueError:
    try:
        raise ValueError("two\nlines")
    except ValueError as exc:
        return exc


def test_text_says_when_how_bad_and_where() -> None:
    line = TextFormatter().format(record("%d rows wait", 3))

    assert line == "1970-01-01T00:00:00.007Z WARNING service.engine: 3 rows wait"


def test_json_has_the_same_facts() -> None:
    fields = json.loads(JsonFormatter().format(record("%d rows wait", 3)))

    assert fields.pop("process") > 0
    assert fields == {
        "time": "1970-01-01T00:00:00.007Z", "level": "warning", "logger": "service.engine", "message": "3 rows wait",
    }  # fmt: skip


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_what_a_client_sent_cannot_forge_a_line(formatter: logging.Formatter) -> None:
    line = formatter.format(record("%s", FORGED))

    assert len(line.splitlines()) == 1
    assert line.isascii()
    assert line.isprintable()


def test_a_trace_stands_below_its_line_indented() -> None:
    first, *rest = TextFormatter().format(record("failed", error=raised())).splitlines()

    assert first.endswith("failed")
    assert rest[0] == "  Traceback (most recent call last):"
    assert all(line.startswith("  ") for line in rest)


def test_a_trace_is_a_field_of_the_json_line() -> None:
    line = JsonFormatter().format(record("failed", error=raised()))

    assert len(line.splitlines()) == 1
    assert "ValueError: two\nlines" in json.loads(line)["trace"]


def test_every_logger_writes_to_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    monkeypatch.setattr(root, "level", root.level)
    configure("json")
    configure("json")
    logging.getLogger("uvicorn.error").warning("told")

    out, err = capsys.readouterr()
    assert out == ""
    assert [json.loads(line)["message"] for line in err.splitlines()] == ["told"]
    assert root.handlers[0].stream is sys.stderr  # type: ignore[attr-defined]  # a StreamHandler
