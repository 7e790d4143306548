"""Torch's ONNX exporters without their output; what they refuse becomes an error of one line."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from model_export.errors import RefusedModelError
from model_export.torch.attention import attention_written_out
from model_export.torch.cells import decomposed, patch_recurrent_layers
from model_export.torch.checks import first_line, unfused
from model_export.torch.decompositions import Decomposed
from model_export.torch.naming import flatten
from model_export.torch.recurrences import associative_scans_written_out

OPSET = 18
"""What torch's exporter writes natively; onnxruntime runs it since 1.14."""


class _ExporterError(RefusedModelError):
    """One of torch's exporters fails; another may not."""


def step_graph(
    module: Any, values: Sequence[Tensor], axes: Sequence[int], names: tuple[Sequence[str], Sequence[str]], *, name: str
) -> onnx.ModelProto:
    """Trace a module that takes one timestep and its states.

    The older exporter is tried where the newer one fails, which it does over a `view` now and then.

    Args:
        module: It takes a tuple of tensors and returns one.
        values: An example of each, of more than one row: one row would be taken for a constant.
        axes: Where each has its batch axis.
        names: Of what it takes, and of what it gives.
        name: The graph's.
    """
    batch = torch.export.Dim("batch")
    dynamic = tuple({axis: batch} for axis in axes)

    def newer() -> onnx.ModelProto:
        with _tracing():
            program = torch.export.export(module, (tuple(values),), dynamic_shapes=(dynamic,), strict=False)
            exported = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, input_names=names[0], output_names=names[1], verbose=False
            )
        return _plain(exported, name)

    named_axes = [*zip(names[0], axes, strict=True), *zip(names[1], _next_axes(axes, names), strict=True)]
    open_axes = {tensor: {axis: "batch"} for tensor, axis in named_axes}
    return _first(newer, lambda: _older_graph(_SpreadArguments(module), values, open_axes, names, name=name))


def sequence_graph(
    module: Any,
    values: Sequence[Tensor],
    axes: Mapping[str, Mapping[int, str]],
    names: tuple[Sequence[str], Sequence[str]],
    *,
    name: str,
    length: int | None = None,
) -> onnx.ModelProto:
    """Trace a module over whole sequences, with batch and time of any length.

    The older exporter is tried first: the newer one fixes the number of timesteps after recurrent layers, and takes
    longer. The newer one has operations that the older one lacks. The older one gets a copy, for it writes into the
    weights where it folds a BatchNorm into a convolution.

    Args:
        module: It takes tensors and returns a tuple of tensors.
        values: An example of each.
        axes: By the name of what it takes or gives: which axes are of any length, and what they are called.
        names: Of what it takes, and of what it gives.
        name: The graph's.
        length: The most timesteps that the module takes; None: any number.
    """
    open_axes = {"batch": torch.export.Dim("batch"), "time": torch.export.Dim("time", max=length)}
    dynamic = tuple({axis: open_axes[what] for axis, what in axes[given].items()} for given in names[0])

    def newer() -> onnx.ModelProto:
        with _tracing(), attention_written_out():
            exported = torch.onnx.export(
                module, tuple(values), dynamo=True, opset_version=OPSET, dynamic_shapes=(dynamic,),
                input_names=names[0], output_names=names[1], verbose=False,
            )  # fmt: skip
        return _plain(exported, name)

    return _first(lambda: _older_graph(module, values, axes, names, name=name), newer)


def _first(*ways: Callable[[], onnx.ModelProto]) -> onnx.ModelProto:
    """Return the graph by the first exporter that makes one.

    Raises:
        RefusedModelError: None does; the error of the first. Or a refusal from within the module, for which no other
            exporter is tried.
    """
    errors: list[_ExporterError] = []
    for way in ways:
        try:
            return way()
        except _ExporterError as exc:
            errors.append(exc)
    raise errors[0]


def _older_graph(
    module: Any,
    values: Sequence[Tensor],
    axes: Mapping[str, Mapping[int, str]],
    names: tuple[Sequence[str], Sequence[str]],
    *,
    name: str,
) -> onnx.ModelProto:
    file = io.BytesIO()
    rows = next(
        value.shape[axis]
        for tensor, value in zip(names[0], values, strict=True)
        for axis, what in axes[tensor].items()
        if what == "batch"
    )
    with _tracing(), Decomposed(), attention_written_out(), associative_scans_written_out(rows):
        torch.onnx.export(
            copy.deepcopy(module), tuple(values), file, dynamo=False, opset_version=OPSET,
            input_names=names[0], output_names=names[1], dynamic_axes=axes,
        )  # fmt: skip
    return _plain(onnx.load_model_from_string(file.getvalue()), name)


@contextlib.contextmanager
def _tracing() -> Iterator[None]:
    """Run an exporter of torch.

    Raises:
        RefusedModelError: The module is refused from within.
        _ExporterError: The exporter fails.
    """
    try:
        with quiet(), unfused(), torch.no_grad():
            yield
    except RefusedModelError:
        raise
    except Exception as exc:
        raise _refused(exc) from exc


class PlainOutputs(nn.Module):
    """A module from a tuple of tensors to one, with its recurrent layers written out."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Run the module; in one argument, for older exporters stumble over `*values`."""
        with patch_recurrent_layers(self.module, decomposed):
            return tuple(tensor for _, tensor in flatten(self.module(*values)))


class _SpreadArguments(nn.Module):
    """A module of one tuple as a module of its parts."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, *values: Tensor) -> Any:
        """Run the module."""
        return self.module(values)


def _next_axes(axes: Sequence[int], names: tuple[Sequence[str], Sequence[str]]) -> list[int]:
    """Return where each output has its batch axis: the next states as the states, which come last."""
    takes, gives = names
    states = sum(f"{name}_next" in gives for name in takes)
    return [0] * (len(gives) - states) + list(axes[len(axes) - states :])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's exporters from talking: what fails is raised."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    switch: Any = torch._C._jit_set_onnx_log_enabled
    switch(False)
    torch._C._jit_set_onnx_log_enabled = lambda enabled: None  # torch turns its log on again
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        torch._C._jit_set_onnx_log_enabled = switch
        switch(True)


def _refused(exc: Exception) -> _ExporterError:
    causes = [exc]
    while (cause := causes[-1].__cause__) is not None and isinstance(cause, Exception):
        causes.append(cause)
    text = " ".join(str(one) for one in causes)
    if "specialized it to be a constant" in text:
        return _ExporterError(
            "The module fixes the number of rows: it works for the batch size of its example alone.",
            fix="Take the batch size from the input, x.shape[0], instead of writing a number.",
        )
    return _ExporterError(
        f"torch {torch.__version__} cannot export the module: {first_line(causes[-1])}.",
        fix="Write the part that it names with other operations, and try again.",
    )


def _plain(exported: Any, name: str) -> onnx.ModelProto:
    """Remove the description of how and where the graph was made: it is larger than a small model."""
    proto: onnx.ModelProto = getattr(exported, "model_proto", exported)
    graph = proto.graph
    graph.name = name
    del graph.value_info[:], graph.metadata_props[:], proto.metadata_props[:]
    proto.doc_string = graph.doc_string = ""
    parts: list[Any] = [*graph.node, *graph.initializer, *graph.input, *graph.output]
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]
    return proto
