"""The model commands as a program of their own, for tests: errors end it with exit code 1."""

from __future__ import annotations

import typer
from typer.testing import CliRunner, Result

from model_export.errors import StepwellError
from service.commands.adopt import adopt
from service.commands.export import export
from service.commands.inspect import inspect

app = typer.Typer()
for command in (adopt, export, inspect):
    app.command()(command)


def stepwell(*words: object) -> Result:
    """Run one command line; a `StepwellError` is kept in the result's `exception` and means exit code 1."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200", "TERM": "dumb"})
    if result.exception is not None and not isinstance(result.exception, SystemExit | StepwellError):
        raise result.exception
    return result
