"""`stepwell demo`: replay recordings through a temporary service and check every prediction."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from stepwell.addons.demo.forecasts import send_motion
from stepwell.addons.demo.recordings import Recordings
from stepwell.addons.demo.replay import replay
from stepwell.addons.demo.report import Report, print_report
from stepwell.addons.embedded_store.server import ended_with_parent
from stepwell.commands.interrupted import ENDING, exit_at, run_interruptible
from stepwell.commands.tables import Json, print_json
from stepwell.process.server import StartError

_HOST = "127.0.0.1"
_PORT = 8000
_READY_WITHIN_S = 60.0


def demo(
    *,
    once: Annotated[bool, typer.Option("--once", help="Replay for --seconds, print the table, and exit.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="Duration of the replay with --once.")] = 20.0,
    speed: Annotated[float, typer.Option(min=0.01, help="Speed relative to the recording.")] = 1.0,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port. Default: 8000 if it is free, else any free port.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of worker processes.")] = 1,
    as_json: Json = False,
) -> None:
    """Replay real smartwatch recordings as live streams through the service, and check every prediction.

    Starts the service with an embedded store in a temporary folder, which is deleted at the end. Runs until Ctrl-C;
    exits with 1 if a prediction differs from the original model's by more than the model's tolerance.
    """
    exit_at(ENDING, 1)
    hosts = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = f"{hosts},{_HOST}" if hosts else _HOST  # a proxy does not reach this machine's services
    console = Console(stderr=True)
    recordings = Recordings.load()
    report = Report(streams=len(recordings), atol=0, rtol=0)

    def progress(current: Report) -> None:
        nonlocal report
        report = current
        live.update(_progress_text(current))

    with contextlib.suppress(KeyboardInterrupt), _service(port or _free_port(), workers) as url:
        console.print(f"Dashboard: [bold]{url}/[/]   API: {url}/docs")
        if not once:
            console.print("Ctrl-C stops the demo.")
        with Live(console=console, transient=True) as live:
            duration = seconds if once else None
            run = partial(replay, url, seconds=duration, speed=speed, on_progress=progress, recordings=recordings)
            report = run_interruptible(
                run if once else lambda: _with_other(run(), send_motion(url, recordings, speed=speed))
            )
    if as_json:
        print_json(_report_json(report))
    else:
        print_report(report)
    if report.beyond or (once and not report.ok):
        raise typer.Exit(1)


async def _with_other(run: Coroutine[Any, Any, Report], other: Coroutine[Any, Any, None]) -> Report:
    """Run the replay and, meanwhile, what sends timesteps to the other model; if that fails, the replay continues."""
    task = asyncio.create_task(other)
    try:
        return await run
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.contextmanager
def _service(port: int, workers: int) -> Iterator[str]:
    """Run `stepwell serve` with the demo's model and its own embedded store, for the duration of the block."""
    url = f"http://{_HOST}:{port}"
    with tempfile.TemporaryDirectory(prefix="stepwell-demo-") as folder:
        log = Path(folder) / "serve.log"
        models = str(files("stepwell.addons.demo") / "models")
        command = [sys.executable, "-P", "-m", "stepwell", "serve", "--models", models]
        command += ["--port", str(port), "--workers", str(workers), "--data-dir", str(Path(folder) / "data")]
        # The caller's settings are dropped: they may name a store with real streams.
        env = {k: v for k, v in os.environ.items() if not k.startswith("STEPWELL_") or k == "STEPWELL_REDIS_SERVER"}
        with log.open("wb") as out:
            process = subprocess.Popen(  # noqa: S603 - our own program
                ended_with_parent(command),
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,  # Ctrl-C stops only the replay; the service is stopped after it
            )
        try:
            if not run_interruptible(lambda: _is_ready(process, url, lambda: url in log.read_text(errors="replace"))):
                raise StartError(
                    f"The service did not become ready. Its log:\n{log.read_text(errors='replace')[-2000:]}",
                    fix="Fix the problem in the log, or use another --port.",
                )
            yield url
        finally:
            process.terminate()
            process.wait()


async def _is_ready(process: subprocess.Popen[bytes], url: str, is_listening: Callable[[], bool]) -> bool:
    """Wait until the service is ready; False if it exited or the wait timed out.

    `is_listening` returns whether the service's log has the address: before that, another program may respond there.
    """
    async with httpx2.AsyncClient(base_url=url, trust_env=False) as http:
        for _ in range(int(_READY_WITHIN_S / 0.05)):
            if process.poll() is not None:
                return False
            with contextlib.suppress(httpx2.TransportError):
                if is_listening() and (await http.get("/readyz")).status_code == httpx2.codes.OK:
                    return True
            await asyncio.sleep(0.05)
    return False


def _free_port() -> int:
    for port in (_PORT, 0):
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((_HOST, port))
            port_number: int = sock.getsockname()[1]
            return port_number
    raise StartError("No free port was found.", fix="Give one with --port.")


def _progress_text(report: Report) -> Text:
    return Text(
        f"{report.seconds:6.0f} s   {report.streams} streams   {report.steps:,} steps   "
        f"{report.steps_per_s:,.0f} steps/s   p50 {report.latency_ms(0.5):.1f} ms   "
        f"max difference {report.max_difference:.1e}"
    )


def _report_json(report: Report) -> dict[str, float | int | bool]:
    return {
        "streams": report.streams,
        "steps": report.steps,
        "seconds": round(report.seconds, 3),
        "steps_per_s": round(report.steps_per_s, 1),
        "p50_ms": round(report.latency_ms(0.5), 3),
        "p99_ms": round(report.latency_ms(0.99), 3),
        "max_difference": report.max_difference,
        "atol": report.atol,
        "rtol": report.rtol,
        "beyond_tolerance": report.beyond,
        "ok": report.ok,
    }
