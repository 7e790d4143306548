"""`OnnxOriginal`: the ONNX file that the user gave, run as it is, as the original of a comparison.

onnxruntime runs the bytes of the file. A sequence of another length than the file declares is run with the same nodes
and weights, without the declared shapes: no node is changed for a comparison. A file that onnxruntime does not load is
run by the evaluator of the onnx package: recurrent operators with `layout` 1 are such.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

from stepwell_export.runtime.errors import ModelLoadError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.outside_weights import with_weights_outside
from stepwell_export.runtime.session import open_session
from stepwell_export.verify.decisions.onnx import OnnxObserver
from stepwell_export.verify.decisions.record import Observed
from stepwell_export.verify.reference import PrefixAnswers, prefix_answers

Role = Literal["external", "state", "length"]


@dataclass(frozen=True, slots=True)
class InputLayout:
    """One input of a sequence graph.

    Attributes:
        name: The input.
        dtype: NumPy name.
        sizes: Of every axis; those of batch and time are an example.
        batch: Axis of the rows; None: it has none.
        time: Axis of the timesteps; None: one value for the whole sequence.
        role: `external` of the caller; the initial `state` of a recurrence, which becomes a state of the step graph;
            or the `length` of the sequences.
    """

    name: str
    dtype: str
    sizes: tuple[int, ...]
    batch: int | None = None
    time: int | None = None
    role: Role = "external"

    def shape(self, rows: int, steps: int) -> tuple[int, ...]:
        """Return the shape for so many rows and timesteps."""
        shape = list(self.sizes)
        for axis, size in ((self.batch, rows), (self.time, steps)):
            if axis is not None:
                shape[axis] = size
        return tuple(shape)

    def fixed(self, rows: int, steps: int) -> Array | None:
        """Return what an input that the caller does not send is fed with; None: the caller sends it."""
        if self.role == "external":
            return None
        return np.full(self.shape(rows, steps), steps if self.role == "length" else 0, self.dtype)

    def fed(self, data: Array, rows: Sequence[int], steps: int) -> Array:
        """Return some rows and the first timesteps of `(batch, T, *shape)` in this layout."""
        data = data[np.minimum(rows, len(data) - 1)]  # a graph for several rows only: the last one again
        data = data[:, :steps] if self.time is not None else data[:, 0]
        if self.batch is None:
            data = data[0]
        axes = [axis for axis in (self.batch, self.time) if axis is not None]
        return np.ascontiguousarray(np.moveaxis(data, list(range(len(axes))), axes))


@dataclass(frozen=True, slots=True)
class OutputLayout:
    """Where an output of the sequence graph has its axes.

    Attributes:
        time: Axis of the timesteps; None: one answer for the whole sequence.
        batch: Axis of the rows; None: it has none.
        extra: How many timesteps longer than the sequence it is.
        order: How a folded axis holds both: `BT` or `TB`; empty: they have an axis each.
        resized: What messages call the last node before it that gives more or fewer timesteps than it takes.
    """

    time: int | None
    batch: int | None
    extra: int = 0
    order: str = ""
    resized: str = ""

    def rows_first(self, value: Array, rows: int) -> Array:
        """Bring an output to `(batch, T or nothing, ..)`."""
        if self.order:
            assert self.time is not None
            steps = value.shape[self.time] // rows
            lead, tail = value.shape[: self.time], value.shape[self.time + 1 :]
            shape = (rows, steps) if self.order == "BT" else (steps, rows)
            place = self.time + (self.order == "TB")
            apart = value.reshape(*lead, *shape, *tail)
            return np.moveaxis(apart, [place, 2 * self.time + 1 - place], [0, 1])
        batch, time = self.batch, self.time
        if batch is None:
            value = value[None]
            batch, time = 0, None if time is None else time + 1
        if time is None:
            moved = np.moveaxis(value, batch, 0)
            return moved.reshape(rows, -1, *moved.shape[1:])[:, 0] if len(moved) == rows else moved.reshape(rows, -1)
        return np.moveaxis(value, [batch, time], [0, 1])


class OnnxOriginal:
    """Runs an ONNX file on whole sequences, as many rows at once as it takes."""

    def __init__(
        self,
        source: Path | str | onnx.ModelProto,
        inputs: Sequence[InputLayout],
        outputs: Mapping[str, OutputLayout],
        *,
        only_rows: int | None = None,
        only_steps: int | None = None,
        constants: Mapping[str, Array] | None = None,
    ) -> None:
        """Load the file.

        Args:
            source: The ONNX file, or what was read from it, which is left alone.
            inputs: The layouts of its inputs.
            outputs: The layouts of its outputs, by name.
            only_rows: The one number of rows that it takes; None: what it declares.
            only_steps: The one number of timesteps that it is run with where it declares one; None: any.
            constants: Inputs that are given once and for all.

        Raises:
            ModelLoadError: Neither onnxruntime nor the onnx package loads it.
        """
        self._source, self._constants = source, dict(constants or {})
        self._inputs, self._outputs = inputs, outputs
        self._lean, self._held = with_weights_outside(self._whole())
        graph = self._lean.graph
        declared = {value.name: value.type.tensor_type.shape.dim for value in graph.input}
        self._sizes = {name: [int(dim.dim_value) for dim in dims] for name, dims in declared.items()}  # 0: open
        sent = [layout for layout in inputs if layout.role == "external"]
        rows = [0 if layout.batch is None else self._sizes[layout.name][layout.batch] for layout in sent]
        self._rows = only_rows or (1 if any(layout.batch is None for layout in sent) else max(rows))
        steps = {self._sizes[layout.name][layout.time] for layout in sent if layout.time is not None}
        self._only_steps = only_steps if steps == {only_steps} else None
        # a Squeeze without axes drops the axis of one row
        self._fewest = 2 if any(map(_squeezes_any, graph.node)) and not self._rows else 1
        path = Path(str(source)) if isinstance(source, str | Path) and not constants else None
        self._as_declared = OnnxFile(self._whole, path)

    @property
    def against(self) -> str:
        """What runs the file, and its version."""
        return self._as_declared.against

    def _whole(self) -> onnx.ModelProto:
        """Return the file as it was given, with its weights; inputs that are given once and for all are among these."""
        given = onnx.load(str(self._source)) if isinstance(self._source, str | Path) else self._source
        if not self._constants:
            return given
        proto = copy.deepcopy(given)
        kinds = {value.name: value.type.tensor_type.elem_type for value in proto.graph.input}
        for name, value in self._constants.items():
            array = np.asarray(value, onnx.helper.tensor_dtype_to_np_dtype(kinds[name]))
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        sent = [value for value in given.graph.input if value.name not in self._constants]
        del proto.graph.input[:]
        proto.graph.input.extend(sent)
        return proto

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
        for name, layout in self._outputs.items():
            if layout.time is not None and layout.extra < 0:
                answers[name] = PrefixAnswers(range(1 - layout.extra, length + 1), whole[name])
            elif layout.time is not None:
                answers[name] = whole[name][:, layout.extra :]
        if last := [name for name, layout in self._outputs.items() if layout.time is None]:
            beginnings = None if self._only_steps is None else ()
            answers |= prefix_answers(lambda steps: self._run(inputs, steps), whole, last, length, beginnings)
        return answers

    def observe(self, inputs: Mapping[str, Array]) -> Observed:
        """Record the decisions of the file on whole sequences, `(batch, T, *shape)` by input."""
        seen, length = Observed(), next(iter(inputs.values())).shape[1]
        for rows in self._batches(len(next(iter(inputs.values())))):
            seen.add(self._observer.observe(self._feeds(inputs, rows, length)))
        return seen

    def _run(self, inputs: Mapping[str, Array], length: int) -> dict[str, Array]:
        """Run beginnings of the sequences; return `(batch, T or nothing, *shape)` by output."""
        rows = len(next(iter(inputs.values())))
        parts = [self._run_rows(inputs, batch, length) for batch in self._batches(rows)]
        return {name: np.concatenate([part[name] for part in parts])[:rows] for name in parts[0]}

    def _batches(self, rows: int) -> list[Sequence[int]]:
        """Return the rows of each run: as many as the file takes."""
        most = max(self._rows or rows, self._fewest)
        return [range(start, start + most) for start in range(0, rows, most)]

    def _feeds(self, inputs: Mapping[str, Array], rows: Sequence[int], length: int) -> dict[str, Array]:
        feeds = {}
        for layout in self._inputs:
            fixed = layout.fixed(len(rows), length)
            feeds[layout.name] = layout.fed(inputs[layout.name], rows, length) if fixed is None else fixed
        return feeds

    def _run_rows(self, inputs: Mapping[str, Array], rows: Sequence[int], length: int) -> dict[str, Array]:
        feeds = self._feeds(inputs, rows, length)
        file = self._as_declared if self._fits(feeds) else self._at_any_size
        values = file.run(feeds)
        return {name: layout.rows_first(values[name], len(rows)) for name, layout in self._outputs.items()}

    def _fits(self, feeds: Mapping[str, Array]) -> bool:
        """Whether arrays have the sizes that the file declares."""
        pairs = (zip(self._sizes[name] or value.shape, value.shape, strict=True) for name, value in feeds.items())
        return all(size in {0, given} for pair in pairs for size, given in pair)

    @staticmethod
    def _opened(graph: onnx.ModelProto) -> onnx.ModelProto:
        """Return the file without its declared shapes; types and ranks of its inputs stay, as the format needs."""
        opened = copy.deepcopy(graph)
        _forget_sizes(opened.graph)
        return opened

    @cached_property
    def _at_any_size(self) -> OnnxFile:
        return OnnxFile(lambda: self._opened(self._whole()), lean=self._opened(self._lean))

    @cached_property
    def _observer(self) -> OnnxObserver:
        return OnnxObserver(self._opened(self._lean))


class OnnxFile:
    """A file in onnxruntime, or in the evaluator of the onnx package where onnxruntime cannot load it, or run it first.

    Attributes:
        against: What runs it, and its version.
    """

    def __init__(
        self,
        proto: Callable[[], onnx.ModelProto],
        path: Path | None = None,
        lean: onnx.ModelProto | None = None,
    ) -> None:
        """Load it.

        Args:
            proto: Returns what the file has; not called where onnxruntime runs the file itself.
            path: The file itself; None: it is in memory alone.
            lean: The same with its large weights outside, where these are in memory.

        Raises:
            ModelLoadError: Neither loads it.
        """
        self._proto, self._is_checked = proto, False
        self.against = f"onnxruntime {onnxruntime.__version__}"
        self._evaluator: ReferenceEvaluator | None = None
        try:
            if path is not None:
                self._session = open_session(path, where="the file", threads=1, keeps_memory=False)
            else:
                self._load(lean or proto())
        except ModelLoadError as exc:
            nameless = copy.deepcopy(proto())  # onnxruntime refuses two nodes of one name, which means nothing
            for node in (node for graph in _graphs(nameless.graph) for node in graph.node):
                node.name = ""
            try:
                self._load(nameless)
            except ModelLoadError:
                self._evaluate(exc)
                return
        self._names = [value.name for value in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Any]:
        """Return its outputs by name.

        Raises:
            ModelLoadError: It cannot be run on these inputs.
        """
        try:
            if self._evaluator is not None:
                return dict(zip(self._names, self._evaluator.run(self._names, dict(feeds)), strict=True))
            answers = dict(zip(self._names, self._session.run(self._names, dict(feeds)), strict=True))
        except Exception as exc:
            given = ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())
            error = ModelLoadError(f"{self.against} failed on {given}: {str(exc).strip()}.", fix=_FIX)
            if self._is_checked:
                raise error from exc
            self._evaluate(error)
            self._is_checked = True
            return self.run(feeds)
        self._is_checked = True
        return answers

    def _load(self, proto: onnx.ModelProto) -> None:
        lean, self._weights = with_weights_outside(proto)  # the session reads them where they are
        self._session = open_session(lean.SerializeToString(), where="the file", threads=1, weights=self._weights)

    def _evaluate(self, reason: ModelLoadError) -> None:
        """Run it in the evaluator from now on.

        Raises:
            ModelLoadError: `reason`, as that does not load it either.
        """
        reason.fix = _FIX
        try:
            self._evaluator = ReferenceEvaluator(self._proto())
        except Exception as exc:  # whatever onnx raises: what onnxruntime reported is the reason
            raise reason from exc
        self._names = list(self._evaluator.output_names)
        self.against, self._is_checked = f"onnx {onnx.__version__}", True


_FIX = "Export the model so that onnxruntime runs it: the file as it is has to be compared with the step graph."


def _squeezes_any(node: onnx.NodeProto) -> bool:
    """Whether a node drops whatever axes have one element."""
    return node.op_type == "Squeeze" and not node.attribute and not any(node.input[1:])


def _forget_sizes(graph: onnx.GraphProto) -> None:
    """Clear the declared sizes of a graph and of the bodies inside it."""
    for inner in _graphs(graph):
        del inner.value_info[:]
        for value in inner.output:
            value.type.tensor_type.ClearField("shape")
        for value in inner.input:
            for dim in value.type.tensor_type.shape.dim:
                dim.Clear()


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and the bodies inside it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(body)
