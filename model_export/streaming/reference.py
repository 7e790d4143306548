"""The sequence graph itself on onnxruntime as the original of a parity check."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from model_export.manifest import Array
from model_export.streaming.answers import OutputLayout
from model_export.streaming.step import SequenceStep
from model_export.verify.decisions.onnx import OnnxObserver
from model_export.verify.decisions.record import Observed
from model_export.verify.graph_session import GraphSession
from model_export.verify.localize import Activation
from model_export.verify.reference import PrefixAnswers, prefix_answers


class SequenceReference:
    """Runs a sequence graph on whole sequences, as many rows at once as it takes."""

    def __init__(self, step: SequenceStep) -> None:
        self._step = step
        self._session = GraphSession(step.graph)
        self._observer: OnnxObserver | None = None

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array | PrefixAnswers]:
        """Return each output's answers.

        Args:
            inputs: One array per input, shape `(batch, T, *shape)`.

        Returns:
            `(batch, T, *shape)` for an output of every timestep. One that begins later, as a convolution without
            padding does, has answers from there on; one of the whole sequence has them for some of its beginnings.
        """
        length = next(iter(inputs.values())).shape[1]
        whole = self._run(inputs, length)
        answers: dict[str, Array | PrefixAnswers] = {}
        for name, facts in self._step.outputs.items():
            if facts.time is not None and facts.extra < 0:
                answers[name] = PrefixAnswers(range(1 - facts.extra, length + 1), whole[name])
            elif facts.time is not None:
                answers[name] = whole[name][:, facts.extra :]
        if last := [name for name, facts in self._step.outputs.items() if facts.time is None]:
            answers |= prefix_answers(lambda steps: self._run(inputs, steps), whole, last, length)
        return answers

    def observe(self, inputs: Mapping[str, Array]) -> Observed:
        """Record the decisions of the graph on whole sequences."""
        if self._observer is None:
            self._observer = OnnxObserver(self._step.graph)
        seen, length = Observed(), next(iter(inputs.values())).shape[1]
        for rows in self._batches(len(next(iter(inputs.values())))):
            seen.add(self._observer.observe(self._feeds(inputs, rows, length)))
        return seen

    def activations(self, inputs: Mapping[str, Array]) -> list[Activation]:
        """Return what the nodes of the graph give for one sequence, in order; see `model_export.verify.localize`."""
        if not self._step.watched:
            return []
        length = next(iter(inputs.values())).shape[1]
        watched = GraphSession(self._step.graph, [node.output for node in self._step.watched])
        values = watched.run(self._feeds(inputs, [0], length))
        return [
            Activation(node.layer, node.tensor, _rows_first(values[node.output], node.facts, 1))
            for node in self._step.watched
        ]

    def _run(self, inputs: Mapping[str, Array], length: int) -> dict[str, Array]:
        """Run beginnings of the sequences; return `(batch, T or nothing, *shape)` by output."""
        rows = len(next(iter(inputs.values())))
        parts = [self._run_rows(inputs, batch, length) for batch in self._batches(rows)]
        return {name: np.concatenate([part[name] for part in parts])[:rows] for name in parts[0]}

    def _batches(self, rows: int) -> list[list[int]]:
        """Return the rows of each run: as many as the graph takes."""
        has_rows = all(one.batch is not None for one in self._step.inputs.external)
        most = self._step.inputs.only_rows or (rows if has_rows else 1)
        return [list(range(start, start + most)) for start in range(0, rows, most)]

    def _run_rows(self, inputs: Mapping[str, Array], rows: list[int], length: int) -> dict[str, Array]:
        values = self._session.run(self._feeds(inputs, rows, length))
        return {name: _rows_first(values[name], facts, len(rows)) for name, facts in self._step.outputs.items()}

    def _feeds(self, inputs: Mapping[str, Array], rows: list[int], length: int) -> dict[str, Array]:
        feeds = {}
        for one in self._step.inputs.inputs:
            fixed = one.fixed(len(rows), length)
            if fixed is not None:
                feeds[one.name] = fixed
                continue
            data = inputs[one.name]
            data = data[np.minimum(rows, len(data) - 1)]  # a graph for several rows only: the last one again
            data = data[:, :length] if one.time is not None else data[:, 0]
            if one.batch is None:
                data = data[0]
            axes = [axis for axis in (one.batch, one.time) if axis is not None]
            feeds[one.name] = np.ascontiguousarray(np.moveaxis(data, list(range(len(axes))), axes))
        return feeds


def _rows_first(value: Array, facts: OutputLayout, rows: int) -> Array:
    """Bring an output to `(batch, T or nothing, ..)`."""
    if facts.order:
        assert facts.time is not None
        steps = value.shape[facts.time] // rows
        lead, tail = value.shape[: facts.time], value.shape[facts.time + 1 :]
        shape = (rows, steps) if facts.order == "BT" else (steps, rows)
        place = facts.time + (facts.order == "TB")
        apart = value.reshape(*lead, *shape, *tail)
        return np.moveaxis(apart, [place, 2 * facts.time + 1 - place], [0, 1])
    batch, time = facts.batch, facts.time
    if batch is None:
        value = value[None]
        batch, time = 0, None if time is None else time + 1
    if time is None:
        moved = np.moveaxis(value, batch, 0)
        return moved.reshape(rows, -1, *moved.shape[1:])[:, 0] if len(moved) == rows else moved.reshape(rows, -1)
    return np.moveaxis(value, [batch, time], [0, 1])
