"""How many streams of DTLN run in real time on two cores: `python -m benchmarks.denoise model_1.onnx model_2.onnx`.

Each core has a process: one with the service's engine and its store in memory, one with the loop of DTLN's authors, in
which each stream has its turn in two sessions of onnxruntime. A stream at 16 kHz has 125 timesteps of 128 samples a
second.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime as ort
import typer

from stepwell import Client, export

HOP, SIZE, RATE = 128, 512, 125


def served(streams: int, seconds: float, folder: str) -> float:
    """Return the timesteps a second of so many streams in an engine; one request has a timestep of each."""
    names = [f"call-{n}" for n in range(streams)]
    rows = np.random.default_rng(0).normal(0, 0.05, (streams, HOP)).astype(np.float32)
    with Client(":memory:", models=folder) as client:
        model = client.model("dtln")
        return _rate(lambda: model.step_many(dict(zip(names, rows, strict=True))), streams, seconds)


def looped(streams: int, seconds: float, model_1: str, model_2: str) -> float:
    """Return the timesteps a second of so many streams in the loop of DTLN's authors."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    first, second = (ort.InferenceSession(file, options) for file in (model_1, model_2))
    kept = [_Loop(first, second) for _ in range(streams)]
    row = np.random.default_rng(0).normal(0, 0.05, HOP).astype(np.float32)

    def all_streams() -> None:
        for loop in kept:
            loop.step(row)

    return _rate(all_streams, streams, seconds)


class _Loop:
    """One stream as in DTLN's real_time_processing_onnx.py."""

    def __init__(self, first: ort.InferenceSession, second: ort.InferenceSession) -> None:
        self._sessions = first, second
        self._names = [[one.name for one in session.get_inputs()] for session in self._sessions]
        self._states: list[Any] = [np.zeros(session.get_inputs()[1].shape, np.float32) for session in self._sessions]
        self._taken, self._given = np.zeros(SIZE, np.float32), np.zeros(SIZE, np.float32)

    def step(self, row: Any) -> Any:
        """Return 128 samples for the next 128."""
        self._taken = np.concatenate([self._taken[HOP:], row])
        spectrum = np.fft.rfft(self._taken)
        size = np.abs(spectrum).astype(np.float32).reshape(1, 1, -1)
        mask = self._run(0, size)
        cleaned = np.fft.irfft(size * mask * np.exp(1j * np.angle(spectrum))).astype(np.float32).reshape(1, 1, -1)
        self._given = np.concatenate([self._given[HOP:], np.zeros(HOP, np.float32)]) + self._run(1, cleaned).ravel()
        return self._given[:HOP]

    def _run(self, at: int, value: Any) -> Any:
        feeds = dict(zip(self._names[at], (value, self._states[at]), strict=True))
        answer, self._states[at] = self._sessions[at].run(None, feeds)
        return answer


def _rate(run: Callable[[], object], streams: int, seconds: float) -> float:
    run()
    begun, rounds = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        run()
        rounds += 1
    return rounds * streams / (time.perf_counter() - begun)


def main(
    model_1: Path,
    model_2: Path,
    *,
    streams: Annotated[int, typer.Option(help="Streams of both cores together.")] = 1000,
    seconds: Annotated[float, typer.Option(help="Duration of each measurement.")] = 10.0,
) -> None:
    """Measure DTLN on two cores: in the engine, and in a loop of onnxruntime sessions."""
    context = multiprocessing.get_context("spawn")
    files = str(model_1.resolve()), str(model_2.resolve())
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        export(f"recipe:dtln={','.join(files)}", Path(folder) / "dtln.onnx")
        measured: dict[str, tuple[Callable[..., float], tuple[str, ...]]] = {
            "Stepwell": (served, (folder,)),
            "loop of sessions": (looped, files),
        }
        for name, (measure, given) in measured.items():
            with context.Pool(2) as pool:
                found[name] = sum(pool.starmap(measure, [(streams // 2, seconds, *given)] * 2))
    for name in measured:
        typer.echo(f"{name:<18}{found[name]:>10,.0f} timesteps/s{found[name] / RATE:>8,.0f} streams in real time")
    typer.echo(f"{found['Stepwell'] / found['loop of sessions']:.1f} times as many")


if __name__ == "__main__":
    typer.run(main)
