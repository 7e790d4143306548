"""`InferStream`: one call of `ModelStreamInfer`: requests are submitted as they come, and answered in their order."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from functools import partial
from typing import Any, Final

from grpc.aio import EOF

from stepwell.addons.grpc_api.calls import CallHead, InferCall, as_service_error, parse
from stepwell.addons.grpc_api.infer_codec import FINAL_RESPONSE, set_parameter
from stepwell.addons.grpc_api.messages import Message, ModelInferRequest, ModelStreamInferResponse
from stepwell.addons.grpc_api.request_collector import RequestCollector
from stepwell.addons.oip.errors import oip_message
from stepwell.errors import ServiceError
from stepwell.requests.auth.socket_auth import SocketAuth
from stepwell.requests.context import AppContext

_MAX_PENDING: Final = 256  # requests that may wait for their responses
_MAX_PENDING_BYTES: Final = 4 * 2**20  # their total size; a single larger request is accepted if no other waits


class InferStream:
    """One call of `ModelStreamInfer`.

    A reader task submits requests without waiting for responses; a writer task sends these in the order of the
    requests. If the client does not read its responses, the reader stops, so memory is bounded.
    """

    def __init__(
        self, context: AppContext, head: CallHead, rpc: Any, auth: SocketAuth, collector: RequestCollector
    ) -> None:
        """Create a call without pending requests."""
        self._context = context
        self._head = head
        self._rpc = rpc
        self._auth = auth
        self._collector = collector
        self._pending: deque[_PendingResponse] = deque()
        self._bytes = 0  # of the pending requests
        self._wake = asyncio.Event()  # the next response is ready, or no further request is read
        self._has_room = asyncio.Event()
        self._is_read = False

    async def run(self, stopping: asyncio.Event) -> None:
        """Serve until the client ends the call or the service stops; accepted requests are answered.

        Args:
            stopping: Set when no further request is to be read.

        Raises:
            ServiceError: `draining`; or `unauthenticated` or `forbidden`: the caller's key is no longer valid.
        """
        reader = asyncio.create_task(self._read(), name="grpc-reader")
        writer = asyncio.create_task(self._write(), name="grpc-writer")
        stop = asyncio.create_task(stopping.wait(), name="grpc-stop")
        try:
            await asyncio.wait({reader, writer, stop}, return_when=asyncio.FIRST_COMPLETED)
            self._is_read = True
            self._wake.set()
            if not reader.done():
                reader.cancel()
            await writer
            if reader.done() and not reader.cancelled():
                await reader
            if stop.done():
                raise ServiceError("draining", "This process is about to end.", fix="Send the rest over another call.")
        finally:
            tasks = (reader, writer, stop)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while len(self._pending) >= _MAX_PENDING or self._bytes >= _MAX_PENDING_BYTES:
                self._has_room.clear()
                await self._has_room.wait()
            body = await self._rpc.read()
            if body is EOF:
                return
            self._auth.recheck(loop.time())
            pending = _PendingResponse(self, len(body))
            self._pending.append(pending)
            self._bytes += len(body)
            self._collector.add(partial(self._submit, pending, body))

    def _submit(self, pending: _PendingResponse, body: bytes) -> None:
        try:
            message = parse(ModelInferRequest, body)
            pending.name = message.id
            call = pending.call = InferCall(
                self._context, self._head, self._auth.caller.tenant, message, pending.received_s
            )
            call.submit_or_trace(self._head, pending.on_result)
        except Exception as exc:  # noqa: BLE001 - a failed request must not end its call; it is logged
            pending.on_result(exc)

    async def _write(self) -> None:
        while not (self._is_read and not self._pending):
            await self._wake.wait()
            self._wake.clear()
            while self._pending and self._pending[0].result is not None:
                pending = self._pending.popleft()
                self._bytes -= pending.body_bytes
                await self._rpc.write(self._response(pending).SerializeToString())
                self._has_room.set()

    def _response(self, pending: _PendingResponse) -> Message:
        """Return the response to a request, after counting it."""
        response, result = ModelStreamInferResponse(), pending.result
        if not isinstance(result, Exception):
            assert pending.call is not None
            try:
                pending.call.fill(response.infer_response, result)
            except Exception as exc:  # noqa: BLE001 - nor must it end its call
                response, result = ModelStreamInferResponse(), exc
            else:
                self._context.metrics.request("grpc", 200, self._head.route)
        if isinstance(result, Exception):
            error = as_service_error(result, self._context, self._head)
            response.error_message = oip_message(error)
            response.infer_response.id = pending.name  # as in Triton, so that a client can find the request
        if pending.call is not None and pending.call.marks_final:
            set_parameter(response.infer_response, FINAL_RESPONSE, True)
        return response

    def on_result(self, pending: _PendingResponse) -> None:
        """Wake the writer if it waits for this response."""
        self._collector.finished()
        if self._pending[0] is pending:
            self._wake.set()


class _PendingResponse:
    """A request that has no response yet, or that waits for an earlier response."""

    __slots__ = ("_stream", "body_bytes", "call", "name", "received_s", "result")

    def __init__(self, stream: InferStream, body_bytes: int) -> None:
        self._stream = stream
        self.body_bytes = body_bytes
        self.received_s = time.monotonic()
        self.call: InferCall | None = None
        self.name = ""
        self.result: Any = None

    def on_result(self, result: Any) -> None:
        """Keep the result; it is encoded when it is sent: this may be called while a batch is completed."""
        self.result = result
        self._stream.on_result(self)
