"""`python -m benchmarks`: runs interleaved rounds of every target, checks every answer, and prints a table."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import redis
import typer
from rich.console import Console

from benchmarks import load, recorded, report, workload
from benchmarks.load import Load, Result
from benchmarks.peers import Peers, install
from benchmarks.profile import shares
from benchmarks.releases import release_targets
from benchmarks.servers import (
    STEP,
    Target,
    client_targets,
    compared_targets,
    full_grpc_targets,
    grpc_targets,
    http_targets,
    proxy_targets,
    stepwell,
    stepwell_outside,
    websocket_targets,
    worker_targets,
)
from benchmarks.startup import measure as startups
from benchmarks.startup import rows as rows_of
from benchmarks.tracing import receiver, tracing_targets

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
_console = Console(stderr=True)

Folder = Annotated[Path, typer.Option(help="Folder of the model, the peers and the load generator.")]
Rounds = Annotated[int, typer.Option(min=1, help="Measurements per target; the targets take turns.")]
Seconds = Annotated[float, typer.Option(help="Duration of each measurement.")]
Save = Annotated[Path | None, typer.Option(metavar="FILE.json", help="Also write the result there.")]
Only = Annotated[str, typer.Option(help="Skip targets without this text in their name, except the first.")]

_KEPT = Path(".benchmarks")


@app.callback()
def main() -> None:
    """Measure the cost of a durable step, compared with other servers."""


@app.command()
def http(
    *,
    connections: Annotated[int, typer.Option(help="Keep-alive connections, each with its own stream.")] = 256,
    rounds: Rounds = 3,
    seconds: Seconds = 5.0,
    peers: Annotated[str, typer.Option(help="Peers to install and compare, separated by commas.")] = "mosec,triton",
    only: Only = "",
    keep: Folder = _KEPT,
    save: Save = None,
) -> None:
    """One timestep per request: FastAPI's empty endpoint, the peers, and Stepwell."""
    work = workload.make(keep.resolve(), steps=20_000)
    peers_found = install(keep.resolve(), {p for p in peers.split(",") if p})
    targets = _chosen(http_targets(work, peers_found, connections=connections), only)
    lines = _measure(targets, work, rounds=rounds, seconds=seconds)
    report.show(f"HTTP, {connections} connections, every answer checked", lines)
    if save:
        report.save(save, "http", lines, {"connections": connections, "rounds": rounds, "seconds": seconds})


@app.command()
def websocket(
    *, rounds: Rounds = 3, seconds: Seconds = 5.0, only: Only = "", keep: Folder = _KEPT, save: Save = None
) -> None:
    """Many streams over WebSocket, in JSON and in msgpack bulk messages."""
    work = workload.make(keep.resolve(), steps=60_000)
    lines = _measure(_chosen(websocket_targets(work), only), work, rounds=rounds, seconds=seconds)
    report.show("WebSocket, every answer checked", lines)
    _console.print(f"onnxruntime alone, in process, batches of 256: {work.in_process:,.0f} steps per CPU second")
    for line in lines[1:]:
        _console.print(f"  {line.name}: {line.rate / work.in_process:.3f} of it")
    if save:
        report.save(save, "websocket", lines, {"rounds": rounds, "seconds": seconds, "in_process": work.in_process})


@app.command()
def workers(
    *, rounds: Rounds = 3, seconds: Seconds = 5.0, only: Only = "", keep: Folder = _KEPT, save: Save = None
) -> None:
    """Two workers on one store: each stream always on the same worker, or on a random one."""
    work = workload.make(keep.resolve(), steps=20_000)
    lines = _measure(_chosen(worker_targets(work), only), work, rounds=rounds, seconds=seconds)
    report.show("HTTP, 256 connections, 1,024 streams, every answer checked", lines)
    if save:
        report.save(save, "workers", lines, {"rounds": rounds, "seconds": seconds})


@app.command()
def clients(*, rounds: Rounds = 3, seconds: Seconds = 5.0, keep: Folder = _KEPT, save: Save = None) -> None:
    """The Python client and the Open Inference Protocol, each beside the load generator at the same rate."""
    work = workload.make(keep.resolve(), steps=60_000)
    lines = _measure(client_targets(work), work, rounds=rounds, seconds=seconds)
    report.show("64 streams, every answer checked; the generator at the same rate", lines)
    for client, generator in zip(lines[::2], lines[1::2], strict=True):
        _console.print(f"  {client.name}: {generator.cpu_us / client.cpu_us:.2f} of load.c's steps per CPU second")
    if save:
        report.save(save, "clients", lines, {"rounds": rounds, "seconds": seconds})


@app.command()
def grpc(
    *,
    rounds: Rounds = 5,
    seconds: Seconds = 3.0,
    full: Annotated[bool, typer.Option("--full", help="Each at its full rate, by clients that take less CPU.")] = False,
    streams: Annotated[int, typer.Option(help="With --full: sequences, each with one request in flight.")] = 64,
    only: Only = "",
    keep: Folder = _KEPT,
    save: Save = None,
) -> None:
    """The Open Inference Protocol over gRPC, beside HTTP at the same rate."""
    work = workload.make(keep.resolve(), steps=60_000)
    targets = _chosen(full_grpc_targets(work, streams=streams), only) if full else grpc_targets(work)
    lines = _measure(targets, work, rounds=rounds, seconds=seconds)
    title = "each at its full rate" if full else "HTTP at the same rate"
    report.show(f"{streams if full else 64} streams, every answer checked; {title}", lines)
    pairs = [(line, lines[0]) for line in lines[1:]] if full else list(zip(lines[::2], lines[1::2], strict=True))
    for grpc_line, http_line in pairs:
        _console.print(f"  {grpc_line.name}: {grpc_line.cpu_us / http_line.cpu_us:.2f} times the CPU of HTTP")
    if save:
        report.save(save, "grpc-full" if full else "grpc", lines, {"rounds": rounds, "seconds": seconds})


@app.command()
def proxy(
    *, rounds: Rounds = 3, seconds: Seconds = 5.0, only: Only = "", keep: Folder = _KEPT, save: Save = None
) -> None:
    """Behind nginx, with the same headers in each request and with different ones; nginx's CPU is not counted."""
    work = workload.make(keep.resolve(), steps=20_000)
    lines = _measure(_chosen(proxy_targets(work), only), work, rounds=rounds, seconds=seconds)
    report.show("HTTP through nginx, 256 connections, 10,000 streams, every answer checked", lines)
    if save:
        report.save(save, "proxy", lines, {"rounds": rounds, "seconds": seconds})


@app.command()
def streams(
    *,
    counts: Annotated[str, typer.Option(help="Numbers of streams, separated by commas.")] = "1000,10000,100000,1000000",
    rounds: Rounds = 1,
    seconds: Seconds = 5.0,
    keep: Folder = _KEPT,
    save: Save = None,
) -> None:
    """From a thousand to a million streams, stepped in turn, and the store's memory per stream."""
    work = workload.make(keep.resolve(), steps=20_000)
    start = stepwell_outside(work)
    targets = [
        Target(f"{n:,} streams", start, Load(STEP, '"y":[', streams=n)) for n in sorted(map(int, counts.split(",")))
    ]
    lines = _measure(targets, work, rounds=rounds, seconds=seconds)
    report.show("HTTP, 256 connections, outside Redis, every answer checked", lines)
    if save:
        report.save(save, "streams", lines, {"rounds": rounds, "seconds": seconds})


@app.command()
def latency(
    *,
    rates: Annotated[str, typer.Option(help="Requests per second, comma-separated.")] = "1000,2500,5000,15000,25000",
    connections: Annotated[int, typer.Option(help="Keep-alive connections.")] = 256,
    rounds: Rounds = 3,
    seconds: Seconds = 5.0,
    keep: Folder = _KEPT,
    save: Save = None,
) -> None:
    """Latency of requests at fixed rates, measured from the time when each request was due.

    Unless a line has it placed by the kernel, the service has a processor for itself: the load generator is not part
    of the measurement, and on the same processor its work would count as latency of the service.
    """
    work = workload.make(keep.resolve(), steps=20_000)
    empty, echo, *others = http_targets(work, Peers(), connections=connections)
    ours = next(target for target in others if target.name.startswith("Stepwell, embedded"))
    targets = [
        replace(target, name=f"{rate:,}/s: {target.name}", load=replace(target.load, rate=float(rate)), apart=True)
        for rate in map(int, rates.split(","))
        for target in (empty, echo, ours)
    ]
    full = f"full load, placed by the kernel: {ours.name}"
    half = replace(ours, part_of=(full, 0.5))
    targets += [
        replace(ours, name=full),
        replace(half, name=f"half of that: {ours.name}", apart=True),
        replace(half, name=f"half of that, placed by the kernel: {ours.name}"),
        replace(echo, name=f"half of that: {echo.name}", part_of=half.part_of, apart=True),
    ]
    lines = _measure(targets, work, rounds=rounds, seconds=seconds)
    report.show(f"HTTP at fixed rates, {connections} connections; latency from the moment a request was due", lines)
    if save:
        report.save(save, "latency", lines, {"rounds": rounds, "seconds": seconds})


@app.command()
def tracing(*, rounds: Rounds = 9, seconds: Seconds = 3.0, only: Only = "", keep: Folder = _KEPT) -> None:
    """What traces cost per step, with none and with 1 % of the requests sampled."""
    work = workload.make(keep.resolve(), steps=20_000)
    with receiver() as url:
        lines = _measure(_chosen(tracing_targets(work, url), only), work, rounds=rounds, seconds=seconds)
    report.show("HTTP, 256 connections, every answer checked", lines)


@app.command()
def drift(*, rounds: Rounds = 9, seconds: Seconds = 3.0, keep: Folder = _KEPT) -> None:
    """What drift costs per step, on a model with a reference."""
    from benchmarks.drift import drift_targets  # with the graphs of the tests, which need onnx

    work = workload.make(keep.resolve(), steps=20_000)
    lines = _measure(drift_targets(work), work, rounds=rounds, seconds=seconds)
    report.show("HTTP, 256 connections, every answer checked", lines)


@app.command()
def releases(*, rounds: Rounds = 5, seconds: Seconds = 3.0, only: Only = "", keep: Folder = _KEPT) -> None:
    """What a release costs per step: outside its trial, and for streams that are pairs."""
    work = workload.make(keep.resolve(), steps=20_000)
    lines = _measure(_chosen(release_targets(work), only), work, rounds=rounds, seconds=seconds)
    report.show("HTTP, 256 connections, every answer checked", lines)


@app.command()
def backfill(
    *,
    streams: Annotated[int, typer.Option(help="Streams in the data.")] = 1000,
    steps: Annotated[int, typer.Option(help="Timesteps of each stream.")] = 1000,
    rounds: Rounds = 3,
    keep: Folder = _KEPT,
    save: Save = None,
) -> None:
    """History into streams: `stepwell backfill`, beside onnxruntime in this process on chunks of 100."""
    work = workload.make(keep.resolve(), steps=100)
    with _console.status(f"{rounds} rounds"):
        lines = recorded.measure(work, n_streams=streams, n_steps=steps, rounds=rounds)
    recorded.show(lines, f"{streams * steps:,} timesteps of {streams:,} streams, medians of {rounds} rounds")
    if save:
        report.save(save, "backfill", [], {"rounds": rounds, "backfill": recorded.rows_of(lines)})


@app.command()
def before(
    folder: Annotated[Path, typer.Argument(help="A checkout: git worktree add --detach FOLDER COMMIT.")],
    *,
    rounds: Rounds = 5,
    seconds: Seconds = 3.0,
    only: Only = "",
    keep: Folder = _KEPT,
    save: Save = None,
) -> None:
    """Every kind of request to the service of another checkout and to this one, in turn."""
    work = workload.make(keep.resolve(), steps=60_000)
    lines: list[report.Line] = []
    for pair in compared_targets(work, folder):
        if only.lower() in pair[0].name.lower():
            lines += _measure(pair, work, rounds=rounds, seconds=seconds)
    report.show("Each kind of request to the other checkout and to this one, every answer checked", lines)
    if save:
        report.save(save, "before", lines, {"rounds": rounds, "seconds": seconds})


@app.command()
def profile(
    *,
    seconds: Annotated[float, typer.Option(help="Duration of the sampling.")] = 15.0,
    keep: Folder = _KEPT,
    save: Save = None,
) -> None:
    """Where a worker's CPU time goes with one timestep per request on 256 connections, sampled by py-spy."""
    work = workload.make(keep.resolve(), steps=20_000)
    program, requests = load.build(work.folder), Load(STEP, '"y":[')
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, stepwell(work)(Path(folder)) as running:

        def run_load() -> Result:
            return load.run(
                program, work, requests, port=running.port, seconds=seconds + 1, warmup=1.5, cpu=running.cpu
            )

        parts = shares(running.pid, seconds, run_load)
    for name, share in parts.items():
        _console.print(f"{share:6.1%}  {name}")
    if save:
        report.save(save, "profile", [], {"seconds": seconds, "rounds": 1, "shares": parts})


@app.command()
def startup(
    *,
    tree: Annotated[
        list[Path] | None, typer.Option(help="A checkout to start; repeat it to compare. By itself: this one.")
    ] = None,
    rounds: Rounds = 10,
    keep: Folder = _KEPT,
    save: Save = None,
) -> None:
    """CPU from the launch of `stepwell serve` until it is ready: at the first start with a model, and later."""
    work = workload.make(keep.resolve(), steps=100)
    with _console.status(f"{rounds} rounds of two starts"):
        starts = startups(tree or [Path()], work.models, rounds=rounds)
    report.show_starts(starts)
    if save:
        report.save(save, "startup", [], {"rounds": rounds, "starts": rows_of(starts)})


@app.command()
def page() -> None:
    """Write the results in docs/benchmarks into docs/performance.md, with plots."""
    from benchmarks.page import write

    write()


def _chosen(targets: Sequence[Target], only: str) -> list[Target]:
    return [target for i, target in enumerate(targets) if i == 0 or only.lower() in target.name.lower()]


def _measure(targets: Sequence[Target], work: workload.Workload, *, rounds: int, seconds: float) -> list[report.Line]:
    """Measure every target once per round, so that a disturbance of the machine affects all of them."""
    program = load.build(work.folder)
    all_rounds: list[dict[str, Result]] = []
    for number in range(rounds):
        results: dict[str, Result] = {}
        for target in targets:
            with _console.status(f"round {number + 1} of {rounds}: {target.name}"):
                requests = target.load
                if target.part_of is not None:
                    name, part = target.part_of
                    requests = replace(requests, rate=part * results[name].rate)
                results[target.name] = _one(program, replace(target, load=requests), work, seconds)
        all_rounds.append(results)
    return report.lines(all_rounds, measure=targets[0].name)


def _one(program: Path, target: Target, work: workload.Workload, seconds: float) -> Result:
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        with target.start(folder) as running:
            before = _used_memory(running.store)
            started = running.processes().isolate_service if target.apart else None
            result = load.run(
                program, work, target.load, port=running.port, seconds=seconds, warmup=1.5, cpu=running.cpu,
                started=started,
            )  # fmt: skip
            grown = _used_memory(running.store) - before
            return replace(result, store_bytes=grown / target.load.streams)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _used_memory(store: Path | None) -> int:
    if store is None:
        return 0
    with redis.Redis(unix_socket_path=str(store)) as client:
        return int(client.info("memory")["used_memory"])


if __name__ == "__main__":
    app()
