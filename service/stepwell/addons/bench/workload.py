"""The streams and inputs of a load, and the bytes of its requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from stepwell_client.wire.formats import MSGPACK, encode_tensor
from stepwell_export.runtime.manifest import Array

_ROWS = 64  # different timesteps, sent in rotation


@dataclass(slots=True)
class BenchStream:
    """One stream of the load.

    Attributes:
        name: The stream's id.
        step: Timesteps that the stream has consumed.
    """

    name: str
    step: int = 0


@dataclass(frozen=True, slots=True)
class Workload:
    """A model and the timesteps to send to it.

    Attributes:
        model: The model's name.
        inputs: By input name, `(64, *shape)`: the timesteps, sent in rotation.
        json_rows: The same timesteps as encoded JSON objects.
    """

    model: str
    inputs: Mapping[str, Array]
    json_rows: Sequence[bytes] = field(repr=False)

    @classmethod
    def of(cls, described: Mapping[str, Any], *, seed: int = 0) -> Workload:
        """Return random timesteps for a model described by `GET /v1/models/{M}`: normal floats, integers 0 or 1."""
        rng = np.random.default_rng(seed)
        inputs = {spec["name"]: _draw(rng, spec["dtype"], spec["shape"]) for spec in described["inputs"]}
        rows = [msgspec.json.encode({name: rows[i].tolist() for name, rows in inputs.items()}) for i in range(_ROWS)]
        return cls(described["name"], inputs, rows)

    def body(self, stream: BenchStream) -> bytes:
        """Return the JSON body of a stream's next timestep."""
        return b'{"inputs":%b,"seq":%d}' % (self.json_rows[stream.step % _ROWS], stream.step + 1)

    def message(self, stream: BenchStream) -> bytes:
        """Return the feed message of a stream's next timestep."""
        name = stream.name.encode()
        return b'{"stream":"%b","inputs":%b,"seq":%d}' % (name, self.json_rows[stream.step % _ROWS], stream.step + 1)

    def columns(self, streams: Sequence[BenchStream]) -> bytes:
        """Return the next timestep of many streams as one msgpack frame."""
        indices = [stream.step % _ROWS for stream in streams]
        frame = {
            "streams": [stream.name for stream in streams],
            "inputs": {name: encode_tensor(rows[indices], MSGPACK) for name, rows in self.inputs.items()},
            "seq": [stream.step + 1 for stream in streams],
        }
        return bytes(msgspec.msgpack.encode(frame))


def _draw(rng: np.random.Generator, dtype: str, shape: Sequence[int]) -> Array:
    size = (_ROWS, *shape)
    values = rng.standard_normal(size) if np.dtype(dtype).kind == "f" else rng.integers(0, 2, size)
    return values.astype(dtype)
