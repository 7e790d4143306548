"""`stepwell connect`: timesteps from a broker or a file into a running service, predictions out of it."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from stepwell.addons.connect.brokers.interface import ReaderOptions
from stepwell.addons.connect.config import ConnectConfig, config_of_flags, read_config
from stepwell.addons.connect.messages import ConnectError, ConnectUsageError
from stepwell.addons.connect.session import ConnectSession
from stepwell.addons.connect.time_rules import take_of
from stepwell.addons.connect.urls import BrokerUrl
from stepwell.addons.waiting import until
from stepwell.background import cancel
from stepwell.commands.flags import named_values
from stepwell.commands.interrupted import run_on_loop, stop_event
from stepwell.commands.service_calls import DEFAULT_URL, Key, OptionalUrl
from stepwell.commands.tables import Json
from stepwell.commands.until_stopped import (
    MetricsHost,
    MetricsPort,
    counts_shown,
    report_of,
    serve_metrics,
)
from stepwell.garbage_collection import freeze_startup_objects
from stepwell_client.wire.texts import counted

_FROM_FLAGS = (
    *("--position", "--seq", "--time", "--time-unit", "--order", "--idle", "--ahead", "--order-messages", "--every"),
    *("--take", "--fill", "--gap"),
)
_OBJECTS_OF_A_POLL = 200_000  # at most: none of them is garbage before the poll ends, so no collection interrupts it


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
        typer.Option(
            metavar="key|header:NAME|topic|PATH",
            help="Where a message has its stream's id; or a template: 'pump-{PATH}'.",
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=PATH,..", help="The fields of an input, in order. Repeatable."),
    ] = None,
    position: Annotated[
        str | None, typer.Option(metavar="PATH", help="A field that grows, instead of the broker's own position.")
    ] = None,
    seq: Annotated[str | None, typer.Option(metavar="PATH", help="The field that counts a stream's timesteps.")] = None,
    time: Annotated[
        str | None, typer.Option(metavar="PATH", help="The field with the time: ISO 8601, or a number.")
    ] = None,
    time_unit: Annotated[
        str | None, typer.Option(metavar="s|ms|us|ns", help="The unit of times that are numbers. Default: s.")
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(metavar="5s", help="Apply timesteps in the order of their times; how long one waits for others."),
    ] = None,
    idle: Annotated[
        str | None, typer.Option(metavar="10s", help="After so long without a message, all that wait go on.")
    ] = None,
    ahead: Annotated[
        str | None, typer.Option(metavar="1h", help="How far ahead of this machine's clock a time may be.")
    ] = None,
    order_messages: Annotated[
        int | None, typer.Option(min=1, help="Messages that wait at most. Default: 100,000.")
    ] = None,
    every: Annotated[
        str | None, typer.Option(metavar="1s", help="One timestep for each tick of a clock, of the messages in it.")
    ] = None,
    take: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]RULE",
            help="Which value a tick has of several: last, mean, sum, min, max, count. Repeatable, by input.",
        ),
    ] = None,
    fill: Annotated[
        str | None, typer.Option(metavar="hold|nan|zero", help="Which value a tick has if there is none.")
    ] = None,
    gap: Annotated[
        int | None, typer.Option(min=0, help="Ticks in a row that are filled at most; then the stream pauses.")
    ] = None,
    body_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="json|msgpack|csv|raw",
            help="The format of messages. Default: json; of a file .csv: csv. Formats with a schema (avro, protobuf, "
            "json-schema) are set in FILE.toml.",
        ),
    ] = None,
    to: Annotated[str | None, typer.Option(metavar="URL", help="Where predictions are written.")] = None,
    dead_letter: Annotated[
        str | None, typer.Option(metavar="URL", help="Where messages are written that cannot be used.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Show what would be sent for the first ten messages, and change nothing.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="End at what was there at the start.")] = False,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = "127.0.0.1",
    url: OptionalUrl = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Carry timesteps from a broker or a file to a running service, and its predictions to another place.

    Every timestep is applied once, as far as the broker has positions; see the page "Connecting brokers
    and files" of the documentation.
    """
    flags: dict[str, Any] = {
        "--model": model,
        "--stream": stream,
        "--position": position,
        "--seq": seq,
        "--format": body_format,
    }
    flags |= {"--time": time, "--time-unit": time_unit, "--order": order, "--idle": idle, "--ahead": ahead}
    flags |= {"--order-messages": order_messages, "--every": every, "--fill": fill, "--gap": gap}
    flags |= {"--take": take_of(take) if take else None}
    flags |= {"--to": to, "--dead-letter": dead_letter, "--input": inputs}
    if "://" in source:
        config = _config_of_flags(source, flags)
    else:
        _check_configuration(source, [flag for flag, value in flags.items() if value is not None and value != []])
        config = read_config(Path(source))
    address = url or config.service.url or DEFAULT_URL
    options = ReaderOptions(once=once, preview=check)
    session = ConnectSession(
        config, url=address, key=key or _key_of(config), options=options, report=report_of("connect")
    )
    if check:
        rows, error = run_on_loop(_check(session))
        _print_rows(rows, as_json=as_json)
        if session.window is not None:
            report_of("connect")(session.window)
        if error is not None:
            raise error
        if rows and all("reason" in row for row in rows):
            raise ConnectError(
                f"None of the {counted(len(rows), 'message')} can be used.", fix="Correct the mapping, or the messages."
            )
        return
    serve_metrics(session.counters.registry, metrics_host, metrics_port)
    run_on_loop(_carry(session, as_json=as_json))
    if once:
        counts = session.counters.report()
        _check_dead_letters(counts, config)
        _check_applied(counts, config)


async def _check(session: ConnectSession) -> tuple[list[dict[str, Any]], ConnectError | None]:
    async with session:
        return await session.preview()


async def _carry(session: ConnectSession, *, as_json: bool) -> None:
    """Run the connector until SIGTERM or Ctrl-C, with its counts shown meanwhile and at the end."""
    stopped = stop_event()
    async with session:
        starting = asyncio.create_task(session.connector())
        if not await until(starting, stopped):
            return
        connector = starting.result()
        freeze_startup_objects(threshold=_OBJECTS_OF_A_POLL)
        running = asyncio.create_task(connector.run())
        async with counts_shown(session.counters.report, _sentence, as_json=as_json):
            try:
                if not await until(running, stopped, cancel=False):
                    connector.stop()
                await running
            finally:
                await cancel([running])


def _check_dead_letters(counts: dict[str, Any], config: ConnectConfig) -> None:
    """Check that all messages could be used.

    Raises:
        ConnectError: Some are dead letters.
    """
    if not counts["dead_letters"]:
        return
    codes = ", ".join(f"{code}: {n:,}" for code, n in counts["dead_letter_codes"].items())
    kept = config.dead_letter and BrokerUrl.parse(config.dead_letter.url).text
    raise ConnectError(
        f"{counted(counts['dead_letters'], 'dead letter')} of {counted(counts['messages'], 'message')} ({codes}).",
        fix=f"The reasons are in {kept}." if kept else "Give --dead-letter URL to keep them with their reasons.",
    )


def _check_applied(counts: dict[str, Any], config: ConnectConfig) -> None:
    """Check that something came of the messages, if there were any.

    Raises:
        ConnectError: No timestep was applied, and no prediction handed over.
    """
    if counts["timesteps"] or counts["predictions"] or not counts["messages"]:
        return
    late = f", or came behind a newer one of their stream ({counts['late']:,})" if counts["late"] else ""
    raise ConnectError(
        f"Nothing was applied: all {counted(counts['skipped'] + counts['late'], 'timestep')} were applied before, by "
        f"their positions in {BrokerUrl.parse(config.source.url).text}{late}.",
        fix="Check that this is the source that you meant. One that was deleted and created again needs another name.",
    )


def _sentence(counts: dict[str, Any]) -> str:
    lag = "" if counts["lag"] is None else f"; {counts['lag']} not read yet"
    before = f"{counts['skipped']:,} applied before, " if counts["skipped"] else ""
    late = f"{counts['late']:,} late and not applied, " if counts["late"] else ""
    return (
        f"{counted(counts['messages'], 'message')} ({counts['messages_per_s']:g}/s), "
        f"{counted(counts['timesteps'], 'timestep')} applied, {before}{late}"
        f"{counted(counts['predictions'], 'prediction')} written, {counted(counts['dead_letters'], 'dead letter')}{lag}"
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
            when = "".join(f"; {row[name]}" for name in ("time", "applied") if name in row)
            typer.echo(f"{row['stream']}: {json.dumps(row['inputs'])} ({place}{when})")
    if not rows and not as_json:
        typer.echo("No message is there.")


def _check_configuration(source: str, given: list[str]) -> None:
    """Check that what is no URL can be a configuration.

    Raises:
        typer.BadParameter: It is a file of messages, or flags are given that a configuration has itself.
    """
    path = Path(source.removeprefix("file:"))
    if source.startswith("file:") or (path.suffix != ".toml" and given):
        raise typer.BadParameter(
            f"{source!r} is neither a URL nor a configuration FILE.toml. The URL of that file is file://{path.absolute()}",
            param_hint="SOURCE",
        )
    if given:
        raise typer.BadParameter(
            f"{source} is a configuration, which has what {' and '.join(given)} would give: put it there.",
            param_hint=" ".join(given),
        )


def _config_of_flags(source: str, flags: dict[str, Any]) -> ConnectConfig:
    """Return the configuration that flags describe.

    Raises:
        typer.BadParameter: A flag is missing.
        SettingsError: A value is wrong.
    """
    for name in ("--model", "--stream"):
        if flags[name] is None:
            raise typer.BadParameter(f"a URL needs {name}.", param_hint=name)
    section = {"url": source, "stream": flags["--stream"], "format": flags["--format"]}
    section |= {name.removeprefix("--").replace("-", "_"): flags[name] for name in _FROM_FLAGS}
    document: dict[str, Any] = {
        "from": {name: value for name, value in section.items() if value is not None},
        "service": {"model": flags["--model"]},
        "inputs": {name: paths.split(",") for name, paths in named_values("--input", flags["--input"] or ()).items()},
    }
    if flags["--to"] is not None:
        document["to"] = {"url": flags["--to"]}
    if flags["--dead-letter"] is not None:
        document["dead_letter"] = {"url": flags["--dead-letter"]}
    return config_of_flags(document)


def _key_of(config: ConnectConfig) -> str | None:
    name = config.service.key_env
    if name is None:
        return None
    if name not in os.environ:
        raise ConnectUsageError(f"The environment has no {name}, which service.key_env names.")
    return os.environ[name]
