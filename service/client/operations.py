"""`Operations`: what else the client asks of a stream, besides moving it; no network, as in `exchanges`."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from service.client import replies
from service.client.answers import Answer, Rollout, Snapshot, State
from service.client.exchanges import Ask, Exchange, ModelExchanges, Patience, Place, packed, timed
from service.client.tensors import Inputs
from service.wire.answers import tensor
from service.wire.formats import MSGPACK


class Operations(ModelExchanges):
    """The exchanges about one model and its streams, all of them."""

    def peek(self, place: Place, x: Inputs, *, chunk: bool) -> Exchange[Answer]:
        """Ask what a step or a chunk would be answered from where the stream stands now."""
        patience = self._patience()
        inputs = yield from self._inputs(x, patience)
        document = {"inputs": packed(inputs)} | ({"chunk": True} if chunk else {})
        reply = yield from self._insist(Ask("POST", f"{self._path(place)}/peek", document, moves=False), patience)
        return replies.read(reply, replies.Peeked).answer()

    @timed
    def rollout(
        self,
        patience: Patience,
        place: Place,
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
            reply = yield from self._insist(Ask("POST", path, document, moves=False), patience)
            return replies.read(reply, replies.Rolled).rollout()
        yield from self._find(place, patience)
        document |= {"commit": True, "seq": place.step + 1}
        if place.state_id is not None:
            document["after"] = place.state_id
        return (yield from self._move(place, Ask("POST", path, document), patience, _rolled))

    @timed
    def fork(self, patience: Patience, place: Place, to: Place, snapshot: str | None) -> Exchange[Place]:
        """Begin another stream as this one is, or as its snapshot is."""
        document: dict[str, Any] = {"to": to.stream}
        if snapshot is not None:
            document["from"] = {"snapshot": snapshot}
        reply = yield from self._insist(self._once("POST", place, "fork", document), patience)
        answer = replies.read(reply, replies.Moved)
        to.stand(answer.step, answer.state_id)
        return to

    @timed
    def reset_to(self, patience: Patience, place: Place, snapshot: str) -> Exchange[Answer]:
        """Bring a stream back to a snapshot of it."""
        yield from self._find(place, patience)
        document: dict[str, Any] = {"to": {"snapshot": snapshot}}
        if place.state_id is not None:
            document["after"] = place.state_id
        reply = yield from self._insist(self._once("POST", place, "reset", document), patience)
        return self._begin_anew(place, replies.read(reply, replies.Moved).answer())

    def snapshots(self, place: Place) -> Exchange[list[Snapshot]]:
        """List a stream's snapshots."""
        reply = yield from self._insist(Ask("GET", f"{self._path(place)}/snapshots"), self._patience())
        return replies.read(reply, replies.Snapshots).snapshots

    def take_snapshot(self, place: Place, name: str) -> Exchange[Answer]:
        """Copy a stream as it is now."""
        reply = yield from self._insist(self._once("PUT", place, f"snapshots/{name}", {}), self._patience())
        return replies.read(reply, replies.Moved).answer()

    def forget_snapshot(self, place: Place, name: str) -> Exchange[None]:
        """Forget a snapshot."""
        yield from self._insist(self._once("DELETE", place, f"snapshots/{name}", None), self._patience())

    def state(self, place: Place) -> Exchange[State]:
        """Read a stream's state."""
        reply = yield from self._insist(Ask("GET", f"{self._path(place)}/state"), self._patience())
        return replies.read(reply, replies.States).state()

    @timed
    def put_state(self, patience: Patience, place: Place, state: State) -> Exchange[Answer]:
        """Let a stream go on from a state."""
        document: dict[str, Any] = {
            "states": {name: tensor(array, MSGPACK) for name, array in state.states.items()},
            "step": state.step,
        }
        if state.fingerprint:
            document["fingerprint"] = state.fingerprint
        reply = yield from self._insist(self._once("PUT", place, "state", document), patience)
        return self._begin_anew(place, replies.read(reply, replies.Moved).answer())

    def _once(self, method: str, place: Place, what: str, document: Mapping[str, Any] | None) -> Ask:
        return Ask(method, f"{self._path(place)}/{what}", document, key=uuid.uuid4().hex)


def _rolled(reply: replies.Reply) -> Rollout:
    return replies.read(reply, replies.Rolled).rollout()
