"""A Scan of ONNX under construction: its body runs over timesteps, or over positions inside one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from onnx import helper

from stepwell_export.keras.graph import KerasGraph
from stepwell_export.keras.value import Value
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import Array


class StepScan:
    """What a body takes along axis 1 of its inputs, carries and gives.

    Args:
        graph: The graph that the Scan is for.
        path: The layer's; the Scan is named so, and its states begin with it.
    """

    def __init__(self, graph: KerasGraph, path: str) -> None:
        self._graph = graph
        self._path = path
        self._nodes: list[onnx.NodeProto] = []
        self._elements: dict[str, str] = {}
        self._states: dict[str, Value | Array] = {}
        self._after: dict[str, str] = {}
        self._position: Value | None = None

    @contextmanager
    def body(self, walk: Any) -> Iterator[StepScan]:
        """Let what is emitted inside be the body; the states of step rules are those of this Scan."""
        outer, walk.scan = walk.scan, self
        try:
            with self._graph.body() as self._nodes:
                yield self
        finally:
            walk.scan = outer

    def element(self, value: Value) -> Value:
        """Return one timestep of a sequence; a value without time axis as it is, in a body of a layer over time."""
        if not value.is_sequence:
            return value
        return Value(self._element(value.name), value.row[1:], value.dtype, time=True, mask=self.mask(value.mask))

    def place_of(self, value: Value) -> Value:
        """Return one place of a value along its first axis behind the batch, whatever that is."""
        return Value(self._element(value.name), value.row[1:], value.dtype)

    def mask(self, mask: str | None) -> str | None:
        """Return whether one timestep counts, shape `(batch,)` bool."""
        return None if mask is None else self._element(mask)

    def state(self, name: str, row: tuple[int | None, ...], dtype: str, init: Value | Array | None) -> Value:
        """Declare a state.

        Args:
            name: Its name, with the layer's path in front.
            row: Its shape without batch axis.
            dtype: NumPy name.
            init: What it is before the first timestep: a value, or one row; None: zeros.

        Returns:
            What it is before each timestep.
        """
        state = Value(self._graph.unique(name), row, dtype)
        if not isinstance(init, Value):
            init = np.broadcast_to(np.asarray(0 if init is None else init, dtype), [size or 1 for size in row])
        self._states[state.name] = init
        return state

    def next_state(self, state: Value, tensor: str) -> None:
        """Set what a state is after each timestep."""
        self._after[state.name] = tensor

    def position(self, path: str) -> Value:
        """Return how many timesteps came before this one, shape `(batch,)` int64."""
        if self._position is None:
            self._position = self.state(f"{path}.position", (), "int64", None)
            one = self._graph.constant(1, "int64")
            self.next_state(self._position, self._graph.op("Add", self._position.name, one, at=path))
        return self._position

    def results(self, results: list[Value]) -> list[Value]:
        """Emit the Scan and return what the layer gives: a sequence of each result, or its last one."""
        masks = [result.mask for result in results]
        made, _ = self.emit([result.name for result in results] + [mask for mask in masks if mask])
        carried = iter(made[len(results) :])
        found = []
        for result, name in zip(results, made, strict=False):
            mask = next(carried) if result.mask else None
            if result.time:
                found.append(Value(name, (None, *result.row), result.dtype, mask=mask))
            else:
                last = self._graph.op("Gather", name, self._graph.constant(-1, "int64"), at=self._path, axis=1)
                found.append(Value(last, result.row, result.dtype))
        return found

    def emit(self, results: list[str]) -> tuple[list[str], list[str]]:
        """Emit the Scan.

        Args:
            results: Tensors of the body.

        Returns:
            Each of them for all timesteps, along axis 1; and each state behind the last one, in order.

        Raises:
            RefusedModelError: A state has no next value.
        """
        for name in self._states:
            if name not in self._after:
                raise RefusedModelError(
                    f"State {name!r} is declared by its layer's step rule and never gets a next value.",
                    fix="Let the rule call `next_state` for each state that it declares.",
                )
        graph, takes = self._graph, [*self._states, *self._elements.values()]
        gives, passed = [], []
        for tensor in (*(self._after[name] for name in self._states), *results):
            gives.append(graph.fresh("given", self._path))
            passed.append(helper.make_node("Identity", [tensor], [gives[-1]]))
        inputs, outputs = ([onnx.ValueInfoProto(name=name) for name in names] for names in (takes, gives))
        body = helper.make_graph([*self._nodes, *passed], self._path or "body", inputs, outputs)
        starts = [self._start(init) for init in self._states.values()]
        names = [graph.fresh("Scan", self._path) for _ in gives]
        count = len(self._elements)
        graph.add(
            "Scan",
            [*starts, *self._elements],
            names,
            at=self._path,
            body=body,
            num_scan_inputs=count,
            scan_input_axes=[1] * count,
            scan_output_axes=[1] * len(results),
        )
        return names[len(starts) :], names[: len(starts)]

    def _element(self, name: str) -> str:
        if name not in self._elements:
            self._elements[name] = self._graph.fresh("element", self._path)
        return self._elements[name]

    def _start(self, init: Value | Array) -> str:
        if isinstance(init, Value):
            return init.name
        constant = self._graph.constant(init, init.dtype.name, at=self._path)
        return self._graph.for_each_row(constant, init.shape, next(iter(self._elements)), at=self._path)
