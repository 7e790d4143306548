"""`stepwell test`: run all tests of a clone with pytest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import typer

from stepwell_export.runtime.errors import StepwellError

_NEEDED = ("pytest", "pytest_asyncio", "pytest_timeout", "hypothesis", "xdist")
_PARALLEL = ("-n", "6", "--dist", "loadfile", "--no-loadscope-reorder")  # tests mostly wait, for servers and timeouts
_EXPECTED = (
    "stepwell: the tests take about six minutes on two idle cores, and longer beside other work. "
    "The percentage is the share of tests that have run. A part of them, in a few minutes: stepwell test --quick"
)
_OWN_HELP = """
These are the options of pytest, to which `stepwell test` passes its arguments. Without any, all tests run in six
processes, in about six minutes, but for those that take more than ten seconds each, and with one in four cases of
tests that have many; with --all every one, with --quick a part of them, in a few minutes."""
_EXIT_CODES = {0: 0, 4: 2}  # pytest's exit codes: 0 passed, 4 wrong usage; any other is a failure


class NoTestsError(StepwellError):
    """The tests or their dependencies are not installed."""

    code = "cannot_start"


def test(context: typer.Context) -> None:
    """Run the tests in six processes, a part with `--quick`, the slowest, too, with `--all`; arguments go to pytest."""
    root = _clone()
    # The tests are imported from the clone, whatever the working directory.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))}
    command = [sys.executable, "-m", "pytest", "--rootdir", str(root), "-c", str(root / "pyproject.toml")]
    if all(argument.startswith("-") for argument in context.args) and "--pdb" not in context.args:
        command += _PARALLEL  # no test is selected: all tests run
        if not context.args:
            typer.echo(_EXPECTED, err=True)
    command += context.args
    if not any(_is_path(argument) for argument in context.args):
        command.append(str(root / "tests"))
    pytest = subprocess.Popen(command, env=env)  # noqa: S603 - our own command with the caller's own arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches pytest, which prints a summary
    code = pytest.wait()
    if {"-h", "--help"} & set(context.args):
        typer.echo(_OWN_HELP)  # after pytest's, which is long
    raise typer.Exit(_EXIT_CODES.get(code, 1))


def _clone() -> Path:
    """Return the folder of the clone.

    Raises:
        NoTestsError: The installed package has no tests, or the test extra is missing.
    """
    root = Path(os.environ.get("STEPWELL_ROOT") or Path(__file__).parents[3]).resolve()
    if not (root / "tests").is_dir() or not (root / "pyproject.toml").is_file():
        raise NoTestsError(
            f"There are no tests in {root}; expected a clone with a tests folder.",
            fix="Clone the repository and run ./stepwell test there.",
        )
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise NoTestsError(
            f"The tests need {', '.join(missing)}, which this Python does not have.",
            fix="Run ./stepwell test, which installs it; or: pip install -e '.[test]'.",
        )
    return root


def _is_path(argument: str) -> bool:
    return not argument.startswith("-") and Path(argument.partition("::")[0]).exists()
