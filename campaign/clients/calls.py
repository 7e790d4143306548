"""`ClientCalls`: the calls of a client, made by a Node process with the TypeScript client, or by the Python client."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from campaign.checker import MODEL
from stepwell_client import AsyncClient, AsyncModel, ClientError, Feed, StepResult
from tests.npm import NEEDS_NODE, node_command

PROGRAM: Final = Path(__file__).resolve().parents[2] / "clients" / "typescript" / "campaign.mjs"
_MAX_LINE_BYTES: Final = 2**24
_END_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class ClientCall:
    """A call of a client.

    Attributes:
        method: The method's name in the TypeScript client: of a stream's handle; `feed`: `step` of a feed; `stepMany`
            of a model; `request` of a client.
        stream: The stream's id; empty for `stepMany` and `request`.
        arguments: What the method takes before its options.
        options: Its options, without a timeout.
        writer: Number of the model object, each of which is an independent writer.
        timeout: Seconds that the call may take.
    """

    method: str
    stream: str = ""
    arguments: Sequence[Any] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    writer: int = 0
    timeout: float = 60.0


class ClientEndedError(Exception):
    """A client cannot make calls any more: its process has ended, or was never started."""


class ClientCalls(Protocol):
    """Makes the calls of one client."""

    async def make(self, call: ClientCall) -> dict[str, Any]:
        """Make a call; return `{"result": ..}` or `{"error": {"code", "applied", "retry", ..}}`.

        Raises:
            ClientEndedError: No call can be made any more.
        """
        ...

    async def close(self) -> None:
        """Close the client."""
        ...


class NodeCalls:
    """Calls of the TypeScript client, in a Node process that the first call starts."""

    def __init__(self, url: str, log: Path) -> None:
        """Create it.

        Args:
            url: Address of the service.
            log: Receives what the process prints to stderr.
        """
        self._url = url
        self._log = log
        self._ids = itertools.count()
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._starting = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def make(self, call: ClientCall) -> dict[str, Any]:
        """Make a call.

        Raises:
            ClientEndedError: There is no Node, or the client threw what is no `StepwellError`, which ends the process.
        """
        process = await self._started()
        number = next(self._ids)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        document = {
            "id": number,
            "method": call.method,
            "writer": call.writer,
            "stream": call.stream,
            "arguments": [*call.arguments, {**call.options, "timeoutMs": 1000 * call.timeout}],
        }
        self._waiting[number] = answer
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(document) + b"\n")
        return await answer

    async def close(self) -> None:
        """End the process."""
        if self._process is None or self._reading is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _END_S)
        except TimeoutError:
            self._process.kill()
        await self._reading

    async def _started(self) -> asyncio.subprocess.Process:
        async with self._starting:
            if self._process is None:
                command = await asyncio.to_thread(node_command)
                if command is None:
                    raise ClientEndedError(f"the TypeScript client {NEEDS_NODE}")
                with self._log.open("ab") as log:
                    self._process = await asyncio.create_subprocess_exec(
                        *command,
                        str(PROGRAM),
                        self._url,
                        MODEL,
                        stdin=asyncio.subprocess.PIPE,
                        stdout=asyncio.subprocess.PIPE,
                        stderr=log,
                        limit=_MAX_LINE_BYTES,
                    )
                self._reading = asyncio.create_task(self._read(self._process))
            if self._process.returncode is not None:
                raise self._ended()
            return self._process

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            document = msgspec.json.decode(line)
            answer = self._waiting.pop(document["id"])
            if not answer.done():
                answer.set_result(document)
        await process.wait()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(self._ended())

    def _ended(self) -> ClientEndedError:
        return ClientEndedError(f"the Node process has ended; it printed:\n{self._log.read_text()[-2000:]}")


class PythonCalls:
    """Calls of the Python client, by the names that they have in the TypeScript client; `request` is not one."""

    def __init__(self, client: AsyncClient) -> None:
        """Create it; the client is closed with it."""
        self._client = client
        self._writers: dict[int, tuple[AsyncModel, Feed]] = {}

    async def make(self, call: ClientCall) -> dict[str, Any]:
        """Make a call; it is cancelled when its time is over, and its outcome is unknown then."""
        try:
            return {"result": await asyncio.wait_for(self._made(call), call.timeout)}
        except TimeoutError:
            detail = f"cancelled after {call.timeout:.3f} s"
            return {"error": {"code": "no_answer", "detail": detail, "applied": "unknown", "retry": "same"}}
        except ClientError as error:
            return {"error": _plain_error(error)}

    async def close(self) -> None:
        """Close the feeds and the client."""
        for _, feed in self._writers.values():
            await feed.__aexit__()
        await self._client.aclose()

    async def _made(self, call: ClientCall) -> Any:
        if call.writer not in self._writers:
            model = self._client.model(MODEL)
            self._writers[call.writer] = (model, model.feed())
        model, feed = self._writers[call.writer]
        options = dict(call.options)
        if "source" in options:
            options["source"] = (options["source"]["id"], options["source"]["at"])
        match call.method:
            case "stepMany":
                rows = await model.step_many(*call.arguments)
                return {
                    name: {"error": _plain_error(row)} if isinstance(row, ClientError) else {"result": _plain(row)}
                    for name, row in rows.items()
                }
            case "feed":
                return _plain(await feed.step(call.stream, *call.arguments, **options))
            case "takeSnapshot":
                return _plain(await model.stream(call.stream).take_snapshot(*call.arguments))
            case "fork":
                await model.stream(call.stream).fork(*call.arguments, **options)
                return {}
            case method:
                return _plain(await getattr(model.stream(call.stream), method)(*call.arguments, **options))


def _plain(result: Any) -> Any:
    """Return a result as the API's document."""
    if not isinstance(result, StepResult):
        return msgspec.to_builtins(result)
    outputs: dict[str, Any] = {name: array.tolist() for name, array in result.outputs.items()}
    for rows in outputs.values():
        rows[: result.unknown] = [None] * result.unknown
    names = ("step", "state_id", "replayed", "skipped")
    return {"outputs": outputs, **{name: getattr(result, name) for name in names}}


def _plain_error(error: ClientError) -> dict[str, Any]:
    names = ("code", "applied", "retry", "step", "expected")
    return {"detail": str(error), **{name: getattr(error, name) for name in names}}
