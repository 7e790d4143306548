"""`StreamOps`: what else the client asks of a stream, besides moving it; no network, as in `exchanges`."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from service.client import decoding
from service.client.inputs import Inputs
from service.client.protocol import ClientRequest, Exchange, ModelProtocol, RetryPolicy, StreamCursor, packed, timed
from service.client.results import Rollout, Snapshot, State, StepResult
from service.codec.formats import MSGPACK
from service.codec.responses import encode_tensor


class StreamOps(ModelProtocol):
    """The exchanges about one model and its streams, all of them."""

    def peek(self, place: StreamCursor, x: Inputs, *, chunk: bool) -> Exchange[StepResult]:
        """Ask what a step or a chunk would be answered from where the stream stands now."""
        patience = self._retry_policy()
        inputs = yield from self._inputs(x, patience)
        document = {"inputs": packed(inputs)} | ({"chunk": True} if chunk else {})
        reply = yield from self._send_with_retry(
            ClientRequest("POST", f"{self._path(place)}/peek", document, moves=False), patience
        )
        return decoding.read(reply, decoding.PeekReply).answer()

    @timed
    def rollout(
        self,
        patience: RetryPolicy,
        place: StreamCursor,
        horizon: int,
        x: Inputs | None,
        options: Mapping[str, Any],
        *,
        commit: bool,
    ) -> Exchange[Rollout]:
        """Ask where the stream goes by its own predictions; with `commit` it goes there."""
        document: dict[str, Any] = {"horizon": horizon, **options}
        if x is not None:
            document["inputs"] = packed((yield from self._inputs(x, patience)))
        path = f"{self._path(place)}/rollout"
        if not commit:
            reply = yield from self._send_with_retry(ClientRequest("POST", path, document, moves=False), patience)
            return decoding.read(reply, decoding.RolloutReply).rollout()
        yield from self._ensure_cursor(place, patience)
        document |= {"commit": True, "seq": place.step + 1}
        if place.state_id is not None:
            document["after"] = place.state_id
        return (yield from self._move(place, ClientRequest("POST", path, document), patience, _rolled))

    @timed
    def fork(
        self, patience: RetryPolicy, place: StreamCursor, to: StreamCursor, snapshot: str | None
    ) -> Exchange[StreamCursor]:
        """Begin another stream as this one is, or as its snapshot is."""
        document: dict[str, Any] = {"to": to.stream}
        if snapshot is not None:
            document["from"] = {"snapshot": snapshot}
        reply = yield from self._send_with_retry(self._once("POST", place, "fork", document), patience)
        answer = decoding.read(reply, decoding.StepReply)
        to.set(answer.step, answer.state_id)
        return to

    @timed
    def reset_to(self, patience: RetryPolicy, place: StreamCursor, snapshot: str) -> Exchange[StepResult]:
        """Bring a stream back to a snapshot of it."""
        yield from self._ensure_cursor(place, patience)
        document: dict[str, Any] = {"to": {"snapshot": snapshot}}
        if place.state_id is not None:
            document["after"] = place.state_id
        reply = yield from self._send_with_retry(self._once("POST", place, "reset", document), patience)
        return self._start_over(place, decoding.read(reply, decoding.StepReply).answer())

    def snapshots(self, place: StreamCursor) -> Exchange[list[Snapshot]]:
        """List a stream's snapshots."""
        reply = yield from self._send_with_retry(
            ClientRequest("GET", f"{self._path(place)}/snapshots"), self._retry_policy()
        )
        return decoding.read(reply, decoding.SnapshotsReply).snapshots

    def take_snapshot(self, place: StreamCursor, name: str) -> Exchange[StepResult]:
        """Copy a stream as it is now."""
        reply = yield from self._send_with_retry(
            self._once("PUT", place, f"snapshots/{name}", {}), self._retry_policy()
        )
        return decoding.read(reply, decoding.StepReply).answer()

    def forget_snapshot(self, place: StreamCursor, name: str) -> Exchange[None]:
        """Forget a snapshot."""
        yield from self._send_with_retry(self._once("DELETE", place, f"snapshots/{name}", None), self._retry_policy())

    def state(self, place: StreamCursor) -> Exchange[State]:
        """Read a stream's state."""
        reply = yield from self._send_with_retry(
            ClientRequest("GET", f"{self._path(place)}/state"), self._retry_policy()
        )
        return decoding.read(reply, decoding.StateReply).state()

    @timed
    def put_state(self, patience: RetryPolicy, place: StreamCursor, state: State) -> Exchange[StepResult]:
        """Let a stream go on from a state."""
        document: dict[str, Any] = {
            "states": {name: encode_tensor(array, MSGPACK) for name, array in state.states.items()},
            "step": state.step,
        }
        if state.fingerprint:
            document["fingerprint"] = state.fingerprint
        reply = yield from self._send_with_retry(self._once("PUT", place, "state", document), patience)
        return self._start_over(place, decoding.read(reply, decoding.StepReply).answer())

    def _once(self, method: str, place: StreamCursor, what: str, document: Mapping[str, Any] | None) -> ClientRequest:
        return ClientRequest(method, f"{self._path(place)}/{what}", document, key=uuid.uuid4().hex)


def _rolled(reply: decoding.Reply) -> Rollout:
    return decoding.read(reply, decoding.RolloutReply).rollout()
