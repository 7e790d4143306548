"""`StreamOps`: peek, rollout, fork, snapshots and state, on top of `BulkSteps`; without network access."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from stepwell_client.errors import ClientError
from stepwell_client.protocol import decoding
from stepwell_client.protocol.bulk_steps import BulkSteps
from stepwell_client.protocol.exchange import Exchange
from stepwell_client.protocol.inputs import Inputs, packed
from stepwell_client.protocol.requests import SILENCE_S, ClientRequest, StreamCursor
from stepwell_client.protocol.retry import RetryPolicy
from stepwell_client.protocol.rollout_events import RolloutEvents
from stepwell_client.protocol.steps import dtypes_of, timed
from stepwell_client.results import PackedState, Rollout, RunResult, Snapshot, State, StepResult
from stepwell_client.wire.ids import NAME, snapshot_name_problem

T = TypeVar("T")


class StreamOps(BulkSteps):
    """All exchanges of one model and its streams."""

    def peek(self, cursor: StreamCursor, x: Inputs, *, chunk: bool) -> Exchange[StepResult]:
        """Run a step or a chunk from the stream's current state without committing it."""
        policy = self._retry_policy()
        inputs = yield from self._prepare_inputs(x, policy)
        document = {"inputs": packed(inputs)} | ({"chunk": True} if chunk else {})
        request = ClientRequest("POST", f"{self._stream_path(cursor)}/peek", document, mutates=False)
        return (yield from self._fetch(request, policy, decoding.PeekReply)).result()

    @timed
    def rollout(
        self,
        policy: RetryPolicy,
        cursor: StreamCursor,
        horizon: int,
        x: Inputs | None,
        options: Mapping[str, Any],
        *,
        commit: bool,
    ) -> Exchange[Rollout]:
        """Run the stream by its own predictions; with `commit` the predicted timesteps are committed."""
        document: dict[str, Any] = {"horizon": horizon, **options}
        if x is not None:
            document["inputs"] = packed((yield from self._prepare_inputs(x, policy)))
        path = f"{self._stream_path(cursor)}/rollout"
        if not commit:
            request = ClientRequest("POST", path, document, mutates=False)
            return (yield from self._fetch(request, policy, decoding.RolloutReply)).rollout()
        yield from self._ensure_cursor(cursor, policy)
        document |= {"commit": True, **cursor.identifiers()}
        if "create" in options:
            document["create"] = options["create"]
        return (yield from self._apply(cursor, ClientRequest("POST", path, document), policy, _read_rollout))

    @timed
    def rollout_events(
        self, policy: RetryPolicy, cursor: StreamCursor, horizon: int, x: Inputs | None, options: Mapping[str, Any]
    ) -> Exchange[RolloutEvents]:
        """Return the reader of a rollout that is not committed, which has the request to send."""
        yield from self._ensure_described(policy)
        document: dict[str, Any] = {"horizon": horizon, **options}
        if x is not None:
            document["inputs"] = packed((yield from self._prepare_inputs(x, policy)))
        path = f"{self._stream_path(cursor)}/rollout"
        request = ClientRequest("POST", path, document, timeout=SILENCE_S, mutates=False)
        return RolloutEvents(request, horizon, policy, dtypes_of(self._outputs), dtypes_of(self._declared))

    @timed
    def run(self, policy: RetryPolicy, x: Inputs, state: str | None) -> Exchange[RunResult]:
        """Run a timestep whose state is in the request."""
        document = {"inputs": packed((yield from self._prepare_inputs(x, policy))), "state": state}
        request = ClientRequest("POST", f"{self.path}/run", document, mutates=False)
        return (yield from self._fetch(request, policy, decoding.RunReply)).result()

    @timed
    def run_many(
        self, policy: RetryPolicy, x: Inputs, states: Sequence[str | None]
    ) -> Exchange[list[RunResult | ClientError]]:
        """Run a timestep of each of several states."""
        if isinstance(states, str):
            raise ClientError(
                "bad_request", "`states` is a text; expected a list of packed states.", fix="Give a list."
            )
        document = {"inputs": packed((yield from self._prepare_inputs(x, policy))), "state": [*states]}
        request = ClientRequest("POST", f"{self.path}/run", document, mutates=False)
        return (yield from self._fetch(request, policy, decoding.RunManyReply)).results()

    @timed
    def fork(
        self, policy: RetryPolicy, cursor: StreamCursor, to: StreamCursor, snapshot: str | None
    ) -> Exchange[StreamCursor]:
        """Create another stream as a copy of a stream or of its snapshot."""
        document: dict[str, Any] = {"to": to.stream}
        if snapshot is not None:
            document["from"] = {"snapshot": snapshot}
        request = ClientRequest("POST", f"{self._stream_path(cursor)}/fork", document)
        yield from self._replace(to, request, policy, position=cursor.state_id)
        return to

    @timed
    def reset(self, policy: RetryPolicy, cursor: StreamCursor, snapshot: str | None) -> Exchange[StepResult]:
        """Reset a stream to its initial state or to a snapshot, if its position is still the known one."""
        yield from self._ensure_cursor(cursor, policy)
        document: dict[str, Any] = {} if snapshot is None else {"to": {"snapshot": snapshot}}
        if cursor.state_id is not None:
            document["after"] = cursor.state_id
        request = ClientRequest("POST", f"{self._stream_path(cursor)}/reset", document)
        return (yield from self._replace(cursor, request, policy))

    def snapshots(self, cursor: StreamCursor) -> Exchange[list[Snapshot]]:
        """List a stream's snapshots."""
        request = ClientRequest("GET", f"{self._stream_path(cursor)}/snapshots")
        return (yield from self._fetch(request, self._retry_policy(), decoding.SnapshotsReply)).snapshots

    @timed
    def take_snapshot(self, policy: RetryPolicy, cursor: StreamCursor, name: str) -> Exchange[StepResult]:
        """Save a named copy of a stream's current state."""
        request = ClientRequest("PUT", self._snapshot_path(cursor, name), {})
        return (yield from self._send_once(cursor, request, policy, _read_position))

    @timed
    def forget_snapshot(self, policy: RetryPolicy, cursor: StreamCursor, name: str) -> Exchange[None]:
        """Delete a snapshot."""
        request = ClientRequest("DELETE", self._snapshot_path(cursor, name))
        yield from self._send_once(cursor, request, policy, _read_nothing)

    @timed
    def delete(self, policy: RetryPolicy, cursor: StreamCursor) -> Exchange[None]:
        """Delete a stream."""
        yield from self._send_once(cursor, ClientRequest("DELETE", self._stream_path(cursor)), policy, _read_nothing)
        cursor.set(0, None)
        self._discard_history(cursor)

    def state(self, cursor: StreamCursor) -> Exchange[State]:
        """Read a stream's state."""
        request = ClientRequest("GET", f"{self._stream_path(cursor)}/state")
        return (yield from self._fetch(request, self._retry_policy(), decoding.StateReply)).state()

    def packed_state(self, cursor: StreamCursor) -> Exchange[PackedState]:
        """Read a stream's state as one text."""
        request = ClientRequest("GET", f"{self._stream_path(cursor)}/state?packed=true")
        return (yield from self._fetch(request, self._retry_policy(), PackedState))

    @timed
    def put_state(self, policy: RetryPolicy, cursor: StreamCursor, state: State | PackedState) -> Exchange[StepResult]:
        """Replace a stream's state."""
        path = f"{self._stream_path(cursor)}/state"
        if isinstance(state, PackedState):
            request = ClientRequest("PUT", path, {"state": state.state, "step": state.step})
            return (yield from self._replace(cursor, request, policy))
        states = {name: np.asarray(array) for name, array in state.states.items()}
        document: dict[str, Any] = {"states": packed(states), "step": state.step}
        if state.fingerprint:
            document["fingerprint"] = state.fingerprint
        request = ClientRequest("PUT", path, document)
        return (yield from self._replace(cursor, request, policy))

    def _replace(
        self, cursor: StreamCursor, request: ClientRequest, policy: RetryPolicy, position: str | None = None
    ) -> Exchange[StepResult]:
        """Create a stream, or replace its state; as `_send_once`."""
        result = yield from self._send_once(cursor, request, policy, _read_position, position)
        return self._restart_at(cursor, result)

    def _send_once(
        self,
        cursor: StreamCursor,
        request: ClientRequest,
        policy: RetryPolicy,
        read: Callable[[decoding.RawReply], T],
        position: str | None = None,
    ) -> Exchange[T]:
        """Send a request with an idempotency key, which the same call has again until it succeeds.

        So the call can be repeated, and a late copy of one of its attempts changes nothing.

        Args:
            cursor: The stream that is changed.
            request: The request, without a key.
            policy: The retries of this call.
            read: Reads the reply.
            position: The state id of the stream that is copied.
        """
        request = replace(request, key=cursor.key_of(request, position))
        was_in_doubt, cursor.in_doubt = cursor.in_doubt, True
        try:
            result = read((yield from self._send_with_retry(request, policy)))
        except ClientError as error:
            cursor.in_doubt = was_in_doubt or error.applied != "no"
            raise
        cursor.in_doubt, cursor.keyed = was_in_doubt, None
        return result

    def _snapshot_path(self, cursor: StreamCursor, name: str) -> str:
        """Return the path of a snapshot.

        Raises:
            ClientError: `bad_request`: the name is not valid; in a path, `..` would be the stream itself.
        """
        if NAME.fullmatch(name) is None:
            raise ClientError("bad_request", snapshot_name_problem(name), fix="Use such a name.")
        return f"{self._stream_path(cursor)}/snapshots/{name}"


def _read_position(reply: decoding.RawReply) -> StepResult:
    return decoding.read(reply, decoding.StepReply).result()


def _read_nothing(_reply: decoding.RawReply) -> None:
    return None


def _read_rollout(reply: decoding.RawReply) -> Rollout:
    return decoding.read(reply, decoding.RolloutReply).rollout()
