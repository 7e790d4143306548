"""`stepwell bench`: load on a running service, and what came of it."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from service.bench.drivers import BenchError, FeedDriver, HttpDriver, LoadDriver
from service.bench.latency import LatencyRecorder
from service.bench.run import Load, run
from service.bench.workload import BenchStream, Workload
from service.commands.tables import key_value_table, show

_TIMEOUT_S = 30.0


class Transport(StrEnum):
    """How timesteps travel."""

    HTTP = "http"
    WEBSOCKET = "websocket"
    COLUMNS = "columns"


def bench(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="The model; may be left out where there is only one.")
    ] = None,
    *,
    url: Annotated[str, typer.Option(envvar="STEPWELL_URL", help="Where the service is.")] = "http://127.0.0.1:8000",
    key: Annotated[
        str | None, typer.Option(envvar="STEPWELL_KEY", help="API key; safer in the environment than here.")
    ] = None,
    transport: Annotated[
        Transport,
        typer.Option(help="A POST per timestep, a WebSocket message per timestep, or msgpack columns of many streams."),
    ] = Transport.HTTP,
    streams: Annotated[int, typer.Option(min=1, help="Streams that are stepped; forgotten at the end.")] = 256,
    connections: Annotated[int | None, typer.Option(min=1, help="64, or 4 for columns.", show_default=False)] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure.")] = 10.0,
    warmup: Annotated[float, typer.Option(min=0.0, help="Seconds before that.")] = 1.0,
    rate: Annotated[
        float, typer.Option(min=0.0, help="Requests per second, whatever the service does; 0: as many as it answers.")
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Step many streams of a running service, with `seq` on every step, and measure how fast it answers.

    The load comes from this one process, which takes a core of its own: give it one, or it is what is measured.
    """
    count = min(connections or (4 if transport is Transport.COLUMNS else 64), streams)
    one = secrets.token_hex(3)
    stepped = [BenchStream(f"bench-{one}-{i}") for i in range(streams)]
    at_once = 1 if transport is Transport.HTTP else -(-streams // count)
    load = Load(count, at_once, seconds, warmup, rate)
    meter = LatencyRecorder()
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_S, trust_env=False) as http:
        plan = Workload.of(_model(http, url, model))
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_measure(load, stepped, _door(transport, url, plan, key), meter))
        except KeyboardInterrupt:
            meter.stop()  # what was measured until now is told
        finally:
            _forget(http, plan.model, stepped)
    result = {"url": url, "model": plan.model, "transport": transport.value, "streams": streams, "connections": count}
    result |= meter.result()
    typer.echo(json.dumps(result, indent=2)) if as_json else show(_table(result))
    if not meter.steps:
        raise BenchError(
            f"No timestep was answered; what came: {dict(meter.errors) or 'nothing'}.", fix="Ask `/readyz`."
        )


async def _measure(
    load: Load, streams: list[BenchStream], open_door: Callable[[], Awaitable[LoadDriver]], meter: LatencyRecorder
) -> None:
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("warming up", total=load.seconds)

        def progress(measured: float) -> None:
            rate = meter.steps / measured if measured else 0.0
            bars.update(task, completed=measured, description=f"{rate:,.0f} steps/s")

        await run(load, streams, open_door, meter, progress)


def _door(transport: Transport, url: str, plan: Workload, key: str | None) -> Callable[[], Awaitable[LoadDriver]]:
    if transport is Transport.HTTP:
        return lambda: HttpDriver.open(url, plan, key)
    return lambda: FeedDriver.open(url, plan, key, columns=transport is Transport.COLUMNS)


def _model(http: httpx.Client, url: str, name: str | None) -> Any:
    """Return what the service says of the model.

    Raises:
        BenchError: The service is not there, or refuses, or it is not clear which model is meant.
    """
    if name is None:
        names = [one["name"] for one in _get(http, url, "/v1/models")["models"]]
        if len(names) != 1:
            raise BenchError(
                f"{url} serves {len(names)} models{': ' if names else ''}{', '.join(names)}; expected one.",
                fix="Name the model: stepwell bench MODEL." if names else "Give the service a model first.",
            )
        [name] = names
    return _get(http, url, f"/v1/models/{quote(name, safe='')}")


def _get(http: httpx.Client, url: str, path: str) -> Any:
    try:
        answer = http.get(path)
        body = answer.json()
    except (httpx.HTTPError, ValueError) as exc:
        raise BenchError(
            f"No Stepwell answers at {url}: {exc}.",
            fix="Start it with `stepwell serve`, or name where it is with --url or STEPWELL_URL.",
        ) from exc
    if not answer.is_success:
        raise BenchError(
            f"{body.get('detail')} ({answer.status_code} {body.get('code')})", fix="See `stepwell streams ls`."
        )
    return body


def _forget(http: httpx.Client, model: str, streams: list[BenchStream]) -> None:
    """Leave the service as it was; a service that is gone by now needs nothing."""
    try:
        for stream in streams:
            if stream.step:
                http.delete(f"/v1/models/{quote(model, safe='')}/streams/{stream.name}")
    except httpx.HTTPError:
        return


def _table(result: dict[str, Any]) -> Any:
    times = ", ".join(f"{name[:-3]} {result[name]:,.2f} ms" for name in ("p50_ms", "p90_ms", "p99_ms", "max_ms")
                      if result[name] is not None)  # fmt: skip
    errors = ", ".join(f"{code} {count:,}" for code, count in sorted(result["errors"].items())) or "none"
    return key_value_table(
        f"{result['model']} at {result['url']}",
        {
            "transport": f"{result['transport']}, {result['connections']} connections, {result['streams']} streams",
            "steps": f"{result['steps']:,} in {result['seconds']:.1f} s",
            "steps/s": f"{result['steps_per_s']:,.0f}",
            "answered within": times or "nothing was answered",
            "errors": errors,
        },
    )
