"""Opens an ONNX file in onnxruntime as serving needs it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer

import onnxruntime as ort

from stepwell_export.runtime.errors import ModelLoadError, RefusedModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.operator_scan import Contents, contents_of

_CRASHES_ON_FLOAT16 = "MatmulTransposeFusion"
"""An optimizer of onnxruntime 1.32 that ends the process at a float16 Transpose of a batch axis before a MatMul."""

_LARGE_FILE = 2**24
"""Bytes of a file from which on the memory in which it was parsed is given back: once more the weights."""

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
        for name, value in zip(weights, values, strict=True):  # without, onnxruntime keeps a copy of its own
            options.add_initializer(name, value)
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_cpu_mem_arena = keeps_memory and not weights
    for symbol, length in (lengths or {}).items():
        options.add_free_dimension_override_by_name(symbol, length)
    disabled = [_CRASHES_ON_FLOAT16] if (contents or contents_of(source)).has_float16 else []
    try:
        graph = str(source) if isinstance(source, Path) else source
        session = ort.InferenceSession(graph, options, providers=list(providers), disabled_optimizers=disabled)
    except Exception as exc:
        raise ModelLoadError(
            f"onnxruntime {ort.__version__} cannot load {where}: {str(exc).strip()}.",
            fix="Export the model again, or check that the file is a complete ONNX model.",
        ) from exc
    if (len(source) if isinstance(source, bytes) else source.stat().st_size) >= _LARGE_FILE:
        with suppress(OSError, AttributeError):  # another C library than glibc gives memory back by itself, or never
            ctypes.CDLL(None).malloc_trim(0)
    return session


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
