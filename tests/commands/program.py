"""Runs commands in the process of the tests."""

from __future__ import annotations

from collections.abc import Sequence

import typer
from typer.testing import CliRunner, Result

from stepwell.commands.adopt import adopt
from stepwell.commands.export import export
from stepwell.commands.inspect import inspect
from stepwell_client import ClientError
from stepwell_export.runtime.errors import StepwellError

app = typer.Typer()
for command in (adopt, export, inspect):
    app.command()(command)


def run_stepwell(*words: object) -> Result:
    """Run `stepwell WORDS`, where the command is `adopt`, `export` or `inspect`."""
    return invoke(app, [str(word) for word in words])


def invoke(app: typer.Typer, words: Sequence[str], *, typed: str = "", **env: str | None) -> Result:
    """Run one command line; a `StepwellError` or `ClientError` is in the result's `exception` and sets exit code 1.

    Args:
        app: The program.
        words: Its arguments.
        typed: Standard input.
        env: Environment variables to set, or to unset where the value is None.
    """
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200", "TERM": "dumb", **env}, input=typed)
    if result.exception is not None and not isinstance(result.exception, SystemExit | StepwellError | ClientError):
        raise result.exception
    return result
