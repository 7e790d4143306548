"""`ObservedModel`: what one worker counts of one model version: its sampler, its tracked streams and its sketches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stepwell.addons.drift.features import ModelFeatures, ObservedTensor
from stepwell.addons.drift.sampler import BatchSampler
from stepwell.addons.drift.sketch import FeatureSketch
from stepwell.addons.drift.tracked_streams import TrackedStreams
from stepwell.addons.drift.windows import SketchName, SketchWindows
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.psi import bins_of

if TYPE_CHECKING:
    from stepwell.models.served import ServedModel
    from stepwell.store.state_store import StateStore

_random = np.random.default_rng()


class ObservedModel:
    """Counts the sampled timesteps of a model version.

    Attributes:
        model: The model's name.
        version: Its version.
        features: The features that are observed.
        sampler: Collects committed batches.
        windows: The sketches of this worker.
        name: What they are found by in the store.
    """

    def __init__(self, store: StateStore, served: ServedModel, limit: int, worker: str) -> None:
        """Observe a model version.

        Args:
            store: The store.
            served: The version.
            limit: The most features.
            worker: A name that no other worker has.
        """
        manifest = served.manifest
        self.model, self.version = served.name, served.version
        features, self.name = name_of(served, limit)
        self.features = features
        row_values = sum(spec.row_size for spec in (*manifest.inputs, *manifest.answered))
        self.sampler = BatchSampler(len(features), row_values)
        self.windows = SketchWindows(store, self.name, worker)
        self._tracked = TrackedStreams(features.moments) if features.has_reference else None

    def count(self, now: float) -> None:
        """Count the timesteps that were sampled since the last call; `now` is in seconds since 1970."""
        batches, limit = self.sampler.drain()
        if not batches or not len(self.features):
            return
        sketch = FeatureSketch.empty(len(self.features))
        names = [name for batch in batches for name in batch.names]
        slots = deviating = None
        if self._tracked is not None:
            deviating, slots = self._tracked.deviating(), self._tracked.slots_of(names)
        n_rows = [len(batch.names) for batch in batches]
        for tensors, sides in (
            (self.features.inputs, [batch.inputs for batch in batches]),
            (self.features.outputs, [batch.outputs for batch in batches]),
        ):
            for tensor in tensors:
                values, rows = _stacked(tensor, sides, n_rows, limit)
                if len(values):
                    self._count_tensor(sketch, tensor, values, None if slots is None else slots[rows], deviating)
        self.windows.add(sketch, now)

    def _count_tensor(
        self, sketch: FeatureSketch, tensor: ObservedTensor, values: Array, slots: Array | None, deviating: Array | None
    ) -> None:
        features, columns = self.features, tensor.columns
        sketch.add(values, columns, origins=features.origins[columns], bounds=features.bounds[:, columns])
        if self._tracked is None or slots is None or deviating is None:
            return
        bins = bins_of(values, features.edges[columns])
        sketch.count_bins(bins, columns)
        is_tracked = slots >= 0
        bins, slots = bins[is_tracked], slots[is_tracked]
        # The tenth was chosen by earlier values, so that the choice itself makes no difference to what is counted.
        sketch.count_bins(bins, columns, is_tenth=deviating[slots, columns])
        self._tracked.add(slots, bins, columns)


def name_of(served: ServedModel, limit: int) -> tuple[ModelFeatures, SketchName]:
    """Return the observed features of a model version, at most `limit`, and what their sketches are found by."""
    features = ModelFeatures(served.manifest, limit)
    return features, SketchName(served.name, served.fingerprint, features.digest, len(features))


def _stacked(
    tensor: ObservedTensor, sides: Sequence[Mapping[str, Array]], n_rows: Sequence[int], limit: int
) -> tuple[Array, Array]:
    """Return the values of the observed features of a tensor, and the row of each.

    Args:
        tensor: The tensor.
        sides: The inputs or outputs of each batch; a batch that returned no prediction has no outputs.
        n_rows: The number of rows of each batch.
        limit: The most timesteps to return.

    Returns:
        `(n, features)` float64, and `(n,)` int64, the indices of the rows over all batches.
    """
    arrays = [side.get(tensor.name) for side in sides]
    width = len(tensor.names)
    parts = [
        array.reshape(math.prod(array.shape[:2]), math.prod(array.shape[2:]))[:, :width]  # there may be no rows
        for array in arrays
        if array is not None
    ]
    if not parts:
        return np.empty((0, width)), np.empty(0, np.int64)
    lengths = [0 if array is None else array.shape[1] for array in arrays]
    values = np.concatenate(parts)
    rows = np.repeat(np.arange(sum(n_rows)), np.repeat(lengths, n_rows))
    if (every := -(-len(values) // limit)) > 1:
        # One of each `every` values, at random: rows are often sorted in a way that a regular choice would follow.
        firsts = np.arange(0, len(values) - every + 1, every)
        chosen = firsts + _random.integers(0, every, len(firsts))
        values, rows = values[chosen], rows[chosen]
    return values.astype(np.float64), rows
