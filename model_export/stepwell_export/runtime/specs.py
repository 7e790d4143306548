"""What the manifest declares of each tensor: inputs, outputs, states, constants, windows, and how a tensor is JSON."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

Array = npt.NDArray[Any]
"""An array of any dtype; shape and dtype are in the docstring of what uses it."""

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


class ManifestPart(BaseModel):
    """A part of the manifest: unknown keys are kept, values are never coerced."""

    model_config = ConfigDict(extra="allow", strict=True, populate_by_name=True)


class PackedTensor(ManifestPart):
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


def shape_of_rows(row: Sequence[int], batch_axis: int | None, rows: int) -> tuple[int, ...]:
    """Return the shape of so many rows in the graph; without batch axis it is the row's."""
    return tuple(row) if batch_axis is None else (*row[:batch_axis], rows, *row[batch_axis:])


def _are_texts(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(text, str) for text in found)


class TensorSpec(ManifestPart):
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

    def placed(self, graph_row: Sequence[int], batch_axis: int | None) -> Self:
        """Return the same tensor with its row, of as many elements, and its batch axis elsewhere in the graph."""
        row = list(graph_row)
        update = {"batch_axis": batch_axis, "graph_shape": None if row == self.shape else row}
        return self.model_copy(update=update)

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

    @model_validator(mode="after")
    def _has_texts_for_people(self) -> TensorSpec:
        extra = self.model_extra or {}
        labels, unit = extra.get("labels") or [], extra.get("unit") or ""
        if not _are_texts(labels):
            raise ValueError(f"{self.name!r} has labels {labels!r}; expected a list of texts")
        if not (isinstance(unit, str) or _are_texts(unit)):
            raise ValueError(f"{self.name!r} has unit {unit!r}; expected a text, or a list with one for each number")
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


class StageSpec(ManifestPart):
    """The stage that learns, and of which an output is a value.

    Attributes:
        kind: The stage: `AdaptiveThreshold`, `Conformal`, `IntervalCoverage` or `Readout`.
        value: Which value it is, by its documented name, such as `low`.
        of: The value that the stage reads: the output or input that a threshold or an interval belongs to.
        truth: The input that the truth is in, `x`, or one of its numbers, `x[0]`; None: the stage has no truth.
        horizon: After how many timesteps the truth of a prediction comes.
    """

    kind: str
    value: str
    of: str
    truth: str | None = None
    horizon: Annotated[int, Field(ge=1)] = 1

    @property
    def truth_place(self) -> tuple[str, int | None]:
        """The input that the truth is in, and the index of its number there; None: the whole row."""
        name, bracket, rest = (self.truth or "").partition("[")
        return name, int(rest.removesuffix("]")) if bracket else None


class OutputSpec(TensorSpec):
    """A tensor that the graph gives for each timestep.

    Attributes:
        kind: `value` is answered; `random` is answered but differs from run to run; `ignore` is left out.
        latency: How many samples its newest sample is behind the newest one of the input; None: it has no samples. It
            is written where it is known.
        tensor: Its name in the graph, where an input has the name that it is answered by; None: its own.
        stage: The stage that learns and has computed it; None: none has.
    """

    kind: Literal["value", "random", "ignore"] = "value"
    latency: Annotated[int, Field(ge=0)] | None = None
    tensor: str | None = None
    stage: StageSpec | None = None

    @property
    def graph_name(self) -> str:
        """Its name in the graph."""
        return self.tensor or self.name

    @property
    def is_distributed(self) -> bool:
        """Whether drift is computed from its distribution: not for outputs of 0 and 1."""
        return bool((self.model_extra or {}).get("drift", True))

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        unset = {"latency", "tensor", "stage"} - self.model_fields_set
        return {key: value for key, value in written.items() if key not in unset}


class StateSpec(ManifestPart):
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
        are_floats = self.dtype.startswith("float") and self.store_dtype.startswith("float")
        if self.store_dtype != self.dtype and not are_floats:
            raise ValueError(
                f"state {self.input!r} has store_dtype {self.store_dtype}; expected {self.dtype}: only a float may be "
                "stored as another one"
            )
        if self.batch_axis is not None and self.batch_axis > len(self.shape):
            raise ValueError(
                f"state {self.input!r} has batch_axis {self.batch_axis}; its row has {len(self.shape)} axes"
            )
        return self

    @property
    def is_learned(self) -> bool:
        """Whether a stage has learned it, or delays what it learns from: it is stored as it is."""
        return bool((self.model_extra or {}).get("learned", False))

    @property
    def row_shape(self) -> tuple[int, ...]:
        """One row, without batch axis."""
        return tuple(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in the store."""
        return math.prod(self.shape) * np.dtype(self.store_dtype).itemsize

    def placed(self, row: Sequence[int], batch_axis: int | None) -> Self:
        """Return the same state with another row, of as many elements, and another batch axis."""
        init = self.init if self.init == "zeros" else PackedTensor.pack(self.initial().reshape(row))
        return self.model_copy(update={"batch_axis": batch_axis, "shape": list(row), "init": init})

    def initial(self) -> Array:
        """Return the initial row, shape `row_shape`, dtype `dtype`."""
        return np.zeros(self.shape, self.dtype) if self.init == "zeros" else self.init.unpack()


class ConstantSpec(ManifestPart):
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


class WindowSpec(ManifestPart):
    """Past input that a graph takes again in front of the new one.

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
