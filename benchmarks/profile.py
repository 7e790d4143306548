"""Where a worker's CPU time goes under full load: samples of its Python stacks, and the kernel's share."""

from __future__ import annotations

import linecache
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_TICK = os.sysconf("SC_CLK_TCK")
_RATE = 400  # samples a second

# A sample counts for the innermost frame of this project; the first matching line wins.
_PARTS: Sequence[tuple[str, Callable[[Sequence[str]], bool]]] = (
    ("onnxruntime", lambda stack: any("onnxruntime/capi" in frame for frame in stack)),
    (
        "writing answers to sockets",
        lambda stack: _ours(stack).startswith("service/stepwell/protocols") and "write(" in _code(stack[-1]),
    ),
    ("writing to the store's socket", lambda stack: "Link.call " in stack[-1]),
    ("reading and writing JSON", lambda stack: _ours(stack).startswith(("service/stepwell/codec", "service/api"))),
    ("heads of requests, order of answers", lambda stack: _ours(stack).startswith("service/stepwell/protocols")),
    ("engine: names, queue, cache, batches", lambda stack: _ours(stack).startswith("service/stepwell/engine")),
    ("records and the store's protocol", lambda stack: _ours(stack).startswith("service/stepwell/store")),
    ("arrays around the model run", lambda stack: _ours(stack).startswith("model_export")),
    ("metrics", lambda stack: _ours(stack).startswith("service/stepwell/metrics")),
    ("event loop: waiting for sockets, reading them", lambda _: True),
)


def shares(pid: int, seconds: float, load: Callable[[], object]) -> dict[str, float]:
    """Return the share of each part in the CPU time of a process, largest first, and the kernel's share of the total.

    Args:
        pid: Process id of the worker.
        seconds: Duration of the sampling.
        load: Sends load for a little longer than that.

    Raises:
        SystemExit: py-spy is not installed.
    """
    spy = shutil.which("py-spy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if spy is None:
        raise SystemExit("The profile needs py-spy; install it (pip install py-spy).")
    before = _cpu(pid)
    with tempfile.NamedTemporaryFile("r", suffix=".raw") as file:
        command = [spy, "record", "--pid", str(pid), "--duration", f"{seconds:.0f}", "--rate", str(_RATE)]
        command += ["--format", "raw", "--output", file.name]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            load()
            _, errors = process.communicate()
        if process.returncode:
            raise SystemExit(f"py-spy failed: {errors.strip()[-300:]}")
        samples = file.read()
    user, system = (after - then for after, then in zip(_cpu(pid), before, strict=True))
    counts: Counter[str] = Counter()
    for line in samples.splitlines():
        stack, _, n = line.rpartition(" ")
        if n.isdigit() and "service/stepwell/process/server.py" in stack:  # the main thread; the others wait
            frames = stack.split(";")
            counts[next(name for name, fits in _PARTS if fits(frames))] += int(n)
    total = counts.total() or 1
    shares_by_name = {name: n / total for name, n in counts.most_common()}
    return shares_by_name | {"all of it that the kernel counts as its own": system / ((user + system) or 1)}


def _code(frame: str) -> str:
    """Return the code location of a frame, `NAME (FILE:LINE)`."""
    file, _, line = frame.rpartition("(")[2].rstrip(")").rpartition(":")
    return linecache.getline(str(_ROOT / file), int(line)) if line.isdigit() else ""


def _ours(stack: Sequence[str]) -> str:
    """Return the file of the innermost frame of this project, except the start of the process."""
    for frame in reversed(stack):
        file = frame.rpartition("(")[2]
        if file.startswith(("service/", "model_export/", "clients/")) and not file.startswith("service/stepwell/comm"):
            return file
    return ""


def _cpu(pid: int) -> tuple[float, float]:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) / _TICK, int(fields[12]) / _TICK
