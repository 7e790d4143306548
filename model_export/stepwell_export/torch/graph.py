"""Torch's ONNX exporters without their output; what they refuse becomes an error of one line."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import logging
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import onnx
import onnxscript.optimizer
import onnxscript.rewriter
import torch
from onnx import helper
from onnxscript.rewriter.rules.common import _no_op
from torch import Tensor, nn

from stepwell_export.graph.builder import element_type
from stepwell_export.graph.nodes import numbered, renamed, replace_items, set_layer
from stepwell_export.patched import patched
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.session import open_session
from stepwell_export.torch.attention import attention_written_out
from stepwell_export.torch.cells import layers_written_out
from stepwell_export.torch.checks import first_line, in_turn, unfused, unvalidated
from stepwell_export.torch.decompositions import Decomposed, Stable
from stepwell_export.torch.layer_names import name_and_layer, short_tensor_name
from stepwell_export.torch.naming import flatten, numpy_dtype
from stepwell_export.torch.python_numbers import PythonNumbers
from stepwell_export.torch.recurrences import associative_scans_written_out

OPSET = 18
"""What torch's exporter writes natively; onnxruntime runs it since 1.14."""

_FIXED_ROWS = "The module fixes the number of rows: it works for the batch size of its example alone."
_FIX_ROWS = "Take the batch size from the input: x.shape[0] as it is, no number and neither len(x) nor int(x.shape[0])."
_SOME_ROWS = "The module does not take any number of rows: it compares how many there are, or picks some of them."
_FIX_SOME_ROWS = "Compute each row by itself, in the same way for any number of rows."

_Names = tuple[Sequence[str], Sequence[str]]


def trace(
    module: Any,
    values: Sequence[Tensor],
    timed: Collection[str],
    names: _Names,
    numbers: PythonNumbers | None,
    *,
    name: str,
) -> onnx.ModelProto:
    """Trace a module over whole sequences by torch's older exporter, with rows and timesteps of any number.

    The newer one fixes the number of timesteps: behind recurrent layers, and in loops; see docs/adr/0027.

    Args:
        module: It takes and returns tensors with rows in front, timesteps behind these. Its nodes are named after the
            layers of its attribute `module`.
        values: An example of each, of more than one row: one row would be taken for a constant.
        timed: The names of what it takes that have timesteps.
        names: Of what it takes, and of what it gives.
        numbers: What the module's code does with numbers of timesteps; None: nothing that a trace might fix.
        name: The graph's.

    Returns:
        The graph; one that onnxruntime does not run is refused, with a reason, where it is loaded.

    Raises:
        RefusedModelError: The exporter fails, or makes a graph for so many rows alone; the module is refused from
            within, or does what cannot be followed with numbers of timesteps.
    """
    if numbers is not None:
        numbers.check()
    own = copy.deepcopy(module)  # the exporter folds a BatchNorm into the weights of a convolution
    same = contextlib.nullcontext() if numbers is None else numbers.repeated()
    with tracing(), same, layers_written_out(own):
        proto = _plain(_older(own, values, timed, names), name, module.module)
    _check_fewer_rows(proto, values, names)
    return proto


def trace_step(
    module: Any, values: Sequence[Tensor], axes: Mapping[str, int], names: _Names, *, name: str
) -> onnx.ModelProto:
    """Trace a module that takes one timestep by `torch.export`, and compute its constants.

    Args:
        module: It takes tensors and returns a tuple of tensors.
        values: An example of each, of more than one row where rows are of any number.
        axes: Where what it takes has its rows, of any number; none: all sizes are those of the example.
        names: Of what it takes, and of what it gives.
        name: The graph's.

    Raises:
        RefusedModelError: It cannot be exported, or not for any number of rows.
    """
    dynamic = (tuple({axes[given]: torch.export.Dim("batch")} for given in names[0]),) if axes else None
    with tracing(), layers_written_out(module), Stable(), attention_written_out(), exact():
        # by itself: what it refuses, torch.onnx.export tries again in ways that fix numbers as they are in the example
        program = torch.export.export(module, tuple(values), dynamic_shapes=dynamic, strict=False)
        exported = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=names[0], output_names=names[1], verbose=False
        )
        return optimized(_plain(exported.model_proto, name, None))


def _older(module: Any, values: Sequence[Tensor], timed: Collection[str], names: _Names) -> onnx.ModelProto:
    file = io.BytesIO()
    open_axes = {one: {0: "batch", 1: "time"} if one in timed else {0: "batch"} for one in (*names[0], *names[1])}
    plain = module.forward

    def decomposed_forward(*given: Tensor) -> tuple[Tensor, ...]:
        with Decomposed() as mode:
            found: tuple[Tensor, ...] = mode.writes.now(plain(*given))
        return found

    module.forward = decomposed_forward  # of a copy
    with attention_written_out(), associative_scans_written_out(len(values[0])), _more_operators():
        torch.onnx.export(
            module, tuple(values), file, dynamo=False, opset_version=OPSET,
            input_names=names[0], output_names=names[1], dynamic_axes=open_axes,
        )  # fmt: skip
    proto = onnx.load_model_from_string(file.getvalue())
    kept = {tensor.name: tensor for tensor in proto.graph.input}
    for given, value in zip(names[0], values, strict=True):  # the exporter leaves out what the module does not use
        if given not in kept:
            shape = [open_axes[given].get(axis, size) for axis, size in enumerate(value.shape)]
            kept[given] = helper.make_tensor_value_info(given, element_type(numpy_dtype(value, repr(given))), shape)
    del proto.graph.input[:]
    proto.graph.input.extend(kept[given] for given in names[0])
    return proto


@contextlib.contextmanager
def _more_operators() -> Iterator[None]:
    """Let the older exporter write functions that it lacks, and ONNX has."""
    with contextlib.ExitStack() as stack:
        for name in ("sinh", "cosh", "asinh", "acosh", "atanh"):
            of_torch = f"aten::{name}"
            torch.onnx.register_custom_op_symbolic(of_torch, functools.partial(_written_as, name.capitalize()), OPSET)
            stack.callback(torch.onnx.unregister_custom_op_symbolic, of_torch, OPSET)
        yield


def _written_as(operator: str, graph: Any, x: Any) -> Any:
    return graph.op(operator, x)


def _check_fewer_rows(proto: onnx.ModelProto, values: Sequence[Tensor], names: _Names) -> None:
    """Check that a graph that runs on the example runs on fewer rows.

    Raises:
        RefusedModelError: It does not.
    """
    try:
        session = open_session(proto.SerializeToString(), where="the graph", threads=1, as_written=True)
        taken = {tensor.name for tensor in session.get_inputs()}
        feeds = {given: value.numpy() for given, value in zip(names[0], values, strict=True) if given in taken}
        session.run(None, feeds)
    except Exception:  # noqa: BLE001  # whatever it is: where the graph is loaded, it is a reason
        return
    fewer = {given: value[1:] for given, value in feeds.items()}
    try:
        fits = {len(value) for value in session.run(names[1], fewer)} == {len(values[0]) - 1}
    except Exception:  # noqa: BLE001  # it ran on all rows
        fits = False
    if not fits:
        raise RefusedModelError(_FIXED_ROWS, fix=_FIX_ROWS)


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Run an exporter of torch.

    Raises:
        RefusedModelError: It fails, or the module is refused from within.
    """
    try:
        with in_turn(), quiet(), unfused(), unvalidated(), torch.no_grad():
            yield
    except RefusedModelError:
        raise
    except Exception as exc:
        raise _refused(exc) from exc


class PlainOutputs(nn.Module):
    """A module that returns a tuple of tensors, and changes none of those that it takes."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Run the module."""
        return tuple(tensor for _, tensor in flatten(self.module(*(value.clone() for value in values))))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's exporters from printing: what fails is raised. Other threads print as before."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    switch: Any = torch._C._jit_set_onnx_log_enabled
    switch(False)
    try:
        with (
            patched((torch._C, "_jit_set_onnx_log_enabled", lambda enabled: None)),  # torch turns its log on again
            warnings.catch_warnings(),
            contextlib.redirect_stdout(_OfOthers(sys.stdout)),
            contextlib.redirect_stderr(_OfOthers(sys.stderr)),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        switch(True)


class _OfOthers(io.TextIOBase):
    """A stream that drops what this thread prints."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        """Print what another thread prints."""
        if threading.get_ident() != self._thread:
            self._stream.write(text)
        return len(text)


def _refused(exc: Exception) -> RefusedModelError:
    causes = [exc]
    while (cause := causes[-1].__cause__) is not None and isinstance(cause, Exception):
        causes.append(cause)
    text = " ".join(str(one) for one in causes)
    if "specialized it to be a constant" in text:
        return RefusedModelError(_FIXED_ROWS, fix=_FIX_ROWS)
    if "Constraints violated (batch)" in text:
        return RefusedModelError(_SOME_ROWS, fix=_FIX_SOME_ROWS)
    return RefusedModelError(
        f"torch {torch.__version__} cannot export the module: {first_line(causes[-1])}.",
        fix="Write the part that it names with other operations, and try again.",
    )


def _plain(proto: onnx.ModelProto, name: str, layers: Any) -> onnx.ModelProto:
    """Remove the description of how and where the graph was made but for layers: it is larger than a small model."""
    graph = proto.graph
    graph.name = name
    modules = {} if layers is None else dict(layers.named_modules())
    tensors = {tensor: short_tensor_name(tensor) for node in graph.node for tensor in node.output} if modules else {}
    replace_items(graph.node, [renamed(node, tensors, name=node.name) for node in graph.node])
    kept = [name_and_layer(node, modules) for node in graph.node]
    del graph.value_info[:], graph.metadata_props[:], proto.metadata_props[:]
    proto.doc_string = graph.doc_string = ""
    parts: list[Any] = [*graph.node, *graph.initializer, *graph.input, *graph.output]
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]
    counts = Counter[str]()
    for node, (called, layer) in zip(graph.node, kept, strict=True):
        counts[called] += 1
        node.name = numbered(called, counts[called])  # onnxruntime requires a name of its own
        set_layer([node], layer)
    return proto


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Keep torch's optimizer of ONNX graphs from leaving out what adds nearly zero or multiplies by nearly one.

    It takes any constant up to 1e-8 for zero and anything within 1e-5 of one for one, and leaves out `x + 1e-8`, which
    keeps a division by `sqrt(mean(x ** 2) + 1e-8)` finite.
    """
    rewriter: Any = onnxscript.rewriter
    inexact = set(map(id, _no_op.rules))
    with in_turn():
        kept = tuple(rule for rule in rewriter._DEFAULT_REWRITE_RULES if id(rule) not in inexact)
        with patched((rewriter, "_DEFAULT_REWRITE_RULES", kept)):
            yield


def optimized(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph with its constants computed."""
    with exact():
        return onnxscript.optimizer.optimize(proto)
