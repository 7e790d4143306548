"""`PythonKit`: runs cases of `clients/conformance.json` by the Python client."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import numpy as np

from stepwell_client import (
    AsyncClient,
    AsyncModel,
    ClientError,
    Feed,
    PackedState,
    RolloutTimestep,
    RunResult,
    StepResult,
)
from stepwell_client.protocol import decoding
from stepwell_client.protocol.decoding import RawReply
from stepwell_client.protocol.exchange import Exchange, drive_async
from stepwell_client.protocol.requests import ClientRequest
from tests.all_clients.kit import KIT, Case

_BINARY_FRAME = b"\x82"
"""The first byte of a WebSocket message; a request by HTTP without a body has only ASCII."""


class PythonKit:
    """Runs cases by one client."""

    def __init__(
        self, client: AsyncClient, *, by_feed: bool = False, lose_answer: Callable[[bytes], None] = lambda _: None
    ) -> None:
        """Create it.

        Args:
            client: The client.
            by_feed: Whether the single steps of a handle go over a feed.
            lose_answer: Has the answer lost to the next request, or message, that contains some bytes.
        """
        self._client = client
        self._by_feed = by_feed
        self._lose_answer = lose_answer

    async def run_requests(self, case: Case) -> None:
        """Run a case of the section `http`.

        Raises:
            AssertionError: A response differs from the expected one.
        """
        for action in case.case["do"]:
            method, path, body, key = case.request(action)

            found = await self.send(ClientRequest(method, path, body, key=key))

            assert ("error" in action) == ("code" in found), f"{action}: {found}"
            case.check(action if "error" not in action else _without_status(action), found)

    async def run_calls(self, case: Case) -> None:
        """Run a case of the section `client`.

        Raises:
            AssertionError: A result differs from the expected one.
        """
        models = {name: self._client.model(KIT["model"]) for name in ("a", "other")}
        async with contextlib.AsyncExitStack() as stack:
            feeds = {name: await stack.enter_async_context(model.feed()) for name, model in models.items()}
            for action in case.case["do"]:
                handle = action.get("handle", "a")
                await self._run_call(case, action, models[handle], feeds[handle])

    async def send(self, request: ClientRequest) -> Any:
        """Send a request once; return the document of its response, or the fields of its error."""
        return await _outcome(drive_async(_once(request), self._client._send))

    async def _run_call(self, case: Case, action: dict[str, Any], model: AsyncModel, feed: Feed) -> None:
        call = case.fill({name: value for name, value in action.items() if name not in {"expect", "error"}})
        by_feed = self._by_feed and call["call"] == "step"
        if "lose_answer" in action and not case.under_faults:
            self._lose_answer(_BINARY_FRAME if by_feed else b"POST ")
        name = call.get("stream", case.stream())

        found = await _outcome(feed.step(name, call["inputs"]) if by_feed else self._call(model, name, call))

        assert ("error" in action) == (isinstance(found, dict) and "code" in found), f"{action}: {found}"
        case.check(action, found)

    async def _call(self, model: AsyncModel, name: str, call: dict[str, Any]) -> Any:
        """Make a call of the client as the case names it."""
        stream = model.stream(name)
        match call["call"]:
            case "step" | "steps" | "peek" as method:
                return await getattr(stream, method)(call["inputs"])
            case "rollout":
                return await stream.rollout(call["horizon"], commit=call.get("commit", False))
            case "rollout_timesteps":
                made = stream.rollout_timesteps(call["horizon"], commit=call.get("commit", False))
                return [timestep async for timestep in made]
            case "run":
                return await model.run(call["inputs"], call["state"])
            case "run_many":
                return await model.run_many(call["inputs"], call["states"])
            case "put_state":
                return await stream.put_state(PackedState(call["state"], call["step"]))
            case "step_many":
                return await model.step_many(call["inputs"])
            case "fork":
                await stream.fork(call["to"])
            case "feed":
                async with model.feed() as feed:
                    return list(await asyncio.gather(*(feed.step(*one) for one in call["steps"])))
            case method:
                return await getattr(stream, method)()
        return None


def _once(request: ClientRequest) -> Exchange[Any]:
    """Send a request as it is, and return the document of its response."""
    reply = yield request
    error = decoding.error_in(reply, mutates=True)
    if error is not None:
        raise error
    assert isinstance(reply, RawReply)
    return msgspec.msgpack.decode(reply.body) if reply.body else {}


async def _outcome(call: Awaitable[Any]) -> Any:
    """Return a call's result, or the fields of its error, as plain values."""
    try:
        return plain_result(await call)
    except ClientError as error:
        return plain_result(error)


def plain_result(value: Any) -> Any:
    """Return a value of the client as the values of the case are written."""
    match value:
        case ClientError():
            return {name: getattr(value, name) for name in ("code", "applied", "retry", "step", "expected", "state_id")}
        case StepResult():
            names = ("outputs", "step", "state_id", "replayed", "created")
            fields = {name: plain_result(getattr(value, name)) for name in names}
            return {name: field for name, field in fields.items() if field is not False}
        case RunResult() | RolloutTimestep():
            return {field.name: plain_result(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case np.ndarray() | np.generic():
            return value.tolist()
        case {"d": dtype, "s": shape, "b": data}:
            return np.frombuffer(data, dtype).reshape(shape).tolist()
        case dict():
            return {name: plain_result(member) for name, member in value.items()}
        case list():
            return [plain_result(member) for member in value]
        case _ if hasattr(value, "__struct_fields__"):
            return {name: getattr(value, name) for name in value.__struct_fields__}
        case _:
            return value


def _without_status(action: dict[str, Any]) -> dict[str, Any]:
    """Return an action without the status that its error has: the client's errors have codes, which are more exact."""
    return action | {"error": {name: value for name, value in action["error"].items() if name != "status"}}
