"""`InferCall`: one infer request of gRPC, from its message to its response; `CallHead`: what its metadata has."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from google.protobuf.message import DecodeError

from stepwell.addons.grpc_api import infer_codec
from stepwell.addons.grpc_api.messages import SERVICE, Message, ModelInferResponse
from stepwell.addons.grpc_api.request_collector import RequestCollector
from stepwell.addons.oip.errors import bad_request, oip_status
from stepwell.addons.oip.infer_handler import InferHandler, codec_of, model_for_oip
from stepwell.errors import ServiceError
from stepwell.ids import IDEMPOTENCY_KEY_LIMIT
from stepwell.models.served import ServedModel
from stepwell.requests.context import AppContext
from stepwell.requests.problems import internal_error
from stepwell.requests.request_ids import log_fields, request_id_of
from stepwell_client.wire.formats import Format

_log = logging.getLogger(__name__)
_TEXT: Final = ("authorization", "idempotency-key", "x-request-id", "traceparent")


class CallHead:
    """The metadata of a call.

    Attributes:
        route: The full name of its method, for the metrics.
        authorization: As sent, or None.
        request_id: The id of the request, or empty.
    """

    __slots__ = ("_idempotency_key", "authorization", "request_id", "route")

    def __init__(self, context: AppContext, method: str, rpc: Any) -> None:
        """Read the metadata of a call; of several entries with one name the first counts."""
        found: dict[str, str] = {}
        for name, value in rpc.invocation_metadata() or ():
            if name in _TEXT:
                found.setdefault(name, value)
        self.route = f"/{SERVICE.full_name}/{method}"
        self.authorization = found.get("authorization")
        self._idempotency_key = found.get("idempotency-key")
        ids = [(name.encode(), found[name].encode("latin-1", "replace")) for name in _TEXT[2:] if name in found]
        self.request_id = request_id_of(ids, context.tracer) if ids else b""

    @property
    def idempotency_key(self) -> str | None:
        """The Idempotency-Key, or None.

        Raises:
            TritonError: `bad_request`: it does not have 1 to 255 characters.
        """
        key = self._idempotency_key
        if key is not None and not 1 <= len(key) <= IDEMPOTENCY_KEY_LIMIT:
            bad_request(f"idempotency-key has {len(key)} characters; expected 1 to {IDEMPOTENCY_KEY_LIMIT}")
        return key


class InferCall:
    """One infer request, decoded and authorized; a `RequestHandler`.

    Attributes:
        served: The model.
        name: The client's id of the request, or empty.
        marks_final: Its last response is to be marked.
    """

    __slots__ = ("_context", "_handler", "_message", "_received_s", "marks_final", "name", "served")
    response_format: ClassVar = Format.BYTES
    extra_headers: ClassVar[Mapping[str, str] | None] = None
    is_reusable: ClassVar[bool] = False

    def __init__(self, context: AppContext, head: CallHead, tenant: str, message: Message, received_s: float) -> None:
        """Find the model of a request.

        Args:
            context: The dependencies of every route.
            head: The metadata of its call.
            tenant: The owner of the sequences.
            message: The `ModelInferRequest`.
            received_s: When it was received, on the monotonic clock; for traces.

        Raises:
            ServiceError: `model_not_found`, or `bad_request`: the idempotency key is not valid.
        """
        version = message.model_version or None
        self.served: ServedModel = model_for_oip(context, message.model_name, version)
        self.name: str = message.id
        self.marks_final = infer_codec.marks_final_response(message)
        self._context = context
        self._message = message
        self._received_s = received_s
        self._handler = InferHandler(
            context,
            self.served,
            None if version is None else self.served.version,
            tenant,
            head.idempotency_key,
            transport="grpc",
        )

    def submit(self, _body: bytes, done: Callable[[Any], None]) -> None:
        """Submit the request, or raise what is wrong with it; the body is decoded already."""
        request = infer_codec.decode(self._message, codec_of(self._context, self.served))
        self._handler.submit_request(request, done)

    def submit_or_trace(self, head: CallHead, done: Callable[[Any], None]) -> None:
        """Submit the request, and trace it if it is sampled; otherwise as `submit`."""
        tracer = self._context.tracer
        if tracer is None:
            self.submit(b"", done)
        else:
            tracer.submit(
                self,
                b"",
                done,
                request_id=tracer.sample(head.request_id),
                route=head.route,
                status_of=oip_status,
                stream=infer_codec.stream_of(self._message),
                received_s=self._received_s,
            )

    def fill(self, response: Message, result: Any) -> None:
        """Write the result, which is not a `ServiceError`, to a `ModelInferResponse`."""
        infer_codec.fill(response, self.served.name, self._handler.response(result))

    def encode_response(self, result: Any) -> bytes:
        """Return the encoded `ModelInferResponse` of a result that is not a `ServiceError`."""
        response = ModelInferResponse()
        self.fill(response, result)
        encoded: bytes = response.SerializeToString()
        return encoded


async def respond(call: InferCall, head: CallHead, collector: RequestCollector) -> bytes:
    """Submit a request together with others that arrive, and return its encoded response.

    The engine completes a request that was submitted even if the caller is cancelled.

    Raises:
        ServiceError: The request was rejected, or its outcome is unknown; see `applied`.
    """
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def done(result: Any) -> None:
        if not future.done():
            future.set_result(result)

    def submit() -> None:
        if not future.done():  # else the client has cancelled it already
            try:
                call.submit_or_trace(head, done)
            except Exception as exc:  # noqa: BLE001 - raised below
                done(exc)

    collector.add(submit)
    try:
        result = await future
    finally:
        collector.finished()
    if isinstance(result, Exception):
        raise result
    return call.encode_response(result)


def parse(message: Any, body: bytes) -> Message:
    """Decode a message of a class.

    Raises:
        TritonError: `bad_request`: the bytes are no such message.
    """
    try:
        return message.FromString(body)
    except DecodeError as exc:
        bad_request(f"failed to parse the request: {exc}")


def as_service_error(exc: Exception, context: AppContext, head: CallHead) -> ServiceError:
    """Return the error to respond with, after counting it; an unexpected exception is logged."""
    error = exc
    if not isinstance(error, ServiceError):
        _log.error("A request failed: %s", head.route, exc_info=exc, extra=log_fields(head.request_id))
        error = internal_error()
    context.metrics.refusal(error.code)
    context.metrics.request("grpc", oip_status(error), head.route)
    return error
