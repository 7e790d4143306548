"""mosec: a Rust front end that forms batches, and one Python worker with all states in its memory.

After a restart, streams silently start from zeros again: only the speed is compared.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
from mosec import Server, Worker


class Lstm(Worker):  # type: ignore[misc]  # mosec has no types
    """Steps a batch of streams."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"])
        self.states = [i.name for i in self.session.get_inputs() if i.name != "x"]
        self.fetch = ["y", *(f"{name}_next" for name in self.states)]
        self.zeros = np.zeros((2, 64), np.float32)
        self.kept: dict[str, Any] = {}

    def deserialize(self, data: bytes) -> Any:
        """Decode a request."""
        return msgspec.json.decode(data)

    def serialize(self, data: Any) -> bytes:
        """Encode a response."""
        return bytes(msgspec.json.encode(data))

    def forward(self, data: list[Any]) -> list[Any]:
        """Run a batch."""
        x = np.array([item["inputs"]["x"] for item in data], np.float32)
        packed = np.stack([self.kept.get(item["stream"], self.zeros) for item in data])
        feeds = {"x": x, **{name: np.ascontiguousarray(packed[:, i]) for i, name in enumerate(self.states)}}
        y, *after = self.session.run(self.fetch, feeds)
        packed = np.stack(after, axis=1)
        for i, item in enumerate(data):
            self.kept[item["stream"]] = packed[i]
        return [{"outputs": {"y": row}, "step": item["seq"]} for row, item in zip(y.tolist(), data, strict=True)]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Lstm, num=1, max_batch_size=256, max_wait_time=1)
    server.run()
