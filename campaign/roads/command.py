"""`python -m campaign roads`: the roads and their runs, from flags."""

from __future__ import annotations

import asyncio
import json
import secrets
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import Progress

from campaign.roads.broken import run_broken
from campaign.roads.brokers.kafka_road import kafka_road
from campaign.roads.brokers.mqtt_road import mqtt_road
from campaign.roads.brokers.nats_road import nats_road
from campaign.roads.brokers.rabbitmq_road import rabbitmq_road
from campaign.roads.brokers.redis_road import redis_road
from campaign.roads.groups import run_group
from campaign.roads.history import run_backfill
from campaign.roads.in_order import run_order, run_ticks
from campaign.roads.kill_run import OnProgress, RoadPlan, RoadResult, run_kills
from campaign.roads.restore import run_restore
from campaign.roads.road import OpenRoad
from tests.addons.connect.brokers import BrokerMissingError

ROADS: Final[dict[str, OpenRoad]] = {
    "kafka": kafka_road,
    "redis": redis_road,
    "nats": nats_road,
    "rabbitmq": rabbitmq_road,
    "mqtt": mqtt_road,
}
Run = Callable[[Path, OpenRoad, RoadPlan, OnProgress], Awaitable[RoadResult]]
RUNS: Final[dict[str, Run]] = {
    "kills": run_kills,
    "group": run_group,
    "broken": run_broken,
    "restore": run_restore,
    "backfill": run_backfill,
    "order": run_order,
    "every": run_ticks,
}

_console = Console(stderr=True)
_NOT_HERE: Final = 3


def roads(
    *,
    road: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(ROADS)}; repeatable. Default: all of them.")
    ] = None,
    streams: Annotated[int, typer.Option(min=1, help="Number of streams.")] = 200,
    steps: Annotated[int, typer.Option(min=1, help="Messages of each stream.")] = 2000,
    kill_every_s: Annotated[float, typer.Option(min=0.1, help="Seconds between two kills of the connector.")] = 3.0,
    replica_every_s: Annotated[float, typer.Option(min=0.1, help="Seconds between two kills of a replica.")] = 5.0,
    seed: Annotated[
        int | None, typer.Option(help="Seed of all random choices; random by default, and printed.")
    ] = None,
    group: Annotated[
        bool, typer.Option("--group", help="Instead run two connectors of one group, with rebalances.")
    ] = False,
    rebalance_every_s: Annotated[float, typer.Option(min=1, help="Seconds between two rebalances.")] = 10.0,
    broken: Annotated[
        bool, typer.Option("--broken", help="Instead publish 5 % broken messages, and end the service for 30 s.")
    ] = False,
    restore: Annotated[
        bool, typer.Option("--restore", help="Instead measure the time from a kill to the first right prediction.")
    ] = False,
    backfill: Annotated[
        bool, typer.Option("--backfill", help="Instead backfill recorded data, with a kill, and go on live.")
    ] = False,
    order: Annotated[
        bool,
        typer.Option("--order", help="Instead publish shuffled, late and repeated messages, and order them by time."),
    ] = False,
    every: Annotated[
        bool,
        typer.Option("--every", help="Instead do the same by the ticks of a clock, compared with pandas' resample."),
    ] = False,
    kills: Annotated[
        int, typer.Option(min=0, help="With --order and --every: kills of the connector, and of a replica.")
    ] = 6,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, help="With --order and --every: publish no more messages than are applied in this time."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON lines.")] = False,
) -> None:
    """Kill connectors and replicas while messages go from a broker through the model to another place.

    Exits with 0 if every prediction is there as docs/connecting.md promises it, with 1 if not, and with 3 if a broker
    or pandas is not installed.
    """
    for name in road or ():
        if name not in ROADS:
            raise typer.BadParameter(f"{name!r}; expected one of {', '.join(ROADS)}", param_hint="--road")
    if every and find_spec("pandas") is None:
        _console.print("--every needs pandas, which is not installed: STEPWELL_EXTRAS=pandas ./stepwell --version")
        raise typer.Exit(_NOT_HERE)
    seed = secrets.randbelow(10**6) if seed is None else seed
    _console.print(f"seed {seed}")
    plan = RoadPlan(streams, steps, seed, kill_every_s, replica_every_s, rebalance_every_s, kills=kills)
    if minutes is not None:
        plan = replace(plan, publish_s=60 * minutes)
    what = _chosen(group=group, broken=broken, restore=restore, backfill=backfill, order=order, every=every)
    results = [_run(RUNS[what], what, name, plan, as_json=as_json) for name in road or ROADS]
    if any(one is not None and one.problems for one in results):
        raise typer.Exit(1)
    if None in results:
        raise typer.Exit(_NOT_HERE)


def _chosen(**given: bool) -> str:
    """Return the run that flags name.

    Raises:
        typer.BadParameter: There are several.
    """
    names = [name for name, is_given in given.items() if is_given]
    if len(names) > 1:
        flags = [f"--{name}" for name in names]
        raise typer.BadParameter(f"{' and '.join(flags)} exclude each other.", param_hint=flags[-1])
    return names[0] if names else "kills"


def _run(run: Run, what: str, name: str, plan: RoadPlan, *, as_json: bool) -> RoadResult | None:
    """Run one road, and print its result; return None if its broker is not installed."""
    with tempfile.TemporaryDirectory(prefix="sw") as path, Progress(console=_console, transient=True) as bar:
        task = bar.add_task(f"{name}: starting", total=None)

        def on_progress(done: int, of: int) -> None:
            bar.update(task, completed=done, total=of, description=f"{name}: {done:,} of {of:,}")

        try:
            result = asyncio.run(_awaited(run(Path(path), ROADS[name], plan, on_progress)))
        except BrokerMissingError as exc:
            _console.print(f"{name}: {exc}", markup=False)
            return None
    document = {"campaign": f"roads, {what}", "seed": plan.seed, **result.document()}
    _print(document, as_json=as_json)
    return result


async def _awaited(work: Awaitable[RoadResult]) -> RoadResult:
    return await work


def _print(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(document))
        return
    problems: Sequence[str] = document.pop("problems")
    typer.echo(", ".join(f"{name} {value}" for name, value in document.items()))
    typer.echo(f"{len(problems)} problems" if problems else "no problems")
    for problem in problems:
        typer.echo(f"  {problem}")
