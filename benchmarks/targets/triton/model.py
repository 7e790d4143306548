"""Triton's Python backend with its sequence batcher: all states in the memory of the backend process."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb


class TritonPythonModel:
    """Steps the requests of a batch."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"])
        self.states = [i.name for i in self.session.get_inputs() if i.name != "x"]
        self.fetch = ["y", *(f"{name}_next" for name in self.states)]
        self.zeros = np.zeros((2, 64), np.float32)
        self.kept: dict[int, Any] = {}

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run a batch."""
        tensors = [
            [pb.get_input_tensor_by_name(request, name).as_numpy() for name in ("x", "START", "CORRID")]
            for request in requests
        ]
        ids = [int(corrid.reshape(-1)[0]) for _, _, corrid in tensors]
        starts = [bool(start.reshape(-1)[0]) for _, start, _ in tensors]
        x = np.concatenate([row for row, _, _ in tensors])
        packed = np.stack([self.zeros if s else self.kept.get(i, self.zeros) for i, s in zip(ids, starts, strict=True)])
        feeds = {"x": x, **{name: np.ascontiguousarray(packed[:, i]) for i, name in enumerate(self.states)}}
        y, *after = self.session.run(self.fetch, feeds)
        packed = np.stack(after, axis=1)
        for row, i in enumerate(ids):
            self.kept[i] = packed[row]
        return [pb.InferenceResponse([pb.Tensor("y", y[row : row + 1])]) for row in range(len(ids))]
