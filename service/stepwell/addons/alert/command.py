"""`stepwell alert`: alarms from the committed predictions of a running service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from stepwell.addons.alert.preview import preview
from stepwell.addons.alert.rules import read_rules
from stepwell.addons.alert.session import AlertSession
from stepwell.addons.embedded_store.server import EmbeddedStore
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
from stepwell_client.wire.texts import counted

_SHOWN = 10


def alert(
    rules: Annotated[Path, typer.Argument(metavar="RULES.toml", help="The rules, and where alarms are sent.")],
    *,
    check: Annotated[
        bool, typer.Option("--check", help="Show what the rules match and would have raised, and change nothing.")
    ] = False,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = "127.0.0.1",
    url: OptionalUrl = None,
    key: Key = None,
    data_dir: Annotated[
        Path,
        typer.Option(envvar="STEPWELL_DATA_DIR", help="The service's folder, if it uses the embedded store."),
    ] = Path(".stepwell"),
    as_json: Json = False,
) -> None:
    """Raise alarms on conditions of outputs and inputs, on silence and on expiry, and send them to webhooks or brokers.

    Run two with the same rules, and one takes over when the other ends. The page "Alerts" of
    the documentation describes the rules.
    """
    read = read_rules(rules)
    session = AlertSession(
        read,
        url=url or read.url or DEFAULT_URL,
        key=key or read.key,
        store=read.store or EmbeddedStore(data_dir).url,
        report=report_of("alert"),
    )
    if check:
        _print_preview(run_on_loop(_check(session)), as_json=as_json)
        return
    serve_metrics(session.counters.registry, metrics_host, metrics_port)
    run_on_loop(_follow(session, as_json=as_json))


async def _check(session: AlertSession) -> list[dict[str, Any]]:
    async with session:
        return await preview(await session.connect())


async def _follow(session: AlertSession, *, as_json: bool) -> None:
    """Run until SIGTERM or Ctrl-C, with the counts shown meanwhile and at the end."""
    stopped = stop_event()
    async with session, counts_shown(session.counters.report, _sentence, as_json=as_json):
        await session.run(stopped)


def _sentence(counts: dict[str, Any]) -> str:
    if not counts["leads"] and "ended" not in counts:
        return "standing by"
    refused = f"; {counts['refused']:,} refused and set aside" if counts["refused"] else ""
    missed = f"; {counted(counts['missed'], 'timestep')} not in the history any more" if counts["missed"] else ""
    return (
        f"{counted(counts['streams'], 'stream')}, {counted(counts['timesteps'], 'timestep')} evaluated, "
        f"{counted(counts['raised'], 'alarm')} raised, {counts['cleared']} cleared, "
        f"{counts['delivered']} delivered, {counts['undelivered']} being delivered{refused}{missed}"
    )


def _print_preview(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    for row in rows:
        if as_json:
            typer.echo(json.dumps(row))
            continue
        typer.echo(
            f"{row['rule']}: {counted(row['streams'], 'stream')} of {row['model']}; in the "
            f"{counted(row['timesteps'], 'timestep')} of their history {counted(len(row['alarms']), 'alarm')}"
        )
        for alarm in row["alarms"][:_SHOWN]:
            typer.echo(f"  {alarm['state']} ({alarm['kind']}): {alarm['stream']}, step {alarm['step']}")
        if len(row["alarms"]) > _SHOWN:
            typer.echo(f"  and {len(row['alarms']) - _SHOWN} more; --json prints all")
