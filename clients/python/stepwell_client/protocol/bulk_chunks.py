"""`BulkChunks`: a chunk of each of many streams in one request, each timestep once; without network access."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stepwell_client.errors import ClientError
from stepwell_client.protocol import decoding
from stepwell_client.protocol.exchange import Exchange
from stepwell_client.protocol.inputs import packed
from stepwell_client.protocol.requests import ClientRequest
from stepwell_client.protocol.retry import RetryPolicy
from stepwell_client.protocol.steps import ModelProtocol, timed
from stepwell_client.wire.formats import MSGPACK, Array, encode_tensor
from stepwell_client.wire.outcomes import ReturnMode


@dataclass(slots=True)
class ChunksResult:
    """The responses to a chunk of T timesteps of each of N streams.

    Attributes:
        outputs: `(N, T, *row)` by output, zeros where they are not known; empty if none were requested.
        steps: The step of each stream's last timestep, `(N,)` int64; 0 where it is not known.
        skipped: Timesteps of each stream that were applied before, `(N,)`.
        unknown: The first timesteps of each stream whose outputs are not known any more, `(N,)`.
        errors: The error of each stream that was not stepped, by its index. `source_passed`: all of its timesteps
            were applied before, and none of their outputs is known.
    """

    outputs: dict[str, Array]
    steps: Array
    skipped: Array
    unknown: Array
    errors: dict[int, ClientError] = field(default_factory=dict)


class BulkChunks(ModelProtocol):
    """The exchanges of one model whose timesteps are in columns, with positions of a log or with steps."""

    @timed
    def step_chunks(
        self,
        policy: RetryPolicy,
        streams: Sequence[str],
        inputs: dict[str, Array],
        source_ids: Sequence[str] | None,
        positions: Array,
        *,
        returns: ReturnMode = "all",
    ) -> Exchange[ChunksResult]:
        """Step each of some streams by a chunk; streams with a transient error are retried.

        Args:
            policy: The retries of this call.
            streams: The stream ids, each once.
            inputs: `(N, T, *row)` by input, in the model's dtypes.
            source_ids: The log of each stream; None: there is none.
            positions: The position of each timestep in its log, `(N, T)` int64; without logs the step of each stream's
                first timestep, `(N,)`.
            returns: `all` outputs or `none`.
        """
        n_streams, length = next(iter(inputs.values())).shape[:2]
        steps, skipped, unknown = np.zeros((3, n_streams), np.int64)
        result = ChunksResult({}, steps, skipped, unknown)
        waiting, wait = np.arange(n_streams), 0.0
        while len(waiting):
            rows: Any = slice(None) if len(waiting) == n_streams else waiting  # without a copy
            document: dict[str, Any] = {
                "streams": [streams[i] for i in waiting.tolist()],
                "inputs": packed({name: array[rows] for name, array in inputs.items()}),
                "return": returns,
            }
            if source_ids is None:
                document["seq"] = positions[rows].tolist()
            else:
                ids = _shared([source_ids[i] for i in waiting.tolist()])
                document["source"] = {"id": ids, "at": encode_tensor(positions[rows], MSGPACK)}
            reply = yield from self._send_with_retry(
                ClientRequest("POST", f"{self.path}/steps", document, wait=wait), policy
            )
            again = self._add(result, waiting, decoding.read(reply, decoding.BulkReply), length)
            pause = policy.pause(result.errors[again[0]]) if again else None
            if pause is None:
                break
            waiting, wait = np.array(again), pause
        return result

    @staticmethod
    def _add(result: ChunksResult, waiting: Array, bulk: decoding.BulkReply, length: int) -> list[int]:
        """Add the responses of the streams that were sent; return those that can be sent again."""
        again = []
        for name, column in bulk.arrays().items():
            if name not in result.outputs:
                result.outputs[name] = np.zeros((len(result.steps), length, *column.shape[2:]), column.dtype)
            result.outputs[name][waiting] = column
        result.steps[waiting] = [step or 0 for step in bulk.step]
        result.skipped[waiting] = bulk.skipped or 0
        result.unknown[waiting] = bulk.unknown or 0
        for index, i in enumerate(waiting.tolist()):
            result.errors.pop(i, None)
            if (problem := bulk.errors.get(str(index))) is not None:
                result.errors[i] = error = problem.error()
                if error.code == "source_passed":
                    result.skipped[i] = result.unknown[i] = length
                elif error.retry == "same":
                    again.append(i)
        return again


def _shared(ids: list[str]) -> str | list[str]:
    """Return the one id that all streams have, or the id of each."""
    return ids[0] if len(set(ids)) == 1 else ids
