"""A program that is forked from a process which has imported Stepwell is as one of a new interpreter."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.graphs import fold, write_models
from tests.processes import ServiceProcess
from tests.programs import start
from tests.programs.start import (
    CannotForkError,
    ForkedProgram,
    Program,
    WarmProcess,
    is_forking,
    real_starts,
    start_program,
)


@pytest.fixture(autouse=True)
def _forking() -> None:
    if not is_forking():
        pytest.skip("needs Linux, and a run without --cov: programs are not forked elsewhere")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[ServiceProcess]:
    one = ServiceProcess(write_models(tmp_path / "models", fold), tmp_path, "--drain-s", "0").start()
    yield one
    one.stop()


@pytest.fixture
def first_starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start no process to fork from before the test: those of other tests may have all the environments already."""
    started: list[WarmProcess] = []
    monkeypatch.setattr(start._Starts, "warm", started)
    yield
    for one in started:
        one.close()


def ended(folder: Path, *words: str, env: dict[str, str] | None = None) -> tuple[Program, str]:
    """Run a command to its end; returns the process, and what it has printed."""
    with (folder / "out").open("wb") as out:
        one = start_program(words, env={**os.environ, **(env or {})}, out=out)
    one.wait(60)
    return one, (folder / "out").read_text()


@pytest.mark.parametrize("words", [["--version"], ["serve", "--no-such-flag"]])
def test_output_and_exit_code_are_those_of_a_new_interpreter(words: list[str], tmp_path: Path) -> None:
    forked, printed = ended(tmp_path, *words)
    with real_starts():
        real, expected = ended(tmp_path, *words)

    assert isinstance(forked, ForkedProgram)
    assert isinstance(real, subprocess.Popen)
    assert (printed, forked.returncode) == (expected, real.returncode)


def test_the_settings_are_those_that_it_is_given(tmp_path: Path) -> None:
    one, printed = ended(tmp_path, "serve", "--redis", "unix:///nowhere", env={"STEPWELL_PORT": "many"})

    assert isinstance(one, ForkedProgram)
    assert one.returncode == 2
    assert "many" in printed


def test_it_runs_in_the_folder_of_its_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert str(tmp_path) in ended(tmp_path, "serve", "--models", "nowhere", "--redis", "unix:///nowhere")[1]


@pytest.mark.parametrize("env", [{"PYTHONUTF8": "1"}, {"OMP_NUM_THREADS": "7"}, {"STEPWELL_WORKERS": "2"}])
def test_a_new_interpreter_runs_where_a_library_reads_other_variables(env: dict[str, str], tmp_path: Path) -> None:
    assert isinstance(ended(tmp_path, "--version", env=env)[0], subprocess.Popen)


def test_a_command_of_another_environment_is_never_forked(tmp_path: Path) -> None:
    one = ServiceProcess(tmp_path, tmp_path, launch=[sys.executable, "-c", "print('other')"])
    one.launch()

    assert (one.process.wait(60), one.log.read_text()) == (0, "other\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_the_code_of_a_killed_program_is_the_signal(running: ServiceProcess, number: signal.Signals) -> None:
    running.process.send_signal(number)

    assert running.process.wait(60) == -number
    assert running.process.poll() == -number


def test_it_stops_at_a_signal_as_an_operator_sends_it(running: ServiceProcess) -> None:
    assert running.stop() == 0
    assert "Draining" in running.log.read_text()


def test_waiting_for_a_program_that_runs_times_out(running: ServiceProcess) -> None:
    assert running.process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        running.process.wait(0.01)


def test_a_signal_to_a_program_that_has_just_ended_is_no_error() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(60)
    reading, writing = os.pipe()  # nothing was reported yet
    try:
        ForkedProgram(gone.pid, reading).kill()
    finally:
        os.close(writing)


def test_a_program_is_waited_for_where_a_thousand_files_are_open(tmp_path: Path) -> None:
    with contextlib.ExitStack() as files:
        try:
            for _ in range(1100):
                files.enter_context(Path(os.devnull).open("rb"))
        except OSError:
            pytest.skip("needs a limit of more than 1,100 open files: ulimit -n 4096")
        one, _ = ended(tmp_path, "--version")

    assert (type(one), one.returncode) == (ForkedProgram, 0)


def test_each_program_has_memory_and_files_of_its_own(running: ServiceProcess, tmp_path: Path) -> None:
    other = ServiceProcess(tmp_path / "models", tmp_path / "other", "--drain-s", "0").start()
    path = "/v1/models/fold/streams/s/step"
    try:
        urls = [running.url + path, other.url + path]
        steps = [httpx2.post(url, json={"inputs": [3]}, timeout=60).json()["step"] for url in urls]
        open_files = []
        for file in Path(f"/proc/{other.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                open_files.append(file.readlink())
    finally:
        other.stop()

    assert steps == [1, 1]
    assert running.log not in open_files


def test_nothing_is_forked_from_a_process_that_has_ended(tmp_path: Path) -> None:
    with (
        contextlib.closing(WarmProcess("stepwell", ["no_such_module"])) as ended_at_once,
        (tmp_path / "out").open("w+b") as file,
    ):
        for _ in range(2):
            with pytest.raises(CannotForkError):
                ended_at_once.fork(["--version"], env={}, streams=(file, file, file))


@pytest.mark.usefixtures("first_starts")
def test_programs_are_forked_also_after_a_library_has_changed_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = ended(tmp_path, "--version")
    monkeypatch.setenv("READ_BY_A_LIBRARY", "1")

    after, _ = ended(tmp_path, "--version")
    back, _ = ended(tmp_path, "--version", env={"READ_BY_A_LIBRARY": "2"})

    assert (type(before), type(after)) == (ForkedProgram, ForkedProgram)
    assert type(back) is subprocess.Popen
