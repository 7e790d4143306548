"""`stepwell fleet`: streams of a running service that have had fewer timesteps than the foremost one."""

from __future__ import annotations

from typing import Annotated

import typer

from stepwell import extend


def fleet(
    model: extend.Model,
    *,
    behind: Annotated[int, typer.Option(min=1, help="Only streams that stand at least so many steps behind.")] = 1,
    url: extend.Url = extend.DEFAULT_URL,
    key: extend.Key = None,
) -> None:
    """List streams that stand behind the others. Exit code 1: there are some."""
    with extend.HttpApi(url, key) as service:
        steps = {stream["stream"]: stream["step"] for stream in service.streams(model, prefix="")}
    first = max(steps.values(), default=0)
    late = {name: step for name, step in sorted(steps.items()) if first - step >= behind}
    for name, step in late.items():
        typer.echo(f"{name} is at step {step:,}, {first - step:,} behind")
    raise typer.Exit(1 if late else 0)
