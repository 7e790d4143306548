"""Opens an ONNX file in onnxruntime as serving needs it."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import onnxruntime as ort

from stepwell_export.runtime.errors import ModelLoadError, RefusedModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.operator_scan import Contents, contents_of

if TYPE_CHECKING:
    import onnx

_CRASHES_ON_FLOAT16 = "MatmulTransposeFusion"
"""An optimizer of onnxruntime 1.32 that ends the process at a float16 Transpose of a batch axis before a MatMul."""

TRIAL_SECONDS = 600.0
"""Most seconds of a run that tries a graph: far more than a large model takes for a long declared length."""


def open_session(
    source: Path | bytes,
    *,
    where: str,
    contents: Contents | None = None,
    threads: int = 0,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    lengths: Mapping[str, int] | None = None,
    as_written: bool = False,
    weights: Mapping[str, Array] | None = None,
    keeps_memory: bool = True,
) -> ort.InferenceSession:
    """Open a graph.

    Args:
        source: The ONNX file, or its bytes.
        where: What it was read from, for the message.
        contents: What the file has, if that is known; None: it is read.
        threads: Threads that onnxruntime may use inside one run; 0: as many as it likes.
        providers: onnxruntime execution providers, best first.
        lengths: Lengths of axes that the graph leaves open, by symbol; the graph is made simpler for them.
        as_written: Whether every node is run as it is, so that every tensor can be an output.
        weights: Weights that the graph declares as lying outside it; they are used where they are, and the caller
            keeps them as long as the session, which neither copies them nor keeps memory.
        keeps_memory: Whether the memory of a run is kept for the next one, which is faster.

    Raises:
        ModelLoadError: onnxruntime refuses the graph.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # of its runs, too: what fails is raised; the log would repeat it
    if as_written:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if weights:
        values = [ort.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
        options.add_external_initializers(list(weights), values)
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_cpu_mem_arena = keeps_memory and not weights
    for symbol, length in (lengths or {}).items():
        options.add_free_dimension_override_by_name(symbol, length)
    disabled = [_CRASHES_ON_FLOAT16] if (contents or contents_of(source)).has_float16 else []
    try:
        graph = str(source) if isinstance(source, Path) else source
        return ort.InferenceSession(graph, options, providers=list(providers), disabled_optimizers=disabled)
    except Exception as exc:
        raise ModelLoadError(
            f"onnxruntime {ort.__version__} cannot load {where}: {str(exc).strip()}.",
            fix="Export the model again, or check that the file is a complete ONNX model.",
        ) from exc


@contextmanager
def trial_run(feeds: Mapping[str, Array]) -> Iterator[ort.RunOptions]:
    """Yield the options of one run of a graph that nobody has run yet, which may never end.

    Args:
        feeds: What it is run on, for the message.

    Raises:
        RefusedModelError: It was still running after `TRIAL_SECONDS`, and was ended between two of its nodes.
    """
    options = ort.RunOptions()
    limit = Timer(TRIAL_SECONDS, setattr, (options, "terminate", True))
    limit.daemon = True
    limit.start()
    try:
        yield options
    except Exception as exc:
        if not options.terminate:
            raise
        given = ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())
        raise RefusedModelError(
            f"The graph was still running after {TRIAL_SECONDS:g} seconds on {given}, and was ended: a Loop in it may "
            "be one that never ends.",
            fix="Run the file on such inputs in onnxruntime; it has to end there.",
        ) from exc
    finally:
        limit.cancel()


# ---------------------------------------------------------------- memory of an export: weights once, and given back

_LARGE = 2**18
"""Numbers from which on a weight is shared: the graph without it is what is written to bytes and read again."""

_FLOAT, _FLOAT16, _DOUBLE, _EXTERNAL = 1, 10, 11, 1
"""Element types of onnx, and its mark of a tensor that lies elsewhere."""

_arrays: WeakValueDictionary[tuple[Any, ...], Array] = WeakValueDictionary()
"""What somebody holds, by type, shape and digest of its bytes."""


def without_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model without its metadata and its dense initializers, which are never copied."""
    graph, lean = model.graph, type(model)()
    lean.ir_version, lean.graph.name = model.ir_version, graph.name
    lean.opset_import.extend(model.opset_import)
    lean.functions.extend(model.functions)
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(lean.graph, field).extend(getattr(graph, field))
    return lean


def with_weights_outside(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return a copy of a model that declares its large weights as lying outside it, and these weights by name.

    Weights of the same bytes are one array, in whatever models they are, as long as a caller holds it.
    """
    graph, lean = model.graph, without_initializers(model)
    inputs = {value.name for value in graph.input}
    weights = {}
    for tensor in graph.initializer:
        is_large = math.prod(tensor.dims) >= _LARGE and tensor.data_type in {_FLOAT, _FLOAT16, _DOUBLE}
        if not is_large or tensor.name in inputs or tensor.data_location == _EXTERNAL:
            lean.graph.initializer.add().CopyFrom(tensor)
            continue
        weights[tensor.name] = _shared(tensor)
        outside = lean.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        outside.data_location = _EXTERNAL
        outside.external_data.add(key="location", value="memory")
    return lean, weights


def _shared(tensor: onnx.TensorProto) -> Array:
    from onnx import numpy_helper

    made: Array = numpy_helper.to_array(tensor)
    key = (made.dtype.str, made.shape, hashlib.blake2b(made.data, digest_size=16).digest())
    return _arrays.setdefault(key, made)


_LARGE_MODEL = 2**24
"""Bytes of weights from which on memory is worth a tenth of a second."""


def release(nbytes: int) -> None:
    """Collect what refers to itself, and give back what the allocator of C has free; nothing for small models.

    Args:
        nbytes: Of the model's weights.
    """
    if nbytes < _LARGE_MODEL:
        return
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library than glibc gives memory back by itself, or never
        ctypes.CDLL(None).malloc_trim(0)
