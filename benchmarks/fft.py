"""Time of an FFT as a product with a matrix, and by onnxruntime's operator DFT: `python -m benchmarks.fft`."""

from __future__ import annotations

import timeit

import numpy as np
import onnx
import onnxruntime as ort

from stepwell_export.graph.builder import GraphBuilder, declared
from stepwell_export.stages import RFFT

SIZES = (320, 400, 512, 1024)
ROWS = (1, 64, 256)


def matrix(size: int) -> onnx.ModelProto:
    """Return the graph of the stage."""
    graph = GraphBuilder()
    graph.add("Identity", [RFFT(size).emit(graph, "x", (size,))], ["y"])
    return _model(graph, size)


def operator(size: int) -> onnx.ModelProto:
    """Return the graph with the operator."""
    graph = GraphBuilder()
    pairs = graph.op("Unsqueeze", "x", graph.ints([2]))
    graph.add("DFT", [pairs, graph.ints(size), graph.ints(1)], ["y"], onesided=1)
    return _model(graph, size)


def _model(graph: GraphBuilder, size: int) -> onnx.ModelProto:
    gives = declared("y", "float32", (size // 2 + 1, 2), 0)
    return graph.model("fft", [declared("x", "float32", (size,), 0)], [gives])


def main() -> None:
    """Print the times on one core, and the largest error of each."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    print(f"{'samples':>8}{'rows':>6}{'matrix, us':>12}{'DFT, us':>10}{'error':>10}{'error':>10}")
    for size in SIZES:
        sessions = [ort.InferenceSession(make(size).SerializeToString(), options) for make in (matrix, operator)]
        for rows in ROWS:
            x = np.random.default_rng(0).standard_normal((rows, size)).astype(np.float32)
            want = RFFT(size).reference(x.astype(np.float64))
            times = [min(timeit.repeat(lambda: one.run(None, {"x": x}), number=5, repeat=20)) / 5 for one in sessions]  # noqa: B023
            errors = [np.abs(one.run(None, {"x": x})[0] - want).max() for one in sessions]
            print(
                f"{size:>8}{rows:>6}{times[0] * 1e6:>12.0f}{times[1] * 1e6:>10.0f}{errors[0]:>10.1e}{errors[1]:>10.1e}"
            )


if __name__ == "__main__":
    main()
