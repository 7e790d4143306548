"""The predictions of onnxruntime for a whole sequence, timestep by timestep, at batch size 1."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from stepwell_export.runtime.manifest import Array
from tests.graphs import Build


def offline_predictions(build: Build, xs: Array) -> Array:
    """Return the predictions `(T, *row)` for `(T, *row)` inputs of a model with one input `x` and one output `y`."""
    graph, manifest = build()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    states = {state.input: state.initial()[None] for state in manifest.states}
    names = ["y", *(state.output for state in manifest.states)]
    answers = []
    for x in xs:
        y, *after = session.run(names, {"x": x[None], **states})
        states = dict(zip(states, after, strict=True))
        answers.append(y[0])
    return np.array(answers)
