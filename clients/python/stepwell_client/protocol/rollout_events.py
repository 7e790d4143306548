"""`RolloutEvents`: reads a rollout from the lines of server-sent events; without network access."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from stepwell_client.errors import ClientError
from stepwell_client.protocol import decoding
from stepwell_client.protocol.decoding import NoReply, RawReply
from stepwell_client.protocol.requests import ClientRequest
from stepwell_client.protocol.retry import RetryPolicy
from stepwell_client.results import Rollout, RolloutTimestep
from stepwell_client.wire.formats import JSON, Array

_Dtypes = Mapping[str, np.dtype[Any]]


class _TimestepData(msgspec.Struct):
    outputs: dict[str, Any]
    next: dict[str, Any]


class _DoneData(msgspec.Struct):
    next: dict[str, Any]
    step: int
    state_id: str = ""
    seed: int | None = None
    replayed: bool = False
    created: bool = False


class RolloutEvents:
    """The timesteps of one rollout that is not committed, from the lines of its response.

    A request that fails before its first event is sent again, as long as the policy allows it.

    Attributes:
        request: The request to send next.
        is_done: Whether all timesteps were returned.
    """

    def __init__(
        self, request: ClientRequest, horizon: int, policy: RetryPolicy, outputs: _Dtypes, inputs: _Dtypes
    ) -> None:
        """Start without a timestep.

        Args:
            request: The request.
            horizon: Timesteps of the rollout.
            policy: The retries.
            outputs: The dtypes of the model's outputs, by name.
            inputs: The dtypes of its inputs, by name.
        """
        self.request = request
        self.is_done = False
        self._horizon = horizon
        self._policy = policy
        self._outputs = outputs
        self._inputs = inputs
        self._event, self._data = "", ""
        self._is_refused = False
        self._n_timesteps = 0
        self._last: RolloutTimestep | None = None  # the horizon's, until the rollout is done

    def receive(self, line: str | RawReply | NoReply) -> RolloutTimestep | None:
        """Return the timestep that a line completes; None: it completes none, or the request is to be sent again.

        Args:
            line: A line of the response, or a reply that is no stream of events.

        Raises:
            ClientError: The rollout was rejected, or has failed.
        """
        if not isinstance(line, str):
            self._is_refused = True
            self._retry_or_raise(_error_in(line))
            return None
        self._is_refused = False
        if line:
            name, _, value = line.partition(": ")
            if name == "event":
                self._event = value
            elif name == "data":
                self._data += value
            return None
        event, data, self._event, self._data = self._event, self._data, "", ""
        return self._on_event(event, data) if data else None

    def on_end(self) -> None:
        """Note that the response has ended.

        Raises:
            ClientError: It ended before the rollout was done, and cannot be repeated.
        """
        if not self.is_done and not self._is_refused:
            self._retry_or_raise(
                _error_in(NoReply("The connection was closed before the rollout was done.", sent=True))
            )

    def _on_event(self, event: str, data: str) -> RolloutTimestep | None:
        reply = RawReply(200, data.encode(), JSON)
        if event == "timestep":
            self._n_timesteps += 1
            made = decoding.read(reply, _TimestepData)
            timestep = RolloutTimestep(_arrays(made.outputs, self._outputs), _arrays(made.next, self._inputs))
            if self._n_timesteps < self._horizon:
                return timestep
            self._last = timestep
        elif event == "problem":
            raise self._policy.final_error(decoding.read(reply, decoding.ProblemReply).error())
        elif event == "done" and self._last is not None:
            self.is_done = True
            done, last = decoding.read(reply, _DoneData), self._last
            following = _arrays(done.next, self._inputs)
            rollout = Rollout({}, done.step, done.state_id, done.replayed, done.created, following, done.seed)
            return RolloutTimestep(last.outputs, last.next, rollout)
        return None

    def _retry_or_raise(self, error: ClientError) -> None:
        pause = None if self._n_timesteps else self._policy.pause(error)
        if pause is None:
            raise self._policy.final_error(error)
        self.request = replace(self.request, wait=pause)


def timesteps_of(rollout: Rollout, horizon: int, *, samples: bool) -> list[RolloutTimestep]:
    """Return the timesteps of a rollout that was returned as a whole; `samples`: arrays have a first axis for them."""

    def at(t: int, arrays: Mapping[str, Array]) -> dict[str, Array]:
        return {name: array[:, t] if samples else array[t] for name, array in arrays.items()}

    return [
        RolloutTimestep(at(t, rollout.outputs), at(t, rollout.next), rollout if t == horizon - 1 else None)
        for t in range(horizon)
    ]


def _error_in(reply: RawReply | NoReply) -> ClientError:
    error = decoding.error_in(reply, mutates=False)
    return error or ClientError(
        "unreadable_answer",
        "The response to a streamed rollout is not a stream of events.",
        fix="Check that the versions of client and service match.",
    )


def _arrays(tensors: Mapping[str, Any], dtypes: _Dtypes) -> dict[str, Array]:
    return {name: np.array(values, dtypes.get(name)) for name, values in tensors.items()}
