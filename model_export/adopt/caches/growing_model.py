"""Runs a graph whose caches grow, timestep by timestep: the original that bounded caches are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort

from model_export.adopt.caches.bounded_graph import COUNT, GrowingGraph
from model_export.adopt.ort_graph import OrtGraph
from model_export.adopt.overrides import Overrides
from model_export.errors import ModelLoadError, ParityError, RefusedModelError
from model_export.manifest import Array
from model_export.runtime.batch_independence import nearly_equal
from model_export.runtime.session import open_session, run_options

FAR = 2**24
"""A position that no table has."""


class GrowingModel:
    """The file itself, run timestep by timestep; caches that are full lose their oldest timestep."""

    def __init__(
        self,
        graph: OrtGraph,
        path: Path,
        growing: GrowingGraph,
        hints: Overrides,
        length: int,
        *,
        ids: Mapping[str, int],
    ) -> None:
        self.path = path
        self.length = length
        self.ids = ids
        self._growing = growing
        self._session = open_session(path, where=str(path))
        self._constants = {name: graph.constant(name, value) for name, value in hints.constants.items()}
        self._declared = {tensor.name: tensor for tensor in graph.inputs}
        self._outputs = [tensor.name for tensor in graph.outputs]

    @property
    def limit(self) -> int | None:
        """How many timesteps the outputs are defined for; None: any number."""
        return self._growing.positions if self._growing.position is not None else self.length

    def count_positions(self) -> int | None:
        """Return how many positions the graph has a value for; None: any number."""
        position = self._growing.position
        if position is None:
            return None

        def runs(place: int) -> bool:
            sent = {
                tensor.name: np.zeros([d if isinstance(d, int) else 1 for d in tensor.dims], tensor.dtype)
                for tensor in self._declared.values()
            }
            try:
                self.step(sent, self.begin(1), place)
            except ModelLoadError:
                return False
            return True

        if not runs(0):
            raise RefusedModelError(
                f"{self.path} does not run with empty caches.",
                fix="Export it so that the first timestep needs no other graph; set other inputs with `--constant`.",
            )
        if runs(FAR):
            return None
        low, high = 0, FAR
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if runs(middle) else (low, middle)
        self._growing = replace(self._growing, positions=high)
        return high

    def begin(self, rows: int) -> dict[str, Array]:
        """Return empty caches, and other states of zeros."""
        empty = {cache.past: np.zeros(cache.shape(rows, 0), cache.dtype) for cache in self._growing.caches}
        for name in self._growing.states:
            tensor = self._declared[name]
            empty[name] = np.zeros([d if isinstance(d, int) else rows for d in tensor.dims], tensor.dtype)
        return empty

    def full(self, rng: np.random.Generator, steps: int) -> dict[str, Array]:
        """Return random caches of so many timesteps, for one row."""
        made = self.begin(1)
        for cache in self._growing.caches:
            made[cache.past] = rng.standard_normal(cache.shape(1, steps)).astype(cache.dtype)
        return made

    def step(
        self, sent: Mapping[str, Array], states: Mapping[str, Array], count: int
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Run one timestep; return the outputs and the next states.

        Args:
            sent: What a caller sends, in the graph's shapes.
            states: From `begin` or the timestep before.
            count: Timesteps before this one.

        Raises:
            ModelLoadError: The graph fails.
            ParityError: A cache is not what it was with the new timestep behind it.
        """
        growing, first = self._growing, self._growing.caches[0]
        rows, steps = (states[first.past].shape[axis] for axis in (first.batch, first.axis))
        feeds = {**sent, **states, **self._constants}
        if growing.mask is not None:
            feeds[growing.mask.name] = np.ones((rows, steps + 1), growing.mask.dtype)
        if growing.position is not None:
            shape = (rows, 1) if len(growing.position.dims) == 2 else (1,)
            feeds[growing.position.name] = np.full(shape, count, growing.position.dtype)
        try:
            found = dict(zip(self._outputs, self._session.run(None, feeds, run_options()), strict=True))
        except Exception as exc:
            raise ModelLoadError(f"onnxruntime {ort.__version__} failed in {self.path}: {str(exc).strip()}.") from exc
        after = {before: found[output] for before, output in growing.states.items()}
        for cache in growing.caches:
            before, present = states[cache.past], found[cache.present]
            size = present.shape[cache.axis]
            if size != steps + 1 or not nearly_equal(np.take(present, range(steps), axis=cache.axis), before):
                raise ParityError(
                    f"{cache.present!r} of {self.path} does not begin with what it was, {cache.past!r}, or is not one "
                    "timestep longer.",
                    fix="Nothing was written. Export a model that adds the new timestep behind those before it.",
                )
            kept = range(max(0, size - self.length + 1), size)
            after[cache.past] = np.take(present, kept, axis=cache.axis)
        return found, after

    def bounded(self, states: Mapping[str, Array], count: int) -> dict[str, Array]:
        """Return the same states for the bounded graph, rows in front: zeros are before what there is."""
        made: dict[str, Array] = {COUNT: np.full((1, 1), count, np.int64)}
        for name in self._growing.states:
            made[name] = states[name]
        for cache in self._growing.caches:
            wanted: Array = np.zeros(cache.shape(1, self.length - 1), cache.dtype)
            there = states[cache.past]
            place = [slice(None)] * wanted.ndim
            place[cache.axis] = slice(wanted.shape[cache.axis] - there.shape[cache.axis], None)
            wanted[tuple(place)] = there
            made[cache.state] = np.moveaxis(wanted, cache.batch, 0)
        return made
