"""The manifest: what a step graph takes, gives and carries from step to step.

It lives as JSON inside the ONNX file (`metadata_props`, key `stepwell.manifest`), or beside the file as
`<file>.stepwell.json`, which wins. Shapes are those of one row on the wire: without batch axis and without
time axis; where the graph's own row has another shape (say a time axis of length 1), `graph_shape` has it.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from model_export.errors import ManifestError

Array = npt.NDArray[Any]
"""An array of any dtype; its docstring says shape and dtype."""

METADATA_KEY = "stepwell.manifest"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DTYPES = (
    "float32", "float64", "float16", "int64", "int32", "int16", "int8",
    "uint64", "uint32", "uint16", "uint8", "bool",
)  # fmt: skip


def _known_dtype(value: Any) -> Any:
    if value not in DTYPES:
        raise ValueError(f"dtype is {value!r}; expected one of {', '.join(DTYPES)}")
    return value


DType = Annotated[str, BeforeValidator(_known_dtype)]
Dim = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    """A part of the manifest: unknown keys are kept, values are never coerced."""

    model_config = ConfigDict(extra="allow", strict=True, populate_by_name=True)


class PackedTensor(_Part):
    """A tensor as JSON: dtype `d`, shape `s`, base64 of its little-endian C-order bytes `b`."""

    d: DType
    s: list[Dim]
    b: str

    @classmethod
    def pack(cls, array: Array) -> PackedTensor:
        """Pack an array of any shape."""
        raw = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        return cls(d=array.dtype.name, s=list(array.shape), b=base64.b64encode(raw).decode("ascii"))

    def unpack(self) -> Array:
        """Return the array, writable."""
        raw = base64.b64decode(self.b, validate=True)
        return np.frombuffer(raw, np.dtype(self.d).newbyteorder("<")).reshape(self.s).astype(self.d)

    @model_validator(mode="after")
    def _bytes_fit(self) -> PackedTensor:
        found = len(base64.b64decode(self.b, validate=True))
        expected = math.prod(self.s) * np.dtype(self.d).itemsize
        if found != expected:
            raise ValueError(f"tensor has {found} bytes; shape {self.s} of {self.d} needs {expected}")
        return self


Init = Annotated[
    Annotated[Literal["zeros"], Tag("text")] | Annotated[PackedTensor, Tag("tensor")],
    Discriminator(lambda value: "text" if isinstance(value, str) else "tensor"),
]
"""What stands before the first timestep."""


class TensorSpec(_Part):
    """One row of a tensor: what travels on the wire.

    Attributes:
        name: The tensor's name in the graph.
        dtype: NumPy name, little-endian on the wire.
        shape: One row, without batch axis and without time axis.
        batch_axis: Where the graph has its batch axis; None where it has none.
        graph_shape: The graph's row (without batch axis) where it differs from `shape`;
            always the same number of elements.
    """

    name: str
    dtype: DType
    shape: list[Dim]
    batch_axis: Annotated[int, Field(ge=0)] | None = 0
    graph_shape: list[Dim] | None = None

    @property
    def row_shape(self) -> tuple[int, ...]:
        """One row on the wire."""
        return tuple(self.shape)

    @property
    def graph_row_shape(self) -> tuple[int, ...]:
        """One row in the graph, without batch axis."""
        return tuple(self.shape if self.graph_shape is None else self.graph_shape)

    @property
    def row_size(self) -> int:
        """Elements in one row."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row on the wire."""
        return self.row_size * np.dtype(self.dtype).itemsize

    @model_validator(mode="after")
    def _same_elements(self) -> TensorSpec:
        if math.prod(self.graph_row_shape) != self.row_size:
            raise ValueError(
                f"{self.name!r} has shape {self.shape} but graph_shape {self.graph_shape}; "
                "both must have the same number of elements"
            )
        if self.batch_axis is not None and self.batch_axis > len(self.graph_row_shape):
            raise ValueError(
                f"{self.name!r} has batch_axis {self.batch_axis}; its graph row has "
                f"{len(self.graph_row_shape)} axes, so at most {len(self.graph_row_shape)}"
            )
        return self


class InputSpec(TensorSpec):
    """A tensor that the caller sends with each timestep.

    Attributes:
        missing: `refuse`: every value is a finite number. `nan`: values may be missing, and reach the graph as NaN; the
            graph replaces them.
    """

    missing: Literal["refuse", "nan"] = "refuse"

    @model_validator(mode="after")
    def _can_be_missing(self) -> InputSpec:
        if self.missing == "nan" and not self.dtype.startswith("float"):
            raise ValueError(f"{self.name!r} is {self.dtype} and has missing 'nan'; expected a float, which NaN is")
        return self


class OutputSpec(TensorSpec):
    """A tensor that the graph gives for each timestep.

    Attributes:
        kind: `value` is answered; `random` is answered but differs from run to run; `ignore` is left out.
    """

    kind: Literal["value", "random", "ignore"] = "value"


class StateSpec(_Part):
    """A tensor carried from step to step: the graph's state input and state output.

    Attributes:
        input: State input of the graph (`in` in the JSON).
        output: State output of the graph (`out` in the JSON).
        dtype: Type in the graph.
        shape: One row, without batch axis; the whole tensor where `batch_axis` is None.
        batch_axis: Where the graph has its batch axis; None: no batch axis, the model runs one row at a time.
        init: `"zeros"`, or the initial row.
        store_dtype: Type in the store; `float16` halves the memory of a float32 state.
    """

    input: str = Field(alias="in")
    output: str = Field(alias="out")
    dtype: DType
    shape: list[Dim]
    batch_axis: Annotated[int, Field(ge=0)] | None = 0
    init: Init = "zeros"
    store_dtype: DType = ""

    @model_validator(mode="before")
    @classmethod
    def _stored_as_computed(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("store_dtype") and "dtype" in data:
            return {**data, "store_dtype": data["dtype"]}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> StateSpec:
        if isinstance(self.init, PackedTensor) and (self.init.s != self.shape or self.init.d != self.dtype):
            raise ValueError(
                f"state {self.input!r} has init {self.init.d}{self.init.s}; expected {self.dtype}{self.shape}"
            )
        if self.batch_axis is not None and self.batch_axis > len(self.shape):
            raise ValueError(
                f"state {self.input!r} has batch_axis {self.batch_axis}; its row has {len(self.shape)} axes"
            )
        return self

    @property
    def row_shape(self) -> tuple[int, ...]:
        """One row, without batch axis."""
        return tuple(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in the store."""
        return math.prod(self.shape) * np.dtype(self.store_dtype).itemsize

    def initial(self) -> Array:
        """Return the initial row, shape `row_shape`, dtype `dtype`."""
        return np.zeros(self.shape, self.dtype) if self.init == "zeros" else self.init.unpack()


class ConstantSpec(_Part):
    """A graph input that never changes: fed by Stepwell, never by the caller.

    Attributes:
        value: A number, a boolean, or nested lists of them; the shape follows from it.
    """

    dtype: DType
    value: Any

    @model_validator(mode="after")
    def _fits_dtype(self) -> ConstantSpec:
        try:
            exact = np.asarray(self.value)  # raises where nested lists differ in length
        except ValueError:
            exact = np.asarray("")
        with np.errstate(all="ignore"):
            fits = exact.dtype.kind in "biuf" and (
                np.dtype(self.dtype).kind == "f" or np.array_equal(exact.astype(self.dtype), exact)
            )
        if not fits:
            raise ValueError(f"value is {self.value!r}; expected what {self.dtype} can hold: numbers, or lists of them")
        return self

    def array(self) -> Array:
        """Return the constant as the graph takes it."""
        return np.asarray(self.value, self.dtype)


class WindowSpec(_Part):
    """Past input that a graph wants to see again in front of the new one.

    The caller sends the new part alone; Stepwell keeps the last `context` elements and puts them in front.
    It does so in the graph's own axes, so a windowed input has no `graph_shape`.

    Attributes:
        input: The input's name; its `shape` in the manifest is the new part.
        context: Length of the past part, in elements along `axis`.
        axis: Axis of the row (without batch axis) along which both are joined.
        init: What stands there before the first timestep.
    """

    input: str
    context: Annotated[int, Field(ge=1)]
    axis: Annotated[int, Field(ge=0)] = 0
    init: Init = "zeros"

    @property
    def state_name(self) -> str:
        """The name under which the past part is carried among the states."""
        return f"{self.input}.context"


class TimeSpec(_Part):
    """How the graph takes time.

    Attributes:
        chunk: `step`: one timestep a run. `dynamic`: the graph has a time axis of any length
            right behind the batch axis of every input and output.
    """

    chunk: Literal["step", "dynamic"] = "step"


class BatchSpec(_Part):
    """How rows are run together.

    Attributes:
        mode: `stack`: many rows in one run. `single`: one row a run.
        max: Most rows in one run.
    """

    mode: Literal["stack", "single"] = "stack"
    max: Annotated[int, Field(ge=1)] = 256


class Parity(_Part):
    """The report of the verification at export.

    Attributes:
        against: The original and its version, say `keras 3.15.1`.
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


class FeatureReference(_Part):
    """How one number of a row was distributed in the own data of the verification.

    Attributes:
        count: Values that were there.
        missing: Share of the values that were missing.
        min: The smallest value; None: all were missing.
        max: The largest value.
        quantiles: Quantiles by their share as text, say `"0.5"`; each is one of the values.
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


class DataReference(_Part):
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


class Manifest(_Part):
    """Everything about a step graph that its ONNX file does not say by itself."""

    format: Literal[1] = 1
    name: str = "model"
    time: TimeSpec = Field(default_factory=TimeSpec)
    inputs: list[InputSpec]
    states: list[StateSpec] = Field(default_factory=list)
    outputs: list[OutputSpec]
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
        taken = [i.name for i in self.inputs] + [s.input for s in self.states] + list(self.constants)
        given = [o.name for o in self.outputs]
        for names, what in ((taken, "input"), (given, "output"), ([s.output for s in self.states], "state output")):
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{what} {name!r} is declared {names.count(name)} times; expected once")
        if not self.inputs:
            raise ValueError("inputs is empty; expected at least one, for a timestep to be sent in")
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
