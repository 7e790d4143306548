"""`stepwell connect`: timesteps from a broker or a file into a running service, predictions out of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from prometheus_client import start_http_server
from rich.console import Console
from rich.status import Status

from service.commands.flags import named_values
from service.commands.live.http_api import DEFAULT_URL, Json, Key
from service.connect.brokers.protocol import ReaderOptions
from service.connect.config import ConnectConfig, config_of, read_config
from service.connect.messages import ConnectStartError, ConnectUsageError
from service.connect.session import ConnectSession

_REPORT_EVERY_S = 5.0
_LIVE_EVERY_S = 0.5


def connect(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE.toml|URL",
            help="A configuration, or the URL to read from: kafka, redis, mqtt, nats, amqp, file.",
        ),
    ],
    *,
    model: Annotated[str | None, typer.Option(help="The model.")] = None,
    stream: Annotated[
        str | None,
        typer.Option(metavar="key|header:NAME|topic|PATH", help="Where a message has the id of its stream."),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=PATH,..", help="The fields of an input, in order. Repeatable."),
    ] = None,
    position: Annotated[
        str | None, typer.Option(metavar="PATH", help="A field that grows, instead of the broker's own position.")
    ] = None,
    seq: Annotated[str | None, typer.Option(metavar="PATH", help="The field that counts a stream's timesteps.")] = None,
    body_format: Annotated[
        str | None,
        typer.Option("--format", metavar="json|msgpack|csv|raw", help="The format of messages. Default: json."),
    ] = None,
    to: Annotated[str | None, typer.Option(metavar="URL", help="Where predictions are written.")] = None,
    dead_letter: Annotated[
        str | None, typer.Option(metavar="URL", help="Where messages are written that cannot be used.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Show what would be sent for the first ten messages, and change nothing.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="End at what was there at the start.")] = False,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Serve /metrics for Prometheus on this port; 0: a free one.")
    ] = None,
    metrics_host: Annotated[str, typer.Option(help="The address to serve /metrics on.")] = "127.0.0.1",
    url: Annotated[
        str | None, typer.Option(envvar="STEPWELL_URL", help=f"The service's address. Default: {DEFAULT_URL}.")
    ] = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Carry timesteps from a broker or a file to a running service, and its predictions to another place.

    Every timestep is applied once, as far as the broker has positions; docs/connecting.md has the table.
    """
    flags: dict[str, Any] = {
        "--model": model,
        "--stream": stream,
        "--position": position,
        "--seq": seq,
        "--format": body_format,
    }
    flags |= {"--to": to, "--dead-letter": dead_letter, "--input": inputs}
    if "://" in source:
        config = _config_of_flags(source, flags)
    else:
        given = [flag for flag, value in flags.items() if value]
        if given:
            raise typer.BadParameter(f"{source} is a file, which has this itself.", param_hint=" ".join(given))
        config = read_config(Path(source))
    address = url or config.service.url or DEFAULT_URL
    options = ReaderOptions(once=once, preview=check)
    session = ConnectSession(
        config, url=address, key=key or _key_of(config), options=options, report=_report_to(sys.stderr)
    )
    if check:
        rows = _run(_check(session))
        _print_rows(rows, as_json=as_json)
        return
    if metrics_port is not None:
        _serve_metrics(session, metrics_host, metrics_port)
    _run(_carry(session, as_json=as_json))


def _serve_metrics(session: ConnectSession, host: str, port: int) -> None:
    try:
        server, _ = start_http_server(port, host, session.counters.registry)
    except OSError as exc:
        raise ConnectStartError(
            f"/metrics cannot be served on {host}:{port}: {exc.strerror}.",
            fix="Give another --metrics-port; 0 is a free one.",
        ) from exc
    typer.echo(f"metrics: http://{host}:{server.server_port}/metrics", err=True)


async def _check(session: ConnectSession) -> list[dict[str, Any]]:
    async with session:
        return await session.preview()


async def _carry(session: ConnectSession, *, as_json: bool) -> None:
    """Run the connector until SIGTERM or Ctrl-C, with its counts shown meanwhile and at the end."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for one in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(one, stopped.set)
    async with session:
        starting = asyncio.create_task(session.connector())
        if not await _until(starting, stopped):
            return
        connector = starting.result()
        running = asyncio.create_task(connector.run())
        shown = asyncio.create_task(_show(session, as_json=as_json))
        try:
            if not await _until(running, stopped, cancel=False):
                connector.stop()
            await running
        finally:
            shown.cancel()
            await asyncio.gather(shown, return_exceptions=True)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            _print_counts(session.counters.report() | {"ended": True}, as_json=as_json)


async def _until(task: asyncio.Task[Any], stopped: asyncio.Event, *, cancel: bool = True) -> bool:
    """Wait until a task ends (True) or the process is to end (False); raises what the task raised."""
    waiting = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
            return True
        if cancel:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return False
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def _show(session: ConnectSession, *, as_json: bool) -> None:
    console = Console(stderr=True)
    live = console.is_terminal and not as_json
    with console.status("") if live else contextlib.nullcontext() as status:
        while True:
            await asyncio.sleep(_LIVE_EVERY_S if live else _REPORT_EVERY_S)
            counts = session.counters.report()
            if isinstance(status, Status):
                status.update(_sentence(counts))
            else:
                _print_counts(counts, as_json=as_json)


def _print_counts(counts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(counts))
    else:
        typer.echo(_sentence(counts), err=True)


def _sentence(counts: dict[str, Any]) -> str:
    lag = "" if counts["lag"] is None else f"; {counts['lag']} not read yet"
    return (
        f"{counts['messages']} messages ({counts['messages_per_s']:g}/s), {counts['timesteps']} timesteps applied, "
        f"{counts['predictions']} predictions written, {counts['dead_letters']} dead letters{lag}"
    )


def _print_rows(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    for row in rows:
        if as_json:
            typer.echo(json.dumps(row))
        elif "reason" in row:
            typer.echo(
                f"dead letter ({row['code']}): {row['reason']}; source {row['source']['id']} {row['source']['at']}"
            )
        else:
            place = "no position" if row["source"]["at"] is None else f"{row['source']['id']} {row['source']['at']}"
            typer.echo(f"{row['stream']}: {json.dumps(row['inputs'])} ({place})")
    if not rows and not as_json:
        typer.echo("No message is there.")


def _config_of_flags(source: str, flags: dict[str, Any]) -> ConnectConfig:
    """Return the configuration that flags describe.

    Raises:
        typer.BadParameter: A flag is missing.
        ConnectUsageError: A value is wrong.
    """
    for name in ("--model", "--stream"):
        if flags[name] is None:
            raise typer.BadParameter(f"a URL needs {name}.", param_hint=name)
    section = {"url": source, "stream": flags["--stream"], "format": flags["--format"]}
    section |= {"position": flags["--position"], "seq": flags["--seq"]}
    document: dict[str, Any] = {
        "from": {name: value for name, value in section.items() if value is not None},
        "service": {"model": flags["--model"]},
        "inputs": {name: paths.split(",") for name, paths in named_values("--input", flags["--input"] or ()).items()},
    }
    if flags["--to"] is not None:
        document["to"] = {"url": flags["--to"]}
    if flags["--dead-letter"] is not None:
        document["dead_letter"] = {"url": flags["--dead-letter"]}
    return config_of(document, "The command line")


def _key_of(config: ConnectConfig) -> str | None:
    name = config.service.key_env
    if name is None:
        return None
    if name not in os.environ:
        raise ConnectUsageError(f"The environment has no {name}, which service.key_env names.")
    return os.environ[name]


def _report_to(out: Any) -> Callable[[str], None]:
    return lambda sentence: print(f"stepwell connect: {sentence}", file=out, flush=True)


def _run(work: Any) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
