"""What the dashboard costs a browser while thousands of streams are live: `python -m benchmarks.dashboard`.

Every stream of a model gets a timestep per `--every` seconds while Chromium shows the page. Printed are the CPU of all
processes of the browser as a share of one core, by process, and the memory of the page. The browser's recording for
DevTools is off: it forwards every WebSocket message once more, which costs more than the page itself.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated

import httpx2
import typer

from benchmarks.processes import processes_of
from tests.addons.dashboard.browser import Page, browser, chromium
from tests.graphs import lstm, write_model
from tests.processes import ServiceProcess, service_process

_CHUNK = 50  # streams of one request; a watcher has room for 256 messages
_VIEWS = {"one stream": "#model=pump", "all streams": "#model=pump&view=fleet"}


def main(
    *,
    streams: Annotated[int, typer.Option(help="Live streams.")] = 5000,
    every: Annotated[float, typer.Option(help="Seconds between two timesteps of a stream.")] = 4.0,
    seconds: Annotated[float, typer.Option(help="Duration of each measurement.")] = 30.0,
) -> None:
    """Measure the dashboard in Chromium."""
    if (binary := chromium()) is None:
        typer.echo("Chromium is not installed: apt-get install chromium", err=True)
        raise typer.Exit(3)
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        folder = Path(name)
        write_model(folder / "models", "pump", lstm)
        with service_process(folder / "models", folder / "data") as service:
            stop = threading.Event()
            sender = threading.Thread(target=_step_streams, args=(service, streams, every, stop))
            sender.start()
            try:
                for view, address in _VIEWS.items():
                    with browser(binary, folder / view) as chrome, chrome.tab() as page:
                        _measure(page, f"{service.url}/{address}", view, streams, seconds)
            finally:
                stop.set()
                sender.join()


def _step_streams(service: ServiceProcess, streams: int, every: float, stop: threading.Event) -> None:
    """Send every stream a timestep each `every` seconds, evenly over that time, until `stop` is set."""
    names = [f"dev-{i:05}" for i in range(streams)]
    shape = httpx2.get(f"{service.url}/v1/models/pump", trust_env=False).json()["inputs"][0]["shape"]
    size = shape[0] if shape else 1
    with httpx2.Client(base_url=service.url, timeout=30, trust_env=False) as http:
        due = time.monotonic()
        while not stop.is_set():
            for start in range(0, streams, _CHUNK):
                part = names[start : start + _CHUNK]
                inputs = [[((start + i) % 97) / 97] * size for i in range(len(part))]
                http.post("/v1/models/pump/step", json={"streams": part, "inputs": inputs}).raise_for_status()
                due += every * len(part) / streams
                if stop.wait(max(0.0, due - time.monotonic())):
                    return


def _measure(page: Page, url: str, view: str, streams: int, seconds: float) -> None:
    page.open(url)
    page.stop_recording()
    wanted = f"Number(document.getElementById('live').textContent.replaceAll(',', '')) >= {int(0.95 * streams)}"
    while not page.evaluate(wanted):
        _pause(page, 0.5)
    parts = _parts()
    before = time.monotonic(), {name: _cpu(pids) for name, pids in parts.items()}
    for _ in range(round(seconds)):
        _pause(page, 1)
    elapsed = time.monotonic() - before[0]
    used = {name: (_cpu(pids) - before[1][name]) / elapsed for name, pids in parts.items()}
    heap = page.evaluate("performance.memory.usedJSHeapSize")
    cpu = f"{sum(used.values()):.1%} of a core ({', '.join(f'{name} {share:.1%}' for name, share in used.items())})"
    memory = f"{_private(parts['page']) / 2**20:.0f} MB private memory, of them {heap / 2**20:.0f} MB of JavaScript"
    load = f"{page.text('#live')} live streams, {page.text('#rate')} steps/s"
    typer.echo(f"{view}: {load}: the browser uses {cpu}; the page {memory}; {page.text('#skipped') or 'none skipped'}")


def _pause(page: Page, seconds: float) -> None:
    """Wait by the clock of the page."""
    page.evaluate(f"new Promise((done) => setTimeout(done, {1000 * seconds}))")


def _parts() -> dict[str, list[int]]:
    """Return the processes of the browser by what they do; the page's is the busiest of those that render."""
    parts: dict[str, list[int]] = {"page": [], "network": [], "graphics": [], "rest": []}
    pids = [pid for pid in processes_of(os.getpid()).service if "chrom" in _command(pid)]
    page = max((pid for pid in pids if "--type=renderer" in _command(pid)), key=lambda pid: _cpu([pid]))
    for pid in pids:
        command = _command(pid)
        network, graphics = "NetworkService" in command, "--type=gpu-process" in command
        parts["page" if pid == page else "network" if network else "graphics" if graphics else "rest"].append(pid)
    return parts


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def _cpu(pids: list[int]) -> float:
    """Return the CPU seconds of some processes so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _private(pids: list[int]) -> int:
    """Return the bytes of memory that only these processes use."""
    kilobytes = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Private_"):
                kilobytes += int(line.split()[1])
    return kilobytes * 1024


if __name__ == "__main__":
    typer.run(main)
