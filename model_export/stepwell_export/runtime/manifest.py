"""The manifest: what a step graph takes, gives and carries from step to step.

It lives as JSON inside the ONNX file (`metadata_props`, key `stepwell.manifest`), or beside the file as
`<file>.stepwell.json`, which wins. Shapes are those of one row on the wire: without batch axis and without
time axis; where the graph's own row has another shape (such as a time axis of length 1), `graph_shape` has it.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from stepwell_export.runtime.durations import duration_of
from stepwell_export.runtime.errors import ManifestError
from stepwell_export.runtime.specs import (
    DTYPES,
    Array,
    ConstantSpec,
    Init,
    InputSpec,
    ManifestPart,
    OutputSpec,
    PackedTensor,
    StateSpec,
    TensorSpec,
    WindowSpec,
)

# the specs of tensors are in a module of their own, and imported from here
__all__ = [
    "DTYPES", "METADATA_KEY", "NAME", "Array", "BatchSpec", "ConstantSpec", "DataReference",
    "FeatureReference", "Init", "InputSpec", "Manifest", "OutputSpec", "PackedTensor", "Parity", "StateSpec",
    "TensorSpec", "TimeSpec", "WindowSpec", "sidecar_of",
]  # fmt: skip

METADATA_KEY = "stepwell.manifest"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class TimeSpec(ManifestPart):
    """How the graph takes time.

    Attributes:
        chunk: `step`: one timestep a run. `dynamic`: the graph has a time axis of any length
            right behind the batch axis of every input and output.
    """

    chunk: Literal["step", "dynamic"] = "step"


class BatchSpec(ManifestPart):
    """How rows are run together.

    Attributes:
        mode: `stack`: many rows in one run. `single`: one row a run.
        max: Most rows in one run.
    """

    mode: Literal["stack", "single"] = "stack"
    max: Annotated[int, Field(ge=1)] = 256

    @property
    def why(self) -> str:
        """Why one row a run: the node and what it does, where the exporter or `adopt` has found that; else empty."""
        return str((self.model_extra or {}).get("reason", ""))

    def single(self, reason: str) -> BatchSpec:
        """Return the same with one row a run."""
        return BatchSpec.model_validate({**self.model_dump(), "mode": "single", "reason": reason})


class Parity(ManifestPart):
    """The report of the verification at export.

    Attributes:
        against: The original and its version, for example `keras 3.15.1`.
        steps: Timesteps of each compared sequence.
        max_abs: Largest absolute difference found.
        atol: Absolute tolerance that was demanded.
        rtol: Relative tolerance that was demanded.
        sequences: What was compared: `random`, `masked`, `user`.
    """

    against: str
    steps: int
    max_abs: float
    atol: float
    rtol: float
    sequences: list[str] = Field(default_factory=list)


class FeatureReference(ManifestPart):
    """How one number of a row was distributed in the own data of the verification.

    Attributes:
        count: Values that were there.
        missing: Share of the values that were missing.
        min: The smallest value; None: all were missing.
        max: The largest value.
        quantiles: Quantiles by their share as text, for example `"0.5"`; each is one of the values.
        edges: Ascending; between them are the bins of `shares`. Bin i has the values with i edges below them.
        shares: Share of the values in each bin.
        tenth: The same of the tenth of the sequences that deviated most; None: they were like the others, or too few.
    """

    count: Annotated[int, Field(ge=0)]
    missing: float
    min: float | None = None
    max: float | None = None
    quantiles: dict[str, float] = Field(default_factory=dict)
    edges: Annotated[list[float], Field(max_length=10)] = Field(default_factory=list)
    shares: Annotated[list[float], Field(max_length=11)] = Field(default_factory=list)
    tenth: Annotated[list[float], Field(max_length=11)] | None = None

    @model_validator(mode="after")
    def _is_distribution(self) -> FeatureReference:
        if any(a >= b for a, b in itertools.pairwise(self.edges)):
            raise ValueError(f"edges are {self.edges}; expected ascending numbers")
        for shares in (self.shares, self.tenth):
            if shares and (min(shares) < 0 or abs(sum(shares) - 1) > 1e-6):
                raise ValueError(f"shares are {shares}; expected shares of 1")
        return self


class DataReference(ManifestPart):
    """The distributions of the own data that the model was verified on, which live data is compared with.

    Attributes:
        sequences: How many sequences.
        timesteps: How many timesteps, over all sequences.
        inputs: By number of a row, such as `x[0]`.
        outputs: The same of what the step graph computed.
    """

    sequences: int
    timesteps: int
    inputs: dict[str, FeatureReference]
    outputs: dict[str, FeatureReference]


class Manifest(ManifestPart):
    """Everything about a step graph that its ONNX file does not declare itself.

    Attributes:
        learn: The input `(batch,)` bool, or `(batch, T)`, which marks the timesteps that are learned from.
            It is not sent: it is false in rollouts, else true. None: the graph learns nothing.
        latency: The largest latency of the outputs, in samples; None: none of them has samples.
        every: The time from one timestep to the next in the training data, such as `1s`; None: it is not known, or is
            not always the same.
    """

    format: Literal[1] = 1
    name: str = "model"
    time: TimeSpec = Field(default_factory=TimeSpec)
    inputs: list[InputSpec]
    states: list[StateSpec] = Field(default_factory=list)
    outputs: list[OutputSpec]
    learn: str | None = None
    latency: Annotated[int, Field(ge=0)] | None = None
    every: str | None = None
    constants: dict[str, ConstantSpec] = Field(default_factory=dict)
    windows: list[WindowSpec] = Field(default_factory=list)
    feedback: dict[str, Any] = Field(default_factory=dict)
    batch: BatchSpec = Field(default_factory=BatchSpec)
    verified: Parity | None = None
    reference: DataReference | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name is {self.name!r}; expected {NAME.pattern}")
        taken = [i.name for i in self.fed] + [s.input for s in self.states] + list(self.constants)
        given = [o.name for o in self.outputs]
        for names, what in ((taken, "input"), (given, "output"), ([s.output for s in self.states], "state output")):
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{what} {name!r} is declared {names.count(name)} times; expected once")
        if not self.inputs:
            raise ValueError("inputs is empty; expected at least one, for a timestep to be sent in")
        if self.every is not None and not duration_of(self.every):
            raise ValueError(f"every is {self.every!r}; expected a duration such as 1s, 500ms or 1m")
        self._check_windows()
        return self

    def _check_windows(self) -> None:
        by_name = {i.name: i for i in self.inputs}
        for window in self.windows:
            what = f"window of {window.input!r}"
            if window.input not in by_name:
                raise ValueError(f"{what}: no such input; inputs are {sorted(by_name)}")
            spec = by_name[window.input]
            if [w.input for w in self.windows].count(window.input) > 1:
                raise ValueError(f"{what} is declared twice; expected once")
            if window.axis >= len(spec.shape):
                raise ValueError(f"{what}: axis {window.axis} is not in its row shape {spec.shape}")
            if spec.graph_shape not in (None, spec.shape):
                raise ValueError(f"{what}: its input has graph_shape {spec.graph_shape}; expected none")
            past = [*spec.shape[: window.axis], window.context, *spec.shape[window.axis + 1 :]]
            if isinstance(window.init, PackedTensor) and (window.init.d, window.init.s) != (spec.dtype, past):
                raise ValueError(f"{what} has init {window.init.d}{window.init.s}; expected {spec.dtype}{past}")
            if any(state.input == window.state_name for state in self.states):
                raise ValueError(f"{what}: a state is named {window.state_name!r} too; that name is the window's")

    @property
    def fed(self) -> list[InputSpec]:
        """What the graph is fed in each timestep: the inputs, then `learn` where there is one."""
        return [*self.inputs, *([InputSpec(name=self.learn, dtype="bool", shape=[])] if self.learn is not None else [])]

    @property
    def answered(self) -> list[OutputSpec]:
        """Outputs that the caller gets, in graph order."""
        return [output for output in self.outputs if output.kind != "ignore"]

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str) -> Manifest:
        """Parse a manifest.

        Args:
            text: The JSON.
            where: What it was read from, for the message.

        Raises:
            ManifestError: It is not JSON, or not a manifest.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as exc:
            first = exc.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the document"
            raise ManifestError(
                f"The manifest in {where} is wrong at {place}: {first['msg'].removeprefix('Value error, ')}.",
                fix="Write it again with `stepwell export` or `stepwell adopt`, or mend that key.",
            ) from exc

    def to_json(self, *, indent: int | None = None) -> str:
        """Return the manifest as JSON, keys as in the file format, unknown ones included."""
        return json.dumps(self.model_dump(mode="json", by_alias=True, exclude_none=False), indent=indent)


def sidecar_of(model_file: Path) -> Path:
    """Return where a model file's manifest lies when it is not inside the file."""
    return model_file.with_name(model_file.name + ".stepwell.json")
