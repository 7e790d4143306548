"""Each event is one line on standard error, and no line contains a key, an input or a foreign line break."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator

import httpx2
import pytest
import uvicorn

from stepwell import logs
from stepwell.logs import LogFormat

FORMATS: list[LogFormat] = ["text", "json"]
SECRET = "canary-7f3a"

Lines = Callable[[], list[str]]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    def read() -> list[str]:
        return capsys.readouterr().err.splitlines()

    return read


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    """Return the error with a traceback, as it is logged."""
    try:
        raise error from cause
    except type(error) as exc:
        return exc


def test_text_lines_have_time_level_logger_and_message(lines: Lines) -> None:
    logs.configure("text")
    logging.getLogger("service.x").warning("Worker %s ended", 7, extra={"model": "pump", "why": "a b"})

    assert re.fullmatch(
        r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING service\.x: Worker 7 ended model=pump why="a b"', lines()[0]
    )


def test_json_lines_have_the_same_fields(lines: Lines) -> None:
    logs.configure("json")
    logging.getLogger("service.x").warning("Worker %s ended", 7, extra={"model": "pump", "steps": 3})
    found = json.loads(lines()[0])

    assert found.pop("time").endswith("Z")
    assert found.pop("process") > 0
    assert found == {
        "level": "warning",
        "logger": "service.x",
        "message": "Worker 7 ended",
        "model": "pump",
        "steps": 3,
    }


def test_after_a_second_configuration_a_record_is_written_once_to_standard_error_and_none_for_debugging(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("text")
    logs.configure("json")
    logs.log.info("once")
    logs.log.debug("detail")
    found = capsys.readouterr()

    assert ([json.loads(line)["message"] for line in found.err.splitlines()], found.out) == (["once"], "")


# -------------------------------------------------------------------- one line

BREAKS = {
    "carriage return and line feed": "a\r\nINFO forged",
    "line separator": "a\u2028INFO forged",
    "next line": "a\x85INFO forged",
    "terminal code": "a\x1b[2J",
    "right-to-left override": "a\u202eb",
    "lone surrogate": "a\ud800",
    "nul": "a\x00b",
}


@pytest.mark.parametrize("log_format", FORMATS)
def test_input_from_a_client_cannot_forge_a_line(log_format: LogFormat, lines: Lines) -> None:
    logs.configure(log_format)
    for what, stream in BREAKS.items():
        logs.log.warning("Refused %s", stream, extra={"stream": stream})
        assert [line.isprintable() for line in lines()] == [True], what


def test_non_latin_letters_stay_readable_in_text(lines: Lines) -> None:
    logs.configure("text")
    logs.log.info("Größe 温度")

    assert lines()[0].endswith("Größe 温度")


@pytest.mark.parametrize("log_format", FORMATS)
def test_an_exception_is_one_line_with_its_location_and_cause(log_format: LogFormat, lines: Lines) -> None:
    logs.configure(log_format)
    logs.log.error("Failed", exc_info=raised(RuntimeError("over\nthere"), OSError("disk full")))
    found = lines()

    assert len(found) == 1
    assert re.search(r"RuntimeError: over\\n+there \(tests/test_logs\.py:\d+ raised\) <- OSError: disk full", found[0])


def test_an_exception_group_lists_its_exceptions(lines: Lines) -> None:
    logs.configure("text")
    logs.log.error("Failed", exc_info=ExceptionGroup("two", [OSError("disk full"), RuntimeError("no luck")]))
    found = lines()[0]

    assert "OSError: disk full" in found
    assert "RuntimeError: no luck" in found


def test_a_warning_is_one_line(lines: Lines) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.configure("json")
        warnings.warn("odd\nvalues", UserWarning, stacklevel=1)

    assert [json.loads(line)["logger"] for line in lines()] == ["py.warnings"]


# -------------------------------------------------------------------- no secrets

SECRETS: dict[str, Callable[[], None]] = {
    "a bearer token": lambda: logs.log.info("Headers %s", {"authorization": f"Bearer {SECRET}"}),
    "a bearer token as bytes": lambda: logs.log.info("Headers %s", [(b"authorization", f"bearer {SECRET}".encode())]),
    "a WebSocket's first message": lambda: logs.log.info('Message {"auth": "%s"}', SECRET),
    "the password of a store": lambda: logs.log.info("Store redis://user:%s@host:6379/0", SECRET),
    "a password in a field": lambda: logs.log.info("Store", extra={"url": f"rediss://:{SECRET}@host"}),
    "a password in an exception": lambda: logs.log.error(
        "Lost", exc_info=raised(OSError(f"redis://u:{SECRET}@host: refused"))
    ),
    "an input that an exception quotes": lambda: logs.log.error(
        "Failed", exc_info=raised(RuntimeError("step"), ValueError(f"could not convert {SECRET}"))
    ),
    "a name that an exception quotes": lambda: logs.log.error("Failed", exc_info=raised(KeyError(SECRET))),
}


@pytest.mark.parametrize("log_format", FORMATS)
def test_a_line_never_holds_a_secret(log_format: LogFormat, lines: Lines) -> None:
    logs.configure(log_format)
    for what, write in SECRETS.items():
        write()
        assert [SECRET in line for line in lines()] == [False], what


def test_text_beside_a_secret_is_kept(lines: Lines) -> None:
    logs.configure("text")
    logs.log.info("Store redis://user:%s@host:6379/0 does not answer", SECRET)

    assert lines()[0].endswith("Store redis://user:***@host:6379/0 does not answer")


# -------------------------------------------------------------------- uvicorn


async def _broken(scope: dict[str, str], _receive: object, _send: object) -> None:
    if scope["type"] == "http":
        raise RuntimeError("broken")


async def test_uvicorns_records_have_our_format(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        logging, "_handlerList", []
    )  # otherwise it closes all handlers, and absl's handler closes pytest's streams
    uvicorn.Config(_broken)  # installs its own handlers, as uvicorn's command line does
    logs.configure("json")
    server = uvicorn.Server(uvicorn.Config(_broken, port=0, lifespan="off", log_config=None, access_log=False))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn publishes no event for it
        await asyncio.sleep(0)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:
        await client.get(f"http://127.0.0.1:{port}/")
    server.should_exit = True
    await serving
    found = [json.loads(line) for line in lines()]

    assert [(line["logger"], line["error"].split(" (")[0]) for line in found if "error" in line] == [
        ("uvicorn", "RuntimeError: broken")
    ]


def test_uvicorns_line_for_each_websocket_is_omitted(lines: Lines) -> None:
    logs.configure("text")
    logging.getLogger("uvicorn.error").info('%s - "WebSocket %s" [accepted]', "127.0.0.1", "/v1/watch")

    assert lines() == []
