"""Runs a step graph over whole sequences in every way that serving does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Self, TypeVar

import numpy as np

from model_export.manifest import Array
from model_export.step_model import StepModel, stacked

_T = TypeVar("_T")

Sequences = Mapping[str, Array]
"""One array per input, shape `(rows, T, *shape)`."""

Run = tuple[dict[str, Array], dict[str, Array]]
"""Answers `{output: (rows, T, *shape)}`, and the states after the last timestep."""


class Beside:
    """Runs a step graph while the caller runs the original: in a thread of its own, or when its results are needed.

    The original stays in the thread in which it was made: frameworks keep settings by thread.
    """

    def __init__(self, model: StepModel, *, in_thread: bool) -> None:
        """Begin.

        Args:
            model: The step graph; its runs end where the caller fails.
            in_thread: Whether there is a thread; short runs would only wait for the interpreter lock.
        """
        self._model = model
        self._pool = ThreadPoolExecutor(1) if in_thread else None
        self._started: list[Future[Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=error is None, cancel_futures=True)
        while error is not None and (running := [future for future in self._started if not future.done()]):
            self._model.terminate()  # again, as it may come between two steps
            wait(running, timeout=0.001)

    def start(self, call: Callable[[], _T]) -> Callable[[], _T]:
        """Return a function that gives what the call returns; to be called once."""
        if self._pool is None:
            return call
        self._started.append(future := self._pool.submit(call))
        return future.result


def stepped(model: StepModel, data: Sequences, *, stored: bool = True) -> Run:
    """Run sequences step by step.

    Args:
        model: The step graph.
        data: The sequences.
        stored: Save and restore each state after every timestep, in the packed form that the store keeps.
    """
    rows, length = next(iter(data.values())).shape[:2]
    states = model.initial_states(rows)
    outputs = []
    for t in range(length):
        out, states = model.step({name: array[:, t] for name, array in data.items()}, states)
        if stored and model.fields:
            states = model.unpack(model.pack(states, rows=rows))
        outputs.append(out)
    return {name: np.stack([out[name] for out in outputs], axis=1) for name in outputs[0]}, states


def rows_alone(model: StepModel, data: Sequences) -> dict[str, Array]:
    """Run each sequence by itself, step by step."""
    rows = len(next(iter(data.values())))
    return stacked([stepped(model, {name: array[r : r + 1] for name, array in data.items()})[0] for r in range(rows)])


def chunked(model: StepModel, data: Sequences, lengths: Sequence[int]) -> Run:
    """Run sequences in chunks of these lengths, over and over."""
    rows, total = next(iter(data.values())).shape[:2]
    states = model.initial_states(rows)
    outputs: list[dict[str, Array]] = []
    at = 0
    while at < total:
        until = at + lengths[len(outputs) % len(lengths)]
        out, states = model.chunk({name: array[:, at:until] for name, array in data.items()}, states)
        outputs.append(out)
        at = until
    return {name: np.concatenate([out[name] for out in outputs], axis=1) for name in outputs[0]}, states
