"""`stepwell bench`: put load on a running service and measure its throughput and latency."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Annotated, Any

import typer
from rich.progress import TimeRemainingColumn

from stepwell.addons.bench.drivers import BenchError, FeedDriver, HttpDriver, LoadDriver
from stepwell.addons.bench.latency import LatencyRecorder
from stepwell.addons.bench.run import LoadPlan, run
from stepwell.addons.bench.workload import BenchStream, Workload
from stepwell.addons.sizing.arithmetic import Sending
from stepwell.commands.interrupted import run_on_loop
from stepwell.commands.service_calls import DEFAULT_URL, HttpApi, Key, StreamsError, Url, model_path, path_of
from stepwell.commands.tables import Json, key_value_table, print_json, progress_bar, show
from stepwell_client.wire.texts import counted


def bench(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="The model; optional if the service has only one.")
    ] = None,
    *,
    url: Url = DEFAULT_URL,
    key: Key = None,
    transport: Annotated[
        Sending,
        typer.Option(
            help="How to send timesteps: a POST each, a WebSocket message each, or msgpack columns of many streams."
        ),
    ] = Sending.HTTP,
    streams: Annotated[int, typer.Option(min=1, help="Number of streams; deleted at the end.")] = 256,
    connections: Annotated[
        int | None,
        typer.Option(min=1, help="Number of connections. Default: 64, or 4 for columns.", show_default=False),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Duration of the measurement.")] = 10.0,
    warmup: Annotated[float, typer.Option(min=0.0, help="Seconds of load before the measurement.")] = 1.0,
    rate: Annotated[
        float,
        typer.Option(
            min=0.0, help="Requests per second, independent of responses; 0: the next one after each response."
        ),
    ] = 0.0,
    as_json: Json = False,
) -> None:
    """Step many streams of a running service, with `seq` on every step, and measure throughput and latency.

    The load comes from a single process, which needs a CPU core of its own: without one, it limits the result.
    """
    count = min(connections or (4 if transport is Sending.COLUMNS else 64), streams)
    run_id = secrets.token_hex(3)
    bench_streams = [BenchStream(f"bench-{run_id}-{i}") for i in range(streams)]
    batch_size = 1 if transport is Sending.HTTP else -(-streams // count)
    load = LoadPlan(count, batch_size, seconds, warmup, rate)
    recorder = LatencyRecorder()
    with HttpApi(url, key) as service:
        workload = Workload.of(_model(service, url, model))
        try:
            run_on_loop(_measure(load, bench_streams, _opener(transport, url, workload, key), recorder))
        except KeyboardInterrupt:
            recorder.stop()  # the results so far are printed
        finally:
            _delete(service, workload.model, bench_streams)
    result = {
        "url": url,
        "model": workload.model,
        "transport": transport.value,
        "streams": streams,
        "connections": count,
    }
    result |= recorder.result()
    print_json(result) if as_json else show(_table(result))
    if not recorder.steps:
        raise BenchError(
            f"No timestep succeeded in {seconds:g} s; errors: {dict(recorder.errors) or 'none'}.",
            fix="Check `GET /readyz` and the service's log.",
        )


async def _measure(
    load: LoadPlan,
    streams: list[BenchStream],
    open_driver: Callable[[], Awaitable[LoadDriver]],
    recorder: LatencyRecorder,
) -> None:
    with progress_bar(TimeRemainingColumn()) as bars:
        task = bars.add_task("warming up", total=load.seconds)

        def progress(measured: float) -> None:
            rate = recorder.steps / measured if measured else 0.0
            bars.update(task, completed=measured, description=f"{rate:,.0f} steps/s")

        await run(load, streams, open_driver, recorder, progress)


def _opener(transport: Sending, url: str, workload: Workload, key: str | None) -> Callable[[], Awaitable[LoadDriver]]:
    if transport is Sending.HTTP:
        return lambda: HttpDriver.open(url, workload, key)
    return lambda: FeedDriver.open(url, workload, key, columns=transport is Sending.COLUMNS)


def _model(service: HttpApi, url: str, name: str | None) -> Any:
    """Return the service's description of the model.

    Raises:
        BenchError: The service has several models, and none is named.
        StreamsError: The service does not respond, or rejects the request.
    """
    if name is None:
        names = [model["name"] for model in service.get("/v1/models")["models"]]
        if len(names) != 1:
            raise BenchError(
                f"{url} serves {counted(len(names), 'model')}{': ' if names else ''}{', '.join(names)}; expected one.",
                fix="Name the model: stepwell bench MODEL." if names else "Add a model to the service first.",
            )
        [name] = names
    return service.get(model_path(name))


def _delete(service: HttpApi, model: str, streams: list[BenchStream]) -> None:
    """Delete the benchmark's streams, unless the service has stopped or does not allow it."""
    with suppress(StreamsError):
        for stream in streams:
            if stream.step:
                service.call("DELETE", path_of(model, stream.name))


def _table(result: dict[str, Any]) -> Any:
    times = ", ".join(f"{name[:-3]} {result[name]:,.2f} ms" for name in ("p50_ms", "p90_ms", "p99_ms", "max_ms")
                      if result[name] is not None)  # fmt: skip
    errors = ", ".join(f"{code} {count:,}" for code, count in sorted(result["errors"].items())) or "none"
    return key_value_table(
        f"{result['model']} at {result['url']}",
        {
            "transport": f"{result['transport']}, {counted(result['connections'], 'connection')}, "
            f"{counted(result['streams'], 'stream')}",
            "steps": f"{result['steps']:,} in {result['seconds']:.1f} s",
            "steps/s": f"{result['steps_per_s']:,.0f}",
            "latency": times or "no successful requests",
            "errors": errors,
        },
    )
