"""`InferenceMethods`: the methods of `inference.GRPCInferenceService`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import grpc
import msgspec
from google.protobuf.json_format import ParseDict

from stepwell.addons.grpc_api.calls import CallHead, InferCall, as_service_error, parse, respond
from stepwell.addons.grpc_api.errors import code_of, metadata_of
from stepwell.addons.grpc_api.infer_stream import InferStream
from stepwell.addons.grpc_api.messages import SERVICE, Message, ModelInferRequest, message_class
from stepwell.addons.grpc_api.request_collector import RequestCollector
from stepwell.addons.oip import models
from stepwell.addons.oip.errors import oip_message
from stepwell.addons.oip.infer_handler import model_for_oip
from stepwell.errors import ServiceError
from stepwell.models.served import ServedModel
from stepwell.requests.auth.api_keys import Caller, Scope
from stepwell.requests.auth.socket_auth import SocketAuth
from stepwell.requests.context import AppContext
from stepwell.requests.request_ids import RESPONSE_HEADER

_CANCELLED: Final = 499  # as for HTTP: the client has gone and does not receive the response
_Work = Callable[[Message, CallHead], Awaitable[Any]]


class InferenceMethods:
    """The methods of the service, as functions that grpcio calls."""

    def __init__(self, context: AppContext, version: str) -> None:
        """Create them."""
        self.stopping = asyncio.Event()
        self.n_open = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self._context = context
        self._version = version
        self._collector = RequestCollector()

    def handlers(self) -> Mapping[str, grpc.RpcMethodHandler]:
        """Return what grpcio calls, by the name of the method."""
        documented: dict[str, _Work] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._repository_model_load,
            "RepositoryModelUnload": self._repository_model_unload,
        }
        handlers = {name: self._unary(name, _as_message(name, work)) for name, work in documented.items()}
        return {
            **handlers,
            "ModelInfer": self._unary("ModelInfer", self._infer),
            "ModelStreamInfer": self._streaming("ModelStreamInfer"),
        }

    # ---------------------------------------------------------------- calls

    def _unary(self, name: str, work: Callable[[bytes, CallHead], Awaitable[bytes]]) -> grpc.RpcMethodHandler:
        """Return a method with one response: errors become codes of gRPC, and every call is counted."""

        async def handle(request: bytes, rpc: Any) -> bytes:
            head = CallHead(self._context, name, rpc)
            with self._counted():
                try:
                    body = await work(request, head)
                except asyncio.CancelledError:
                    self._context.metrics.request("grpc", _CANCELLED, head.route)
                    raise
                except Exception as exc:
                    await self._abort(rpc, head, as_service_error(exc, self._context, head))
                    raise AssertionError from exc  # `abort` raises
            if head.request_id:
                rpc.set_trailing_metadata(_id_of(head))
            self._context.metrics.request("grpc", 200, head.route)
            return body

        return grpc.unary_unary_rpc_method_handler(handle)

    def _streaming(self, name: str) -> grpc.RpcMethodHandler:
        """Return `ModelStreamInfer`."""

        async def handle(_requests: Any, rpc: Any) -> None:
            context, head = self._context, CallHead(self._context, name, rpc)
            auth = SocketAuth(context, "step", head.authorization, ())
            with self._counted():
                try:
                    context.authenticate(head.authorization, "step")
                    auth.authorize_handshake(None, None)
                    auth.register()
                    try:
                        await InferStream(context, head, rpc, auth, self._collector).run(self.stopping)
                    finally:
                        auth.unregister()
                except Exception as exc:  # noqa: BLE001 - logged, and reported as `internal`
                    await self._abort(rpc, head, as_service_error(exc, context, head))

        return grpc.stream_stream_rpc_method_handler(handle)

    async def _abort(self, rpc: Any, head: CallHead, error: ServiceError) -> None:
        await rpc.abort(code_of(error), oip_message(error), (*metadata_of(error), *_id_of(head)))

    def _counted(self) -> _CallCount:
        return _CallCount(self)

    # ---------------------------------------------------------------- methods

    async def _infer(self, body: bytes, head: CallHead) -> bytes:
        received_s = time.monotonic()
        tenant = self._context.authenticate_and_count(head.authorization, "step").tenant
        call = InferCall(self._context, head, tenant, parse(ModelInferRequest, body), received_s)
        return await respond(call, head, self._collector)

    async def _server_live(self, _request: Message, _head: CallHead) -> Any:
        return {"live": True}

    async def _server_ready(self, _request: Message, _head: CallHead) -> Any:
        return {"ready": not await self._context.check_readiness()}

    async def _server_metadata(self, _request: Message, head: CallHead) -> Any:
        self._caller(head, "read")
        return models.server_metadata(self._version)

    async def _model_ready(self, request: Message, head: CallHead) -> Any:
        self._caller(head, "read")
        try:
            model_for_oip(self._context, request.name, request.version or None)
        except ServiceError:
            return {"ready": False}  # Triton's client does not expect an error here
        return {"ready": True}

    async def _model_metadata(self, request: Message, head: CallHead) -> Any:
        return models.model_metadata(self._context, self._model(request, head), one_version=bool(request.version))

    async def _model_config(self, request: Message, head: CallHead) -> Any:
        return {"config": models.model_config(self._context, self._model(request, head))}

    async def _model_statistics(self, request: Message, head: CallHead) -> Any:
        if request.name:
            return await models.model_stats(self._context, [self._model(request, head)])
        self._caller(head, "read")
        return await models.model_stats(self._context)

    async def _repository_index(self, request: Message, head: CallHead) -> Any:
        self._caller(head, "read")
        return {"models": models.repository_index(self._context, ready_only=request.ready)}

    async def _repository_model_load(self, request: Message, head: CallHead) -> Any:
        caller = self._caller(head, "models")
        await models.load_model(
            self._context, request.model_name, caller, head.request_id, has_parameters=bool(request.parameters)
        )
        return {}

    async def _repository_model_unload(self, request: Message, head: CallHead) -> Any:
        caller = self._caller(head, "models")
        await models.unload_model(self._context, request.model_name, caller, head.request_id)
        return {}

    def _caller(self, head: CallHead, scope: Scope) -> Caller:
        return self._context.authenticate_and_count(head.authorization, scope)

    def _model(self, request: Message, head: CallHead) -> ServedModel:
        """Return the model that a request names, after checking that the caller may read."""
        self._caller(head, "read")
        return model_for_oip(self._context, request.name, request.version or None)


class _CallCount:
    """Counts a call while it is open; a context manager, because one of contextlib would cost 2 us per call."""

    __slots__ = ("_methods",)

    def __init__(self, methods: InferenceMethods) -> None:
        self._methods = methods

    def __enter__(self) -> None:
        self._methods.n_open += 1
        self._methods.idle.clear()

    def __exit__(self, *_exception: object) -> None:
        self._methods.n_open -= 1
        if not self._methods.n_open:
            self._methods.idle.set()


def _as_message(name: str, work: _Work) -> Callable[[bytes, CallHead], Awaitable[bytes]]:
    """Return a method that responds with a document of the HTTP routes, which has the fields of its message."""
    method = SERVICE.methods_by_name[name]
    request, response = message_class(method.input_type.name), message_class(method.output_type.name)

    async def handle(body: bytes, head: CallHead) -> bytes:
        document = msgspec.to_builtins(await work(parse(request, body), head))
        encoded: bytes = ParseDict(document, response()).SerializeToString()
        return encoded

    return handle


def _id_of(head: CallHead) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a response that has the id of its request."""
    return ((RESPONSE_HEADER.decode(), head.request_id.decode()),) if head.request_id else ()
