"""`Precision`: fewer bits than the original's, in a step graph's weights and in its stored states."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from stepwell_export.converted import ConvertedModel
from stepwell_export.runtime.errors import ParityError, RefusedModelError
from stepwell_export.runtime.manifest import Manifest
from stepwell_export.runtime.outside_weights import file_size
from stepwell_export.runtime.state_packing import pack_layout
from stepwell_export.runtime.step_model import StepModel, random_rows
from stepwell_export.verify.runners import stepped
from stepwell_export.verify.tolerance import ATOL, RTOL, Tolerance, difference, largest
from stepwell_export.weights import ATOL as WEIGHTS_ATOL
from stepwell_export.weights import SMALLEST, Weights, compress_weights

StoreDType = Literal["float16"]

STORE_ATOL: dict[StoreDType, float] = {"float16": 5e-3}


@dataclass(frozen=True, slots=True)
class Precision:
    """What is kept in fewer bits; nothing by default.

    Attributes:
        weights: Format of the weights in the file.
        store_dtype: Type of float states in the store.
    """

    weights: Weights | None = None
    store_dtype: StoreDType | None = None

    @property
    def atol(self) -> float:
        """Default absolute tolerance of the parity check, as a part of each output's largest value."""
        weights = WEIGHTS_ATOL[self.weights] if self.weights else ATOL
        return max(weights, STORE_ATOL[self.store_dtype] if self.store_dtype else ATOL)

    @property
    def rtol(self) -> float:
        """Default tolerance relative to the original's value."""
        return max(self.atol, RTOL)

    @property
    def in_words(self) -> str:
        """What is stored in fewer bits; empty: nothing."""
        weights = f"the weights are stored as {self.weights}" if self.weights else ""
        states = f"the states are stored as {self.store_dtype}" if self.store_dtype else ""
        return " and ".join(filter(None, [weights, states]))

    def kept_in(self, candidate: ConvertedModel) -> str:
        """What a candidate keeps as it is, in words behind `in_words`; empty: nothing."""
        weights = "constants of stages stay as they are" if self.weights and candidate.constants else ""
        is_learned = any(state.is_learned for state in candidate.manifest.states)
        states = "what stages have learned stays as it is, float64" if self.store_dtype and is_learned else ""
        return " and ".join(filter(None, [weights, states]))

    def lower(self, candidate: ConvertedModel) -> ConvertedModel:
        """Return the candidate with fewer bits, not yet verified against its original; itself if nothing is lowered.

        Raises:
            RefusedModelError: It has nothing to store in fewer bits.
        """
        if self == FULL:
            return candidate
        proto, manifest = candidate.proto, candidate.manifest
        if self.weights:
            proto = compress_weights(proto, self.weights, kept=candidate.constants)
            if file_size(proto) >= file_size(candidate.proto):
                raise RefusedModelError(
                    f"Model {manifest.name!r} has no float32 weight large enough to be smaller as {self.weights}; "
                    f"expected one of {SMALLEST} numbers or more.",
                    fix="Leave out `--weights`.",
                )
            manifest = manifest.model_copy(update={"weights": self.weights})
        if self.store_dtype:
            manifest = store_as(manifest, self.store_dtype)
        learned = candidate.learned
        if learned is not None and learned.front is not None:
            learned = replace(learned, front=self._lower_front(learned.front))
        return replace(candidate, proto=proto, manifest=manifest, learned=learned)

    def _lower_front(self, front: ConvertedModel) -> ConvertedModel:
        """Return the graph in front of what learns with the same bits as the whole, where it has any to save."""
        lowered = front
        for part in (Precision(weights=self.weights), Precision(store_dtype=self.store_dtype)):
            with suppress(RefusedModelError):
                lowered = part.lower(lowered)
        return lowered


FULL = Precision()


@dataclass(frozen=True, slots=True)
class StoreEffect:
    """What a narrower type in the store does to a model.

    Attributes:
        dtype: The type.
        saved: Bytes of a stream's state before and after.
        steps: Timesteps that were compared.
        max_abs: Largest difference of an answer from what it is with states in full.
    """

    dtype: StoreDType
    saved: tuple[int, int]
    steps: int
    max_abs: float


def saved(before: ConvertedModel, after: ConvertedModel, written: int | None = None) -> dict[str, tuple[int, int]]:
    """Return what became smaller, in bytes before and after: `file`, `bytes_per_stream`.

    Args:
        before: The candidate in full.
        after: The one with fewer bits.
        written: The size of its file, with the manifest and what chunks add; both have that.
    """
    more = 0 if written is None else written - file_size(after.proto)
    sizes = {
        "file": (file_size(before.proto) + more, file_size(after.proto) + more),
        "bytes_per_stream": (stream_bytes(before.manifest), stream_bytes(after.manifest)),
    }
    return {name: (was, now) for name, (was, now) in sizes.items() if now < was}


def stream_bytes(manifest: Manifest) -> int:
    """Return how many bytes the store keeps for each stream's state."""
    return sum(field.nbytes for field in pack_layout(manifest))


def store_as(manifest: Manifest, dtype: StoreDType) -> Manifest:
    """Return the manifest with every wider float state stored in this type, but for what stages have learned.

    Raises:
        RefusedModelError: There is none.
    """
    wide = {
        s.input
        for s in manifest.states
        if np.dtype(s.dtype).kind == "f" and np.dtype(s.dtype).itemsize > 2 and not s.is_learned
    }
    if not wide:
        raise RefusedModelError(
            f"Model {manifest.name!r} has no state in float32 or float64; expected one to store as {dtype}.",
            fix="Leave out `--store-dtype`.",
        )
    states = [s.model_copy(update={"store_dtype": dtype}) if s.input in wide else s for s in manifest.states]
    return manifest.model_copy(update={"states": states})


def narrow_store(
    source: Path | bytes, manifest: Manifest, dtype: StoreDType, *, steps: int = 100
) -> tuple[Manifest, StoreEffect]:
    """Let a model's float states be stored in a narrower type, and measure what it does to the answers.

    Raises:
        RefusedModelError: It has no float state.
        ParityError: An answer moves by more than is allowed for this type, or a state does not fit into it.
    """
    narrow = store_as(manifest, dtype)
    rng = np.random.default_rng(4)
    inputs = {spec.name: random_rows(rng, spec, (3, steps)) for spec in manifest.inputs}
    allowed = Tolerance(STORE_ATOL[dtype], STORE_ATOL[dtype], scaled=True)
    want, _ = stepped(StepModel(source, manifest), inputs, stored=False)
    got, _ = stepped(StepModel(source, narrow), inputs)
    most = 0.0
    for output in [output.name for output in manifest.answered if output.kind == "value"]:
        left, right = (answers[output].astype(np.float64) for answers in (want, got))
        off = difference(right, left)
        if not allowed.holds(right, left):
            limit = allowed.on(left)
            raise ParityError(
                f"With states stored as {dtype}, output {output!r} moves by {largest(off):.3g} in {steps} timesteps; "
                f"{limit.atol:.3g} + {limit.rtol:g} of the value is allowed.",
                fix="Leave out `--store-dtype`.",
            )
        most = max(most, largest(off))
    return narrow, StoreEffect(dtype, (stream_bytes(manifest), stream_bytes(narrow)), steps, most)
