"""The `stepwell` program: its commands, error messages and exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer

from stepwell.commands.cli import make_app
from tests import graphs

STEPWELL = [sys.executable, "-P", "-m", "stepwell"]
INTERRUPTED_IMPORT = """import signal
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt as exc:
    raise ImportError from exc
"""
COMMANDS = ("demo", "test", "serve", "export", "adopt", "inspect", "check", "keys", "streams")


def run_stepwell(*words: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STEPWELL_")}
    return subprocess.run([*STEPWELL, *words], cwd=cwd, env=clean | env, capture_output=True, text=True, timeout=60)


def test_help_names_every_command() -> None:
    done = run_stepwell("--help")

    assert done.returncode == 0
    assert [name for name in COMMANDS if f"\n  {name} " not in done.stdout] == []


def leaves() -> Iterator[tuple[str, Any]]:
    """Yield each command that does something, with its words."""
    for name in typer.main.get_command(make_app(None)).commands:  # type: ignore[attr-defined]  # it is a group
        waiting = [(name, typer.main.get_command(make_app(name)).commands[name])]  # type: ignore[attr-defined]  # as above
        while waiting:
            words, command = waiting.pop()
            inner = getattr(command, "commands", None)
            if inner is None:
                yield words, command
            else:
                waiting += [(f"{words} {each}", one) for each, one in inner.items()]


def test_a_list_of_commands_has_whole_sentences() -> None:
    for words in ((), ("streams",), ("streams", "snapshot")):
        listed = run_stepwell(*words, "--help").stdout.split("Commands:")[1]
        assert [line for line in listed.splitlines() if line.endswith("...")] == [], words


def test_each_command_has_help_its_repeatable_flags_say_so_and_on_a_running_service_it_prints_json() -> None:
    commands = dict(leaves())
    names = {words: {option for one in command.params for option in one.opts} for words, command in commands.items()}
    flags = {
        f"{words} {option.opts[0]}": option.help
        for words, command in commands.items()
        for option in command.params
        if option.param_type_name == "option" and option.multiple
    }

    assert [words for words, command in commands.items() if not command.help] == []
    assert [flag for flag, text in flags.items() if "Repeatable" not in text] == []
    assert [words for words, found in names.items() if "--url" in found and "--json" not in found] == []


def test_serve_has_a_flag_for_every_setting_and_those_that_are_usually_set_come_first() -> None:
    from stepwell.commands.flags import USUAL
    from stepwell.settings import setting_groups

    done = run_stepwell("serve", "--help", COLUMNS="200")
    words = done.stdout.split("Options:")[1].split()
    flags = [word[2:].replace("-", "_") for word in words if word.startswith("--")]

    assert (done.returncode, done.stderr) == (0, "")
    assert set(flags) >= setting_groups().keys()
    assert [name for name in flags if not name.startswith("no_")][: len(USUAL)] == list(USUAL)
    assert len(USUAL) < 20


def test_the_version_is_that_of_the_package() -> None:
    assert run_stepwell("--version").stdout == f"stepwell {version('stepwell')}\n"


def test_help_imports_no_heavy_modules() -> None:
    look = "import sys; import stepwell.commands.cli as c; c.make_app(None); print(*sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout.split()

    assert {"numpy", "onnxruntime", "fastapi", "uvicorn", "redis", "pydantic", "httpx2"}.isdisjoint(modules)


@pytest.mark.parametrize(
    "words", [("nothing",), ("serve", "--nothing"), ("serve", "--workers", "0"), ("keys", "add", "a b")]
)
def test_wrong_usage_is_exit_code_2(words: tuple[str, ...]) -> None:
    done = run_stepwell(*words)

    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_failure_is_exit_code_1_with_an_instruction(tmp_path: Path) -> None:
    done = run_stepwell("inspect", str(tmp_path / "none.onnx"))

    first, second = done.stderr.splitlines()
    assert done.returncode == 1
    assert first.startswith("stepwell: ")
    assert second.startswith("  ")


def test_a_store_that_is_not_there_is_named_in_one_sentence(tmp_path: Path) -> None:
    words = ("--port", "0", "--redis", "redis://127.0.0.1:1", "--request-timeout-s", "0.1")
    done = run_stepwell("serve", "--models", str(tmp_path), *words, cwd=tmp_path)
    [problem] = [line for line in done.stderr.splitlines() if line.startswith("stepwell: ")]

    assert done.returncode == 3
    assert problem.startswith("stepwell: The store cannot be used: ")
    assert problem.endswith(".")
    assert not problem.endswith("..")


def test_a_keys_file_that_is_not_there_can_be_created_by_the_command_that_is_named(tmp_path: Path) -> None:
    words = ("--port", "0", "--api-keys-file", "no.json")
    done = run_stepwell("serve", "--models", str(tmp_path), *words, cwd=tmp_path)

    assert done.returncode == 3
    assert "The keys file no.json cannot be read: No such file or directory." in done.stderr
    assert "stepwell keys add ID --file FILE" in done.stderr


def test_an_address_that_is_no_url_is_wrong_usage() -> None:
    done = run_stepwell("streams", "ls", "--url", "localhost:8000", COLUMNS="200")

    assert done.returncode == 2
    assert "'localhost:8000' is not the address of a service: expected http://127.0.0.1:8000" in done.stderr


def test_an_unsafe_start_is_exit_code_3(tmp_path: Path) -> None:
    done = run_stepwell("serve", "--host", "0.0.0.0", cwd=tmp_path)

    assert done.returncode == 3
    assert "--api-keys-file" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_exit_code_3_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "pumps.py").write_text("def make():\n    import torch\n")
    words = ["stepwell", "export", "pumps:make", "-o", "pump.onnx"]
    run = f"import sys; sys.modules['torch'] = None; sys.argv = {words}; from stepwell.commands.cli import main; main()"
    done = subprocess.run([sys.executable, "-P", "-c", run], cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 3
    assert "pip install 'stepwell[torch]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_ctrl_c_during_the_imports_is_reported_in_a_line(tmp_path: Path, module: str) -> None:
    """The first second of a command is spent on imports: of the program, then of the command.

    Extension modules, such as those of NumPy and onnxruntime, make an ImportError of a KeyboardInterrupt.
    """
    (tmp_path / f"{module}.py").write_text(INTERRUPTED_IMPORT)
    words = [sys.executable, "-P", "-m", "stepwell", "inspect", "pump.onnx"]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stepwell: interrupted\n")


def test_ctrl_c_while_onnxruntime_is_imported_is_reported_in_a_line(tmp_path: Path) -> None:
    """It is imported when the graph is loaded; the file that the command writes is not there."""
    (tmp_path / "onnxruntime.py").write_text(INTERRUPTED_IMPORT)
    model = graphs.write_model(tmp_path, "pump", graphs.lstm)
    files = {path: path.read_bytes() for path in model.parent.iterdir() if path.is_file()}
    words = [sys.executable, "-P", "-m", "stepwell", "adopt", str(model)]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stepwell: interrupted\n")
    assert {path: path.read_bytes() for path in model.parent.iterdir() if path.is_file()} == files


def test_the_callers_folder_is_importable_but_shadows_nothing(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise SystemExit('shadowed')")

    assert run_stepwell("--version", cwd=tmp_path).returncode == 0
    look = "import sys; sys.argv = ['stepwell', '--version']\ntry:\n import stepwell.commands.cli; stepwell.commands.cli.main()\nexcept SystemExit: print(sys.path[-1])"  # noqa: E501
    last = subprocess.run([sys.executable, "-P", "-c", look], cwd=tmp_path, capture_output=True, text=True).stdout
    assert last.splitlines()[-1] == str(tmp_path)


def test_serving_imports_nothing_that_only_other_commands_need() -> None:
    """What is imported at the start is most of what a start costs."""
    needless = "httpx2 rich pygments onnx keras torch jax"
    code = (
        "import sys; from stepwell.commands.cli import make_app; make_app('serve'); import stepwell.app; "
        "import stepwell.addons.fast_path.fast_http, stepwell.addons.fast_path.fast_feed; "
        f"print([name for name in '{needless}'.split() if name in sys.modules])"
    )

    assert subprocess.check_output([sys.executable, "-P", "-c", code], text=True).strip() == "[]"
