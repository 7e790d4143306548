"""What commands share that run until SIGTERM or Ctrl-C: counts while they run, and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import typer
from prometheus_client import CollectorRegistry, start_http_server
from rich.console import Console
from rich.status import Status

from stepwell.background import cancel
from stepwell_export.runtime.errors import StepwellError

_REPORT_EVERY_S = 5.0
_LIVE_EVERY_S = 0.5

MetricsPort = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Serve /metrics for Prometheus on this port; 0: a free one.")
]
MetricsHost = Annotated[str, typer.Option(help="The address to serve /metrics on.")]


class MetricsPortError(StepwellError):
    """The port for metrics cannot be used."""

    code = "cannot_start"


def serve_metrics(registry: CollectorRegistry, host: str, port: int | None) -> None:
    """Serve metrics in a thread, and print their address; no port: do nothing.

    Raises:
        MetricsPortError: The address cannot be used.
    """
    if port is None:
        return
    try:
        server, _ = start_http_server(port, host, registry)
    except OSError as exc:
        raise MetricsPortError(
            f"/metrics cannot be served on {host}:{port}: {exc.strerror}.",
            fix="Give another --metrics-port; 0 is a free one.",
        ) from exc
    typer.echo(f"metrics: http://{host}:{server.server_port}/metrics", err=True)


@contextlib.asynccontextmanager
async def counts_shown(
    report: Callable[[], dict[str, Any]], sentence: Callable[[dict[str, Any]], str], *, as_json: bool
) -> AsyncIterator[None]:
    """Print counts during the block, and at its end once more with `ended`."""
    showing = asyncio.create_task(_show_counts(report, sentence, as_json=as_json))
    try:
        yield
    finally:
        await cancel([showing])
        _print_counts(report() | {"ended": True}, sentence, as_json=as_json)


async def _show_counts(
    report: Callable[[], dict[str, Any]], sentence: Callable[[dict[str, Any]], str], *, as_json: bool
) -> None:
    """Print counts until it is cancelled: on a terminal as one line that changes, else a line every 5 s."""
    console = Console(stderr=True)
    live = console.is_terminal and not as_json
    with console.status("") if live else contextlib.nullcontext() as status:
        while True:
            await asyncio.sleep(_LIVE_EVERY_S if live else _REPORT_EVERY_S)
            counts = report()
            if isinstance(status, Status):
                status.update(sentence(counts))
            else:
                _print_counts(counts, sentence, as_json=as_json)


def _print_counts(counts: dict[str, Any], sentence: Callable[[dict[str, Any]], str], *, as_json: bool) -> None:
    """Print counts once: as JSON on standard output, or as a sentence on standard error."""
    if as_json:
        typer.echo(json.dumps(counts))
    else:
        typer.echo(sentence(counts), err=True)


def report_of(command: str) -> Callable[[str], None]:
    """Return a function that prints a sentence of a command on standard error."""
    return lambda sentence: print(f"stepwell {command}: {sentence}", file=sys.stderr, flush=True)  # noqa: T201
