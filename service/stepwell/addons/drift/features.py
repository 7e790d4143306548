"""`ModelFeatures`: the features of a model version that are observed, and their references."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

import numpy as np

from stepwell_export.runtime.labels import labels_of, labels_of_outputs
from stepwell_export.runtime.manifest import Array, FeatureReference, Manifest, TensorSpec
from stepwell_export.runtime.psi import BINS, bin_moments, feature_names, padded_edges

if TYPE_CHECKING:
    from collections.abc import Mapping

_OUTPUT_SHARE: Final = 4  # a quarter of the features is for outputs, if there are too many inputs


@dataclass(frozen=True, slots=True)
class ObservedTensor:
    """The observed features of one input or output.

    Attributes:
        name: The tensor.
        names: The names of its first features, in C order: `x[rpm]` where they have labels, else `x[0]`.
        keys: The names by which the manifest has their references: `x[0]`.
        start: Index of the first of them among the features of the model.
    """

    name: str
    names: list[str]
    keys: list[str]
    start: int

    @property
    def columns(self) -> slice:
        """The places of its features among those of the model."""
        return slice(self.start, self.start + len(self.names))


class ModelFeatures:
    """At most `limit` features of a model version: those of its inputs, then those of its outputs.

    Attributes:
        inputs: The observed inputs.
        outputs: The observed outputs.
        references: The reference of each feature; None: it has none.
        has_reference: Whether the manifest has a reference.
    """

    def __init__(self, manifest: Manifest, limit: int) -> None:
        """Choose the features.

        Args:
            manifest: The model's manifest.
            limit: The most features.
        """
        n_inputs = sum(spec.row_size for spec in manifest.inputs)
        outputs = [spec for spec in manifest.answered if spec.is_distributed]
        n_outputs = sum(spec.row_size for spec in outputs)
        kept_for_outputs = min(n_outputs, max(math.ceil(limit / _OUTPUT_SHARE), limit - n_inputs))
        self.inputs = list(_observed(manifest.inputs, 0, limit - kept_for_outputs))
        start = sum(len(tensor.names) for tensor in self.inputs)
        self.outputs = list(_observed(outputs, start, kept_for_outputs, labels_of_outputs(manifest)))
        reference = manifest.reference
        self.has_reference = reference is not None
        by_side: list[tuple[list[ObservedTensor], Mapping[str, FeatureReference]]] = [
            (self.inputs, {} if reference is None else reference.inputs),
            (self.outputs, {} if reference is None else reference.outputs),
        ]
        self.references: list[FeatureReference | None] = [
            references.get(key) for tensors, references in by_side for tensor in tensors for key in tensor.keys
        ]

    def __len__(self) -> int:
        return len(self.references)

    @cached_property
    def edges(self) -> Array:
        """The edges of the bins, `(features, BINS - 1)` float64."""
        return np.array([padded_edges(reference) for reference in self.references]).reshape(-1, BINS - 1)

    @cached_property
    def bounds(self) -> Array:
        """The smallest and the largest value of the reference, `(2, features)`; infinite without one."""
        pairs = [
            (-math.inf, math.inf) if one is None or one.min is None or one.max is None else (one.min, one.max)
            for one in self.references
        ]
        return np.array(pairs, np.float64).reshape(-1, 2).T

    @cached_property
    def origins(self) -> Array:
        """The value from which the sketch's relative error counts: the reference's median, or zero, `(features,)`."""
        medians = [0.0 if one is None else one.quantiles.get("0.5", 0.0) for one in self.references]
        return np.array(medians, np.float64)

    @cached_property
    def moments(self) -> Array:
        """Mean and standard deviation of the bins of the reference, `(2, features)`; zeros without one."""
        return np.array([bin_moments([] if one is None else one.shares) for one in self.references]).reshape(-1, 2).T

    @cached_property
    def digest(self) -> str:
        """A name of what the sketches depend on: names, edges, bounds and origins; equal in all replicas."""
        names = "\n".join(key for tensor in (*self.inputs, *self.outputs) for key in tensor.keys)
        arrays = (self.edges, self.bounds, self.origins)
        return blake2b(names.encode() + b"".join(each.tobytes() for each in arrays), digest_size=6).hexdigest()


def _observed(
    specs: Sequence[TensorSpec], start: int, limit: int, labels: Mapping[str, Sequence[str]] | None = None
) -> Iterator[ObservedTensor]:
    for spec in specs:
        keys = feature_names(spec, limit)
        known = labels_of(spec) if labels is None else labels[spec.name]
        names = [f"{spec.name}[{label}]" for label in known[: len(keys)]]
        if keys:
            yield ObservedTensor(spec.name, names or keys, keys, start)
        start, limit = start + len(keys), limit - len(keys)
