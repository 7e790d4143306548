"""`stepwell backfill` of NPZ, Parquet and CSV files beside onnxruntime in this process, on chunks of 100 timesteps."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.servers import Running, stepwell
from benchmarks.workload import FEATURES, Workload
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel

CHUNK = 100
_WIDTH = 256
_DATA = {"NPZ": ".npz", "NPZ, with predictions": ".npz", "Parquet": ".parquet", "CSV": ".csv"}
if find_spec("pyarrow") is None:
    del _DATA["Parquet"]


@dataclass(frozen=True, slots=True)
class Backfilled:
    """The medians of the rounds of one format.

    Attributes:
        name: Name in the table.
        rate: Timesteps per second.
        rate_ratio: `rate` to that of onnxruntime alone in the same round.
        cpu_us: CPU microseconds per timestep: command, service and store.
        cpu_ratio: Of onnxruntime alone, to `cpu_us`.
        command_us: The command's part.
        store_us: The store's part.
        wrong: Predictions that differ from those of onnxruntime alone by more than 1e-5 + 1e-4 of the value.
    """

    name: str
    rate: float
    rate_ratio: float
    cpu_us: float
    cpu_ratio: float
    command_us: float
    store_us: float
    wrong: int


@dataclass(frozen=True, slots=True)
class _Round:
    seconds: float
    command: float
    service: float
    store: float
    wrong: int


def measure(work: Workload, *, n_streams: int, n_steps: int, rounds: int) -> list[Backfilled]:
    """Measure each way once per round, in turn; the first line is onnxruntime alone.

    Args:
        work: The model.
        n_streams: Streams in the data.
        n_steps: Timesteps of each stream.
        rounds: Rounds.
    """
    model = StepModel(work.model)
    count = n_streams * n_steps
    alone: list[tuple[float, float]] = []
    found: dict[str, list[_Round]] = {name: [] for name in _DATA}
    with tempfile.TemporaryDirectory(prefix="bench-") as name, stepwell(work)(Path(name)) as running:
        folder = Path(name)
        for number in range(rounds):
            rows = np.random.default_rng(number).standard_normal((n_streams, n_steps, FEATURES)).astype(np.float32)
            seconds, cpu, expected = _alone(model, rows)
            alone.append((seconds, cpu))
            for n, line in enumerate(found):
                data = folder / f"{number}-{n}{_DATA[line]}"
                _write(data, rows, prefix=f"{number}.{n}.")
                out = folder / f"{number}-{n}.out.npz" if "predictions" in line else None
                found[line].append(_backfill(running, data, out, expected))
                data.unlink()
    base = [Backfilled("onnxruntime alone, in process", count / _median(s for s, _ in alone), 1.0,
                       _median(c for _, c in alone) / count * 1e6, 1.0, 0.0, 0.0, 0)]  # fmt: skip
    return base + [_line(name, results, alone, count) for name, results in found.items()]


def show(lines: list[Backfilled], title: str) -> None:
    """Print a table."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    for head in ("timesteps/s", "times", "CPU us/timestep", "times", "of it command", "of it store", "wrong"):
        table.add_column(head, justify="right")
    for line in lines:
        table.add_row(
            line.name, f"{line.rate:,.0f}", f"{line.rate_ratio:.2f}", f"{line.cpu_us:.2f}", f"{line.cpu_ratio:.2f}",
            f"{line.command_us:.2f}", f"{line.store_us:.2f}", str(line.wrong),
        )  # fmt: skip
    Console(width=max(Console().width, 130)).print(table)


def rows_of(lines: list[Backfilled]) -> list[dict[str, object]]:
    """Return the lines for a file."""
    return [asdict(line) for line in lines]


def _line(name: str, results: list[_Round], alone: list[tuple[float, float]], count: int) -> Backfilled:
    cpu = [each.command + each.service + each.store for each in results]
    return Backfilled(
        f"stepwell backfill, {name}",
        count / _median(each.seconds for each in results),
        _median(base[0] / each.seconds for base, each in zip(alone, results, strict=True)),
        _median(cpu) / count * 1e6,
        _median(base[1] / spent for base, spent in zip(alone, cpu, strict=True)),
        _median(each.command for each in results) / count * 1e6,
        _median(each.store for each in results) / count * 1e6,
        sum(each.wrong for each in results),
    )


def _alone(model: StepModel, rows: Array) -> tuple[float, float, Array]:
    """Return seconds, CPU seconds and predictions of onnxruntime on chunks of 256 streams."""
    started, cpu = time.monotonic(), time.process_time()
    found = np.empty(rows.shape[:2], np.float32)
    for s in range(0, len(rows), _WIDTH):
        part = rows[s : s + _WIDTH]
        states = model.initial_states(len(part))
        for t in range(0, rows.shape[1], CHUNK):
            outputs, states = model.chunk({"x": part[:, t : t + CHUNK]}, states)
            found[s : s + _WIDTH, t : t + CHUNK] = outputs["y"][..., 0]
    return time.monotonic() - started, time.process_time() - cpu, found


def _backfill(running: Running, data: Path, out: Path | None, expected: Array) -> _Round:
    command = [sys.executable, "-P", "-m", "stepwell", "backfill", str(data), "--model", "bench", "--json"]
    command += ["--url", f"http://127.0.0.1:{running.port}"]
    command += ["--stream-column", "stream"] if data.suffix != ".npz" else []
    command += ["--predictions", str(out)] if out is not None else []
    service, store = running.cpu()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    report = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    service_after, store_after = running.cpu()
    wrong = 0
    if out is not None:
        with np.load(out) as arrays:
            found = arrays["y[0]"].reshape(expected.shape)  # an NPZ file has the rows of one stream after the other
        wrong = int((np.abs(found - expected) > 1e-5 + 1e-4 * np.abs(expected)).sum())
    return _Round(
        report["seconds"], usage.ru_utime + usage.ru_stime, service_after - service, store_after - store, wrong
    )  # fmt: skip


def _write(path: Path, rows: Array, *, prefix: str) -> None:
    streams = [f"{prefix}{n}" for n in range(len(rows))]
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {"x:x": rows, "streams": np.array(streams)}
        np.savez(path, **arrays)
        return
    if path.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        by_time = rows.swapaxes(0, 1).reshape(-1, FEATURES)
        columns = {"stream": pa.array(streams * rows.shape[1]).dictionary_encode()}
        parquet.write_table(pa.table(columns | {f"x[{n}]": by_time[:, n] for n in range(FEATURES)}), path)
        return
    with path.open("w") as file:
        file.write(",".join(["stream", *(f"x[{n}]" for n in range(FEATURES))]) + "\n")
        for t in range(rows.shape[1]):
            for stream, row in zip(streams, rows[:, t].tolist(), strict=True):
                file.write(stream + "," + ",".join(f"{value:.9g}" for value in row) + "\n")


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)
