"""Runs a step graph over whole sequences in every way that serving does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import cache
from threading import Thread
from typing import Any, Self, TypeVar

import numpy as np

from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel, stacked

_T = TypeVar("_T")

Sequences = Mapping[str, Array]
"""One array per input, shape `(rows, T, *shape)`."""

Run = tuple[dict[str, Array], dict[str, Array]]
"""Answers `{output: (rows, T, *shape)}`, and the states after the last timestep."""


TOGETHER = 9
"""Rows that run together: a graph may be right for three, and wrong for more."""


class Beside:
    """Runs a step graph while the caller runs the original: in a thread of its own, or when its results are needed.

    The original stays in the thread in which it was made: frameworks keep settings by thread. Runs are started in front
    of the `with` that begins them: the thread would hold the interpreter lock between two starts.

    Attributes:
        model: Returns the step graph.
    """

    def __init__(self, make: Callable[[], StepModel], *, in_thread: bool) -> None:
        """Begin.

        Args:
            make: Makes the step graph, or returns it; its runs end where the caller fails.
            in_thread: Whether there is a thread; short runs would only wait for the interpreter lock.
        """
        self._thread = Thread(target=self._work) if in_thread else None
        self._started: list[tuple[Future[Any], Callable[[], Any]]] = []
        self._is_ended = False
        self.model = cache(self._start(make))

    def __enter__(self) -> Self:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._is_ended = error is not None
        while self._thread is not None and self._thread.is_alive():
            made = self._started[0][0]
            if self._is_ended and made.done() and not made.cancelled() and made.exception() is None:
                self.model().terminate()  # again, as it may come between two steps
            self._thread.join(0.001 if self._is_ended else None)
        self._started.clear()  # which refer to the step graph

    def start(self, run: Callable[..., _T], *given: Any) -> Callable[[], _T]:
        """Return a function that gives what `run` returns for the step graph and these arguments; to be called once."""
        return self._start(lambda: run(self.model(), *given))

    def _start(self, call: Callable[[], _T]) -> Callable[[], _T]:
        if self._thread is None:
            return call
        future = Future[_T]()
        self._started.append((future, call))
        return future.result

    def _work(self) -> None:
        for future, call in self._started:
            if self._is_ended:
                future.cancel()
                continue
            try:
                future.set_result(call())
            except BaseException as exc:  # noqa: BLE001  # raised where the result is needed
                future.set_exception(exc)


class KindRuns:
    """The runs of a step graph over all sequences of a kind.

    Attributes:
        batches: The sequences, as many in each as run together.
        running: The run of each batch.
        few: Rows and timesteps of the first batch that also run alone.
        alone: Their run.
    """

    def __init__(self, beside: Beside, data: Sequences, alone_steps: int | None) -> None:
        """Start them.

        Args:
            beside: The step graph.
            data: All sequences.
            alone_steps: The most timesteps that a row runs alone; None: all.
        """
        rows = len(next(iter(data.values())))
        count = min(rows, TOGETHER)
        starts = range(0, rows, TOGETHER)
        self.batches = [{name: array[at : at + TOGETHER] for name, array in data.items()} for at in starts]
        self.running = [beside.start(stepped, batch) for batch in self.batches]
        self.few = (sorted({0, count // 2, count - 1}), slice(alone_steps))
        self.alone = beside.start(rows_alone, {name: array[self.few] for name, array in data.items()})


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
