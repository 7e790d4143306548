"""Gives every tensor of a graph for one row an axis of rows in front, so that any number of rows run together.

Shapes that are written into the graph, fixed initial states of recurrent nodes, rows that are folded into another axis
and flattened caches stay as they are for one row: each operator is emitted for one more axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import numpy_helper

from stepwell_export.graph.builder import NodeBuilder
from stepwell_export.graph.nodes import attributes, constants, read_opset, replace_items, subgraphs, tensor_names
from stepwell_export.graph.onnx_file import with_opset
from stepwell_export.graph.operators import ELEMENTWISE, REDUCTIONS
from stepwell_export.graph_session import GraphSession
from stepwell_export.runtime.errors import ModelLoadError, RefusedModelError
from stepwell_export.runtime.manifest import Array, BatchSpec, Manifest
from stepwell_export.runtime.specs import shape_of_rows
from stepwell_export.runtime.step_model import StepModel

_OPSET = 18
"""The first one in which all axes are inputs."""

_WAY_OUT = "Leave out `--batchify`: it runs one row at a time. Or export the model anew with a dynamic batch axis."

Shape = tuple[int, ...]


def batchify(model: onnx.ModelProto, manifest: Manifest) -> tuple[onnx.ModelProto, Manifest]:
    """Return a graph that runs rows together, and its manifest: two rows give what each gives alone.

    Args:
        model: The graph, local functions inlined, weights inside.
        manifest: Its description as a graph of single rows.

    Raises:
        RefusedModelError: There is no rule for an operator that rows reach, or rows differ when they run together.
    """
    try:
        many, described = with_row_axis(model, manifest)
        if StepModel(many.SerializeToString(), described).batched:
            return many, described
        problem = "two rows run together do not equal each alone."
    except ModelLoadError as exc:
        problem = exc.problem
    raise RefusedModelError(f"{manifest.name} cannot run rows together: {problem}", fix=_WAY_OUT)


def with_row_axis(model: onnx.ModelProto, manifest: Manifest) -> tuple[onnx.ModelProto, Manifest]:
    """Return a graph that runs rows together, and its manifest.

    Args:
        model: The graph, local functions inlined, weights inside.
        manifest: Its description as a graph of single rows.

    Raises:
        RefusedModelError: There is no rule for an operator that rows reach.
        ModelLoadError: onnxruntime cannot run it.
    """
    if read_opset(model) < _OPSET:
        model = with_opset(model, _OPSET)
    return _Rows(model, manifest).rewritten()


class _Rows:
    def __init__(self, model: onnx.ModelProto, manifest: Manifest) -> None:
        self._model = model
        self._manifest = manifest
        self._context = {window.input: window for window in manifest.windows}
        places = [(spec.name, spec.graph_row_shape, spec.batch_axis) for spec in manifest.inputs]
        places += [(state.input, state.row_shape, state.batch_axis) for state in manifest.states]
        self._given = {name: self._whole(name, row, axis) for name, row, axis in places}
        self._axes = {name: axis for name, _, axis in places}
        self._build = NodeBuilder("rows", tensor_names(model.graph))
        self._values = self._run()
        self._names: dict[str, str] = {}
        self._count = ""

    def _whole(self, name: str, row: Sequence[int], axis: int | None) -> Shape:
        """Return the shape of an input for one row, a window's past part included."""
        lengths = list(row)
        if name in self._context:
            window = self._context[name]
            lengths[window.axis] += window.context
        return shape_of_rows(lengths, axis, 1)

    def _run(self) -> dict[str, Array]:
        """Run the graph on zeros; return every tensor."""
        watched = onnx.ModelProto()
        watched.CopyFrom(self._model)
        kept = {value.name for value in watched.graph.output}
        made = [name for node in watched.graph.node for name in node.output if name and name not in kept]
        watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
        feeds = {name: spec.array() for name, spec in self._manifest.constants.items()}
        dtypes = {spec.name: spec.dtype for spec in self._manifest.inputs}
        dtypes |= {state.input: state.dtype for state in self._manifest.states}
        feeds |= {name: np.zeros(shape, dtypes[name]) for name, shape in self._given.items()}
        fixed = {name: numpy_helper.to_array(tensor) for name, tensor in constants(watched.graph).items()}
        return {**fixed, **feeds, **GraphSession(watched).run(feeds)}

    def rewritten(self) -> tuple[onnx.ModelProto, Manifest]:
        graph = self._model.graph
        for name in self._given:
            self._names[name] = self._taken(name)
        first = next(iter(self._given))
        place = self._axes[first] or 0
        self._count = self._build.op("Shape", first, start=place, end=place + 1)
        for node in graph.node:
            self._emit(node)
        result = onnx.ModelProto()
        result.CopyFrom(self._model)
        manifest = self._described()
        declared = {spec.name: (spec.graph_row_shape, spec.batch_axis) for spec in manifest.outputs}
        declared |= {state.output: (state.row_shape, state.batch_axis) for state in manifest.states}
        for value in result.graph.output:
            self._give(value.name, declared[value.name][1] if value.name in declared else 0)
        for value in result.graph.input:
            if value.name in self._given:
                axis = self._axes[value.name]
                dims = value.type.tensor_type.shape.dim
                if axis is None:
                    value.type.tensor_type.shape.dim.insert(0, onnx.TensorShapeProto.Dimension())
                dims[axis or 0].dim_param = "batch"
        for value in result.graph.output:
            value.type.tensor_type.ClearField("shape")
        del result.graph.value_info[:]
        replace_items(result.graph.node, self._build.nodes)
        result.graph.initializer.extend(self._build.constants)
        return result, manifest

    def _described(self) -> Manifest:
        """Return the manifest: what had no axis for rows has it in front."""
        inputs = [
            spec if spec.batch_axis is not None else spec.placed(spec.graph_row_shape, 0)
            for spec in self._manifest.inputs
        ]
        states = [
            state if state.batch_axis is not None else state.placed(state.row_shape, 0)
            for state in self._manifest.states
        ]
        outputs = [
            spec if spec.batch_axis is not None else spec.placed(spec.graph_row_shape, 0)
            for spec in self._manifest.outputs
        ]
        batch = BatchSpec(max=self._manifest.batch.max)
        return self._manifest.model_copy(
            update={"inputs": inputs, "states": states, "outputs": outputs, "batch": batch, "verified": None}
        )

    # ------------------------------------------------------------ tensors

    def _shape(self, name: str) -> Shape:
        return tuple(self._values[name].shape)

    def _rank(self, name: str) -> int:
        return self._values[name].ndim

    def _taken(self, name: str) -> str:
        """Emit an input with its rows in front and its axis of length 1 where it was."""
        axis, shape = self._axes[name], self._given[name]
        if axis is None:
            return name
        if axis:
            others = [at for at in range(len(shape)) if at != axis]
            name = self._build.op("Transpose", name, perm=[axis, *others])
        return self._build.reshape(name, shape)

    def _give(self, name: str, axis: int | None) -> None:
        """Emit an output with its rows where the manifest has them."""
        tensor, shape = self._rows_of(name), self._shape(name)
        if axis is not None and self._is_given_with_one(name):
            row = [length for at, length in enumerate(shape) if at != axis]
            tensor = self._build.reshape(tensor, row)
            perm = [*range(1, axis + 1), 0, *range(axis + 1, len(row) + 1)]
            tensor = self._build.op("Transpose", tensor, perm=perm)
        self._build.add("Identity", [tensor], [name])

    def _is_given_with_one(self, name: str) -> bool:
        """Whether an output has an axis of one row in the graph as it was."""
        before = {spec.name: spec.batch_axis for spec in self._manifest.outputs}
        before |= {state.output: state.batch_axis for state in self._manifest.states}
        return before.get(name) is not None

    def _is_of_rows(self, name: str) -> bool:
        return name in self._names

    def _rows_of(self, name: str) -> str:
        """Return a tensor with rows in front, repeated where it is the same for all rows."""
        if name in self._names:
            return self._names[name]
        shape = self._build.op("Concat", self._count, self._build.ints(self._shape(name)), axis=0)
        return self._build.op("Expand", self._build.op("Unsqueeze", name, self._build.ints([0])), shape)

    def _aligned(self, name: str, rank: int) -> str:
        """Return a tensor that is broadcast to one of so many axes, besides that of rows."""
        if not self._is_of_rows(name):
            return name
        missing = rank - self._rank(name)
        axes = list(range(1, 1 + missing))
        return self._build.op("Unsqueeze", self._names[name], self._build.ints(axes)) if axes else self._names[name]

    # ------------------------------------------------------------ nodes

    def _emit(self, node: onnx.NodeProto) -> None:
        of_rows = any(self._is_of_rows(name) for name in node.input)
        if not of_rows and not list(subgraphs(node)):
            self._build.nodes.append(node)
            return
        rule = _RULES.get(node.op_type) if node.domain in {"", "ai.onnx"} else None
        if rule is None:
            raise _no_rule(node, "there is no rule for it")
        made = rule(self, node, attributes(node))
        for name, tensor in zip(node.output, made, strict=False):
            if name:
                self._names[name] = tensor

    def plain(self, node: onnx.NodeProto, inputs: Sequence[str], **changed: Any) -> list[str]:
        """Emit the same operator on other tensors; return what it gives."""
        given = {**attributes(node), **changed}
        outputs = [self._build.fresh(node.op_type) if name else "" for name in node.output]
        self._build.add(node.op_type, inputs, outputs, **given)
        return outputs

    def fixed(self, node: onnx.NodeProto, at: int) -> Array | None:
        """Return an operand that is the same for all rows; None: there is none."""
        if at >= len(node.input) or not node.input[at]:
            return None
        if self._is_of_rows(node.input[at]):
            raise _no_rule(node, f"{node.input[at]!r} depends on the row")
        return self._values[node.input[at]]

    def others(self, node: onnx.NodeProto, start: int) -> list[str]:
        """Return the operands from one on, which are the same for all rows."""
        for at in range(start, len(node.input)):
            self.fixed(node, at)
        return list(node.input[start:])

    def like(self, node: onnx.NodeProto, tensor: str) -> list[str]:
        """Give a tensor the shape of the node's output, with rows in front."""
        return [self._build.reshape(tensor, self._shape(node.output[0]))]

    # the rules: each returns what a node gives, with rows in front

    def elementwise(self, node: onnx.NodeProto, _: Mapping[str, Any]) -> list[str]:
        rank = max(self._rank(name) for name in node.input if name)
        return self.plain(node, [self._aligned(name, rank) if name else "" for name in node.input])

    def reshaped(self, node: onnx.NodeProto, _: Mapping[str, Any]) -> list[str]:
        self.others(node, 1)
        return self.like(node, self._rows_of(node.input[0]))

    def transposed(self, node: onnx.NodeProto, given: Mapping[str, Any]) -> list[str]:
        perm = given.get("perm") or range(self._rank(node.input[0]))[::-1]
        return self.plain(node, [self._rows_of(node.input[0])], perm=[0, *(axis + 1 for axis in perm)])

    def along(self, node: onnx.NodeProto, given: Mapping[str, Any]) -> list[str]:
        axis = given.get("axis", _ALONG[node.op_type])
        axis = axis % self._rank(node.input[0]) + 1
        return self.plain(node, [self._rows_of(node.input[0]), *self.others(node, 1)], axis=axis)

    def concatenated(self, node: onnx.NodeProto, given: Mapping[str, Any]) -> list[str]:
        axis = given["axis"] % self._rank(node.input[0]) + 1
        return self.plain(node, [self._rows_of(name) for name in node.input], axis=axis)

    def gathered(self, node: onnx.NodeProto, given: Mapping[str, Any]) -> list[str]:
        data, places = node.input
        axis = given.get("axis", 0) % self._rank(data)
        if not self._is_of_rows(places):
            return self.plain(node, [self._rows_of(data), places], axis=axis + 1)
        if self._is_of_rows(data) or axis:
            raise _no_rule(node, "the places depend on the row")
        return self.plain(node, [data, self._rows_of(places)])

    def sliced(self, node: onnx.NodeProto, _: Mapping[str, Any]) -> list[str]:
        starts = self.fixed(node, 1)
        assert starts is not None
        axes = self.fixed(node, 3)
        axes = np.arange(starts.size) if axes is None else axes % self._rank(node.input[0])
        steps = [node.input[4]] if len(node.input) > 4 and self.fixed(node, 4) is not None else []
        inputs = [self._rows_of(node.input[0]), *self.others(node, 1)[:2]]
        return self.plain(node, [*inputs, self._build.constant(axes + 1, starts.dtype.name), *steps])

    def reduced(self, node: onnx.NodeProto, given: Mapping[str, Any]) -> list[str]:
        rank = self._rank(node.input[0])
        axes = self.fixed(node, 1)
        if axes is None or not axes.size:
            if given.get("noop_with_empty_axes"):
                return [self._rows_of(node.input[0])]
            axes = np.arange(rank)
        return self.plain(node, [self._rows_of(node.input[0]), self._build.ints([int(a) % rank + 1 for a in axes])])

    def padded(self, node: onnx.NodeProto, _: Mapping[str, Any]) -> list[str]:
        pads = self.fixed(node, 1)
        assert pads is not None
        if len(node.input) > 3 and node.input[3]:
            raise _no_rule(node, "it pads some axes")
        half = pads.size // 2
        more = self._build.ints([0, *map(int, pads[:half]), 0, *map(int, pads[half:])])
        return self.plain(node, [self._rows_of(node.input[0]), more, *self.others(node, 2)])

    def expanded(self, node: onnx.NodeProto, _: Mapping[str, Any]) -> list[str]:
        self.fixed(node, 1)
        shape = self._shape(node.output[0])
        return self.plain(node, [self._aligned(node.input[0], len(shape)), self._build.ints([1, *shape])])

    def tiled(self, node: onnx.NodeProto, _: Mapping[str, Any]) -> list[str]:
        repeats = self.fixed(node, 1)
        assert repeats is not None
        return self.plain(node, [self._rows_of(node.input[0]), self._build.ints([1, *map(int, repeats)])])

    def multiplied(self, node: onnx.NodeProto, _: Mapping[str, Any]) -> list[str]:
        ranks = [self._rank(name) for name in node.input]
        if min(ranks) < 2:
            raise _no_rule(node, "an operand is a vector")
        return self.plain(node, [self._aligned(name, max(ranks)) for name in node.input])

    def gemm(self, node: onnx.NodeProto, given: Mapping[str, Any]) -> list[str]:
        if self._is_of_rows(node.input[1]) or given.get("transA"):
            raise _no_rule(node, "its weights depend on the row")
        weights = self._build.op("Transpose", node.input[1], perm=[1, 0]) if given.get("transB") else node.input[1]
        product = self._build.op("MatMul", self._rows_of(node.input[0]), weights)
        if (alpha := given.get("alpha", 1.0)) != 1:
            product = self._build.op("Mul", product, self._build.constant(alpha, "float32"))
        if len(node.input) < 3 or not node.input[2]:
            return [product]
        bias = self._aligned(node.input[2], 2)
        if (beta := given.get("beta", 1.0)) != 1:
            bias = self._build.op("Mul", bias, self._build.constant(beta, "float32"))
        return [self._build.op("Add", product, bias)]

    def batched(self, node: onnx.NodeProto, _: Mapping[str, Any]) -> list[str]:
        """Fold rows into the first axis, which is the batch of such operators already."""
        x = self._build.op(
            "Reshape", self._rows_of(node.input[0]), self._build.ints([-1, *self._shape(node.input[0])[1:]])
        )
        (made, *_rest) = self.plain(node, [x, *self.others(node, 1)])
        return self.like(node, made)

    def recurrent(self, node: onnx.NodeProto, given: Mapping[str, Any]) -> list[str]:
        """Fold rows into the batch axis of a recurrence, and of the states that it starts from."""
        if given.get("layout") or (len(node.input) > 4 and node.input[4]):
            raise _no_rule(node, "it has lengths of sequences, or another layout")
        rows = self._shape(node.input[0])[1]
        weights = list(node.input[1:4]) + [""] * (4 - len(node.input))
        for at in range(1, min(4, len(node.input))):
            self.fixed(node, at)
        inputs = [self._folded(node.input[0]), *weights, ""]
        inputs += [self._folded(name) if name else "" for name in node.input[5:7]]
        inputs += self.others(node, 7)
        while not inputs[-1]:
            inputs.pop()
        made = self.plain(node, inputs)
        outputs = []
        for name, tensor in zip(node.output, made, strict=True):
            shape = self._shape(name) if name else ()
            if not name:
                outputs.append("")
                continue
            lead = shape[:-2]  # steps and directions, or directions
            apart = self._build.op("Reshape", tensor, self._build.ints([*lead, -1, rows, shape[-1]]))
            perm = [len(lead), *range(len(lead)), len(lead) + 1, len(lead) + 2]
            outputs.append(self._build.op("Transpose", apart, perm=perm))
        return outputs

    def _folded(self, name: str) -> str:
        """Return `(rows, n, batch, width)` as `(n, rows * batch, width)`."""
        n, _, width = self._shape(name)
        turned = self._build.op("Transpose", self._rows_of(name), perm=[1, 0, 2, 3])
        return self._build.op("Reshape", turned, self._build.ints([n, -1, width]))

    def scattered(self, node: onnx.NodeProto, _: Mapping[str, Any]) -> list[str]:
        """Move the rows behind the axes that the places are in."""
        self.fixed(node, 1)
        data, places, updates = node.input
        turned = [
            self._build.op("Transpose", self._rows_of(name), perm=[*range(1, self._rank(name) + 1), 0])
            for name in (data, updates)
        ]
        (made,) = self.plain(node, [turned[0], places, turned[1]])
        rank = self._rank(data)
        return [self._build.op("Transpose", made, perm=[rank, *range(rank)])]

    def shape(self, node: onnx.NodeProto, _: Mapping[str, Any]) -> list[str]:
        self._build.add("Identity", [self._build.constant(self._values[node.output[0]])], [node.output[0]])
        return []

    def cumulated(self, node: onnx.NodeProto, _: Mapping[str, Any]) -> list[str]:
        axis = self.fixed(node, 1)
        assert axis is not None
        place = int(axis.reshape(-1)[0]) % self._rank(node.input[0]) + 1
        return self.plain(node, [self._rows_of(node.input[0]), self._build.constant(place, "int64")])


def _no_rule(node: onnx.NodeProto, why: str) -> RefusedModelError:
    return RefusedModelError(
        f"Node {node.name or node.output[0]!r} ({node.op_type}) cannot be given an axis of rows: {why}.",
        fix=_WAY_OUT,
        layer=node.name or node.output[0],
    )


Rule = Callable[[_Rows, onnx.NodeProto, Mapping[str, Any]], list[str]]

_ALONG: Final[Mapping[str, int]] = {
    "Softmax": -1, "LogSoftmax": -1, "LayerNormalization": -1, "Split": 0, "ArgMax": 0, "ArgMin": 0, "TopK": -1,
}  # fmt: skip
"""Operators along one axis, with its default."""

_BATCHED: Final = (
    "Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "BatchNormalization",
    "InstanceNormalization", "GroupNormalization", "DepthToSpace", "SpaceToDepth",
)  # fmt: skip

_RULES: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(sorted(ELEMENTWISE), _Rows.elementwise),
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze", "Flatten"), _Rows.reshaped),
    **dict.fromkeys(_ALONG, _Rows.along),
    **dict.fromkeys(_BATCHED, _Rows.batched),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _Rows.recurrent),
    **dict.fromkeys(REDUCTIONS, _Rows.reduced),
    "Transpose": _Rows.transposed, "Concat": _Rows.concatenated, "Gather": _Rows.gathered, "Slice": _Rows.sliced,
    "Pad": _Rows.padded, "Expand": _Rows.expanded, "Tile": _Rows.tiled, "MatMul": _Rows.multiplied,
    "Gemm": _Rows.gemm, "ScatterND": _Rows.scattered, "Shape": _Rows.shape, "CumSum": _Rows.cumulated,
}  # fmt: skip
