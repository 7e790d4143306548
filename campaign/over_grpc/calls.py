"""`GrpcCalls`: infer requests over gRPC to the workers, by calls of `ModelInfer` or over one stream call a worker."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import grpc
import numpy as np

from campaign.checker import MODEL
from stepwell.addons.grpc_api.messages import SERVICE, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse
from tests.exactly_once.http import NoAnswerError

_STATUS: Final[Mapping[grpc.StatusCode, int]] = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
}
_OUTCOME: Final = re.compile(r"\(code: (\w+), applied: (\w+)\)$")
_STOPPING: Final = "Server is stopping"
_CONNECTION: Final = [
    ("grpc.initial_reconnect_backoff_ms", 50),  # by default seconds, and after some kills minutes
    ("grpc.min_reconnect_backoff_ms", 5_000),  # the least that an attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 500),
]


class Infer(NamedTuple):
    """One timestep as an infer request.

    Attributes:
        sequence: The stream.
        x: Its input.
        step: Its number, or None.
        key: Its idempotency key, or None.
        start: It starts the sequence.
        end: It ends the sequence.
    """

    sequence: str
    x: int
    step: int | None = None
    key: str | None = None
    start: bool = False
    end: bool = False

    def message(self, name: str = "") -> Any:
        """Return the `ModelInferRequest` with this id."""
        request = ModelInferRequest(model_name=MODEL, id=name)
        parameters = request.parameters
        parameters["sequence_id"].string_param = self.sequence
        parameters["sequence_start"].bool_param = self.start
        parameters["sequence_end"].bool_param = self.end
        if self.step is not None:
            parameters["step"].int64_param = self.step
        if self.key is not None:
            parameters["idempotency_key"].string_param = self.key
        request.inputs.add(name="x", datatype="INT64", shape=(1, 1))
        request.raw_input_contents.append(np.array([[self.x]], "<i8").tobytes())
        return request


class GrpcCalls:
    """The calls to one worker; a stream call that has failed is replaced at the next request."""

    def __init__(self, port: int) -> None:
        """Create the connection; it opens with the first request."""
        self._names = itertools.count()
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=_CONNECTION)
        path = f"/{SERVICE.full_name}"
        self._infer = self._channel.unary_unary(
            f"{path}/ModelInfer", ModelInferRequest.SerializeToString, ModelInferResponse.FromString
        )
        self._infer_stream = self._channel.stream_stream(
            f"{path}/ModelStreamInfer", ModelInferRequest.SerializeToString, ModelStreamInferResponse.FromString
        )
        self._open: _StreamCall | None = None
        self._readers: set[asyncio.Task[None]] = set()

    async def unary(self, one: Infer, timeout: float) -> tuple[int, dict[str, Any]]:
        """Send a request by `ModelInfer`, and return the HTTP status and the document that its answer stands for.

        Raises:
            NoAnswerError: The connection failed, or no answer arrived in time.
        """
        try:
            response = await self._infer(one.message(), timeout=timeout)
        except grpc.aio.AioRpcError as error:
            status, details = _STATUS.get(error.code()), error.details() or ""
            if status is None or (status == 503 and not _is_answer(details)):
                raise NoAnswerError from error
            return status, _problem(details)
        return 200, _document(response)

    async def stream(self, one: Infer, timeout: float) -> tuple[int, dict[str, Any]]:
        """Send a request over the worker's stream call; otherwise as `unary`."""
        if self._open is None or self._open.is_over:
            self._open = _StreamCall(self._infer_stream())
            self._readers.add(self._open.reader)
            self._open.reader.add_done_callback(self._readers.discard)
        return _answer(await self._open.request(one, str(next(self._names)), timeout))

    async def together(self, requests: Sequence[Infer], timeout: float) -> list[tuple[int, dict[str, Any]] | None]:
        """Send requests over a stream call of their own, without waiting for answers in between; None: no answer."""
        call = _StreamCall(self._infer_stream())

        async def one(request: Infer) -> tuple[int, dict[str, Any]] | None:
            try:
                return _answer(await call.request(request, str(next(self._names)), timeout))
            except NoAnswerError:
                return None

        try:
            return await asyncio.gather(*map(one, requests))
        finally:
            call.cancel()
            await call.reader

    def abort(self) -> None:
        """Cancel the stream call."""
        if self._open is not None:
            self._open.cancel()

    async def close(self) -> None:
        """Close the connection, and wait until the stream calls have ended."""
        self.abort()
        await asyncio.gather(*self._readers)
        await self._channel.close()


class _StreamCall:
    """One call of `ModelStreamInfer`.

    Attributes:
        reader: The task that receives its responses.
        is_over: No further request can be sent.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._lock = asyncio.Lock()  # a call accepts one write at a time; they are in the order of the requests
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self.is_over = False
        self.reader = asyncio.create_task(self._read())

    async def request(self, one: Infer, name: str, timeout: float) -> Any:
        """Send a request, and return its response.

        Raises:
            NoAnswerError: The call has ended, or no response arrived in time.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[name] = answer
        try:
            async with asyncio.timeout(timeout):
                async with self._lock:
                    if self.is_over:
                        raise NoAnswerError
                    await self._call.write(one.message(name))
                return await answer
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError, TimeoutError) as exc:
            raise NoAnswerError from exc
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise NoAnswerError from None  # the call was cancelled, and not this task
        finally:
            del self._waiting[name]

    def cancel(self) -> None:
        """Cancel the call."""
        self.is_over = True
        self._call.cancel()

    async def _read(self) -> None:
        try:
            async for response in self._call:
                waiting = self._waiting.get(response.infer_response.id)
                if waiting is not None and not waiting.done():
                    waiting.set_result(response)
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass
        self.is_over = True
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(NoAnswerError())
                waiting.exception()  # its request may have timed out in this iteration of the loop


_RETRIED: Final = frozenset(
    {"overloaded", "draining", "store_unavailable", "outcome_unknown", "not_durable", "model_timeout", "rate_limited"}
)


def _answer(response: Any) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and the document that a response of a stream stands for."""
    if not response.error_message:
        return 200, _document(response.infer_response)
    problem = _problem(response.error_message)
    return (503 if problem["applied"] == "unknown" or problem["code"] in _RETRIED else 400), problem


def _is_answer(details: str) -> bool:
    """Whether the service has responded with this text, and not gRPC itself, after a connection broke."""
    return details.startswith(_STOPPING) or _OUTCOME.search(details) is not None


def _document(response: Any) -> dict[str, Any]:
    """Return the answer as over HTTP; the protocol has no state id."""
    [raw] = response.raw_output_contents
    parameters = response.parameters
    return {
        "outputs": {"y": np.frombuffer(raw, "<i8").tolist()},
        "step": parameters["step"].int64_param,
        "state_id": "",
        "replayed": parameters["replayed"].bool_param,
    }


def _problem(details: str) -> dict[str, Any]:
    """Return the problem that a text stands for."""
    found = _OUTCOME.search(details)
    code, applied = found.groups() if found else ("draining" if details.startswith(_STOPPING) else "bad_request", "no")
    return {"code": code, "applied": applied, "detail": details}
