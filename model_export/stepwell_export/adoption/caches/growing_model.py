"""Runs a graph whose caches grow, timestep by timestep: the original that bounded caches are compared with."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from stepwell_export.adoption.axes import Declared
from stepwell_export.adoption.caches.bounded_graph import COUNT, GrowingGraph
from stepwell_export.adoption.ort_graph import OrtGraph
from stepwell_export.runtime.errors import ModelLoadError, ParityError, RefusedModelError
from stepwell_export.runtime.manifest import Array, Manifest
from stepwell_export.runtime.state_packing import to_graph
from stepwell_export.runtime.step_model import nearly_equal

FAR = 2**24
"""A position that no table has."""


class GrowingModel:
    """The file itself, run timestep by timestep; caches that are full lose their oldest timestep.

    Attributes:
        graph: The file.
        growing: What it takes.
        length: Timesteps that a cache holds, the new one included.
    """

    def __init__(self, graph: OrtGraph, growing: GrowingGraph, length: int, constants: Mapping[str, Array]) -> None:
        self.graph = graph
        self.length = length
        self.growing = growing
        self._constants = constants

    @property
    def limit(self) -> int | None:
        """How many timesteps the outputs are defined for; None: any number."""
        return self.growing.positions if self.growing.position is not None else self.length

    def count_positions(self) -> int | None:
        """Find how many positions the graph has a value for, and return it; None: any number.

        Raises:
            RefusedModelError: It has none for the first timestep.
        """
        if self.growing.position is None:
            return None
        sent = self._zeros(self.graph.inputs)

        def fails(place: int) -> bool:
            try:
                self.step(sent, self.begin(), place)
            except ModelLoadError:
                return True
            return False

        if not fails(FAR):
            return None
        high = bisect_left(range(FAR), True, key=fails)
        if not high:
            raise RefusedModelError(
                f"{self.graph.path} does not run with empty caches.",
                fix="Export it so that the first timestep needs no other graph; set other inputs with `--constant`.",
            )
        self.growing = replace(self.growing, positions=high)
        return high

    def begin(self) -> dict[str, Array]:
        """Return empty caches, and other states of zeros, for one row."""
        empty = {cache.past: np.zeros(cache.shape(1, 0), cache.dtype) for cache in self.growing.caches}
        return {**empty, **self._zeros([tensor for tensor in self.graph.inputs if tensor.name in self.growing.states])}

    def full(self, rng: np.random.Generator, steps: int) -> dict[str, Array]:
        """Return random caches of so many timesteps, for one row."""
        made = self.begin()
        for cache in self.growing.caches:
            made[cache.past] = rng.standard_normal(cache.shape(1, steps)).astype(cache.dtype)
        return made

    def run(
        self, manifest: Manifest, inputs: Mapping[str, Array], states: dict[str, Array], first: int
    ) -> tuple[dict[str, Array], list[tuple[dict[str, Array], int]]]:
        """Run a sequence; return the outputs, `(1, T, *shape)`, and what `bounded` takes for each timestep.

        Args:
            manifest: That of the bounded graph.
            inputs: What a caller sends, `(1, T, *shape)`.
            states: From `begin` or `full`, for one row.
            first: Timesteps before the first one.

        Raises:
            ModelLoadError: The graph fails.
            ParityError: An output is not of the size that it has with bounded caches, or a cache is not what it was
                with the new timestep behind it.
        """
        outputs = [spec for spec in manifest.answered if spec.kind == "value"]
        answers: dict[str, list[Array]] = {spec.name: [] for spec in outputs}
        before: list[tuple[dict[str, Array], int]] = []
        for t in range(next(iter(inputs.values())).shape[1]):
            before.append((states, first + t))
            sent = {i.name: to_graph(inputs[i.name][:, t], i.graph_row_shape, i.batch_axis) for i in manifest.inputs}
            found, states = self.step(sent, states, first + t)
            for spec in outputs:
                if found[spec.name].size != spec.row_size:
                    raise ParityError(
                        f"Output {spec.name!r} has shape {list(found[spec.name].shape)} at timestep {first + t + 1}, "
                        f"and {list(spec.row_shape)} a row with bounded caches; expected as many numbers.",
                        fix="Nothing was written. Leave the output out of the graph: its size follows the caches.",
                    )
                answers[spec.name].append(found[spec.name].reshape(1, *spec.row_shape))
        return {name: np.stack(values, axis=1) for name, values in answers.items()}, before

    def step(
        self, sent: Mapping[str, Array], states: Mapping[str, Array], count: int
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Run one timestep; return the outputs and the next states.

        Args:
            sent: What a caller sends, in the graph's shapes.
            states: From `begin`, `full` or the timestep before.
            count: Timesteps before this one.

        Raises:
            ModelLoadError: The graph fails.
            ParityError: A cache is not what it was with the new timestep behind it.
        """
        growing, first = self.growing, self.growing.caches[0]
        rows, steps = (states[first.past].shape[axis] for axis in (first.batch, first.axis))
        feeds = {**sent, **states, **self._constants}
        if growing.mask is not None:
            feeds[growing.mask.name] = np.ones((rows, steps + 1), growing.mask.dtype)
        if growing.position is not None:
            shape = (rows, 1) if len(growing.position.dims) == 2 else (1,)
            feeds[growing.position.name] = np.full(shape, count, growing.position.dtype)
        found = self.graph.run(feeds)
        after = {before: found[output] for before, output in growing.states.items()}
        for cache in growing.caches:
            before, present = states[cache.past], found[cache.present]
            size = present.shape[cache.axis]
            if size != steps + 1 or not nearly_equal(np.take(present, range(steps), axis=cache.axis), before):
                raise ParityError(
                    f"{cache.present!r} of {self.graph.path} does not begin with what it was, {cache.past!r}, or is "
                    "not one timestep longer.",
                    fix="Nothing was written. Export a model that adds the new timestep behind those before it.",
                )
            kept = range(max(0, size - self.length + 1), size)
            after[cache.past] = np.take(present, kept, axis=cache.axis)
        return found, after

    def bounded(self, states: Mapping[str, Array], count: int) -> dict[str, Array]:
        """Return the states before a timestep for the bounded graph, rows in front: zeros are before what there is.

        Args:
            states: Before the timestep.
            count: Timesteps before it.
        """
        made: dict[str, Array] = {COUNT: np.full((1, 1), count, np.int64)}
        for name in self.growing.states:
            made[name] = states[name]
        for cache in self.growing.caches:
            there = states[cache.past]
            missing = self.length - 1 - there.shape[cache.axis]
            whole = np.pad(there, [(missing if axis == cache.axis else 0, 0) for axis in range(there.ndim)])
            made[cache.state] = np.moveaxis(whole, cache.batch, 0)
        return made

    def _zeros(self, tensors: Iterable[Declared]) -> dict[str, Array]:
        return {t.name: np.zeros([d if isinstance(d, int) else 1 for d in t.dims], t.dtype) for t in tensors}
