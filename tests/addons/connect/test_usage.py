"""What `stepwell connect` refuses, and with which message."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from stepwell.addons.connect.command import connect
from stepwell.addons.connect.config import read_config
from stepwell.addons.connect.urls import BrokerUrl, stream_segment
from stepwell.errors import SettingsError
from stepwell_export.runtime.errors import StepwellError
from tests.addons.connect.connectors import ConnectorProcess, ended
from tests.commands.program import invoke
from tests.processes import ServiceProcess

app = typer.Typer()
app.command()(connect)

GOOD = '[from]\nurl = "file:///x"\nstream = "key"\n[service]\nmodel = "m"\n'


def test_an_unknown_key_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(GOOD.replace("stream =", "streams ="))

    with pytest.raises(SettingsError, match=r"line 3: streams of \[from\]: unknown key"):
        read_config(tmp_path / "c.toml")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ftp://x/y", "--model", "m", "--stream", "key"], "the scheme 'ftp'"),
        (["kafka://h/t?grup=a", "--model", "m", "--stream", "key"], "the option 'grup'"),
        (["redis://h/0", "--model", "m", "--stream", "key"], "incomplete"),
        (["mqtt://h/a/+", "--model", "m", "--stream", "topic"], "no {stream}"),
        (["file:///x", "--model", "m", "--stream", "key", "--format", "xml"], "'xml'"),
        (["file:///x", "--model", "m", "--stream", "key", "--to", "file:///x"], "file:///x is named twice"),
        (
            ["redis://h/0?stream=a", "--model", "m", "--stream", "key", "--dead-letter", "redis://h/0?stream=a"],
            "stream=a is named twice",
        ),
        (
            ["file:///x", "--model", "m", "--stream", "key", "--to", "file:///y", "--dead-letter", "file:///y"],
            "file:///y is named twice",
        ),
    ],
)
def test_a_wrong_word_is_named(words: list[str], said: str) -> None:
    result = invoke(app, words)

    assert isinstance(result.exception, StepwellError)
    assert (result.exception.code, said in result.exception.problem) == ("bad_setting", True)


def test_a_url_without_a_model_is_wrong_usage() -> None:
    result = invoke(app, ["file:///x", "--stream", "key"])

    assert (result.exit_code, "--model" in result.output) == (2, True)


@pytest.mark.parametrize(
    ("source", "flags", "said"),
    [
        ("file:data.csv", ["--model", "m", "--stream", "key"], "The URL of that file is file:///"),
        ("file:data.csv", [], "The URL of that file is file:///"),
        ("data.csv", ["--model", "m", "--stream", "key"], "/data.csv"),
        ("c.toml", ["--model", "m"], "is a configuration, which has what --model would give"),
    ],
)
def test_a_path_instead_of_a_url_is_answered_with_the_url(source: str, flags: list[str], said: str) -> None:
    result = invoke(app, [source, *flags])

    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", "").split())


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["file:///nowhere/x.jsonl", "--model", "fold", "--stream", "key"], 1, "cannot be read"),
        (["file:///x", "--model", "fold", "--stream", "key", "--to", "smtp://x/y"], 2, "the scheme 'smtp'"),
        (["file:///x", "--model", "other", "--stream", "key"], 1, "'other'"),
        (["file:///x", "--model", "fold", "--stream", "key", "--input", "z=a"], 2, "no input 'z'"),
    ],
)
def test_exit_codes_are_those_of_every_command(
    service: ServiceProcess, tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    one = ConnectorProcess(tmp_path, *words, "--url", service.url).start()

    assert one.process.wait(60) == code, one.text()
    assert said in one.text()
    assert "Traceback" not in one.text()


@pytest.mark.parametrize(
    ("url", "topic", "stream"),
    [
        ("mqtt://h/plant/+/pump/{stream}", "plant/7/pump/p1", "p1"),
        ("mqtt://h/{stream}/#", "p1/a/b", "p1"),
        ("nats://h/sensors.{stream}.*", "sensors.p1.x", "p1"),
    ],
)
def test_the_stream_is_a_segment_of_the_topic(url: str, topic: str, stream: str) -> None:
    segment = stream_segment(BrokerUrl.parse(url))

    assert segment is not None
    found = segment.fullmatch(topic)
    assert found is not None
    assert found[1] == stream


def test_a_missing_library_is_named_with_the_extra(tmp_path: Path) -> None:
    program = "import sys; sys.modules['aiokafka'] = None; from stepwell.commands.cli import main; main()"
    words = ["connect", "kafka://127.0.0.1/t", "--model", "m", "--stream", "key"]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=tmp_path)

    assert (done.returncode, "stepwell[connect]" in done.stderr) == (3, True), done.stderr


def test_a_port_that_is_taken_is_said(service: ServiceProcess, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = ["file:///x", "--model", "fold", "--stream", "key", "--url", service.url, "--metrics-port", port]
        text = ended(tmp_path, *words, code=3)

    assert str(port) in text
