"""`InferHandler`: handles an infer request of the Open Inference Protocol, from its head to its response."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from stepwell.addons.oip.errors import TritonError, missing_start_flag, unknown_model
from stepwell.addons.oip.infer_codec import InferCodec, InferRequest
from stepwell.engine.stepping.outcomes import BulkResults, StepOutcome
from stepwell.errors import ServiceError
from stepwell.types import Lifecycle, Prediction, StreamKey, Timestep, Transport
from stepwell_client.wire.formats import Format
from stepwell_export.runtime.manifest import Array

if TYPE_CHECKING:
    from stepwell.engine.engine import Engine
    from stepwell.models.served import ServedModel
    from stepwell.requests.context import AppContext
    from stepwell.requests.hot_routes import RequestHeaders
    from stepwell.settings import Settings
from stepwell.requests.large_bodies import LargeBodies

_LIFECYCLES: Mapping[tuple[bool, bool], Lifecycle] = {
    (False, False): "on",
    (True, False): "new",
    (False, True): "last",
    (True, True): "whole",
}


_VERSION = re.compile(r"[1-9][0-9]{0,8}")


def model_for_oip(context: AppContext, model: str, version: str | None) -> ServedModel:
    """Return the model of a path.

    Raises:
        TritonError: `model_not_found`, with Triton's message.
    """
    is_valid = version is None or _VERSION.fullmatch(version) is not None
    try:
        if is_valid:
            return context.engine.models.get(model, None if version is None else int(version))
    except ServiceError:
        pass
    raise unknown_model(model, version)


def codec_of(context: AppContext, served: ServedModel) -> InferCodec:
    """Return the codec of the protocol for a model."""
    return context.codec(_codec, served)


def _codec(served: ServedModel, settings: Settings) -> InferCodec:
    return InferCodec(served.name, served.manifest, stateful=served.stateful, max_rows=settings.max_batch_size)


class InferResult(NamedTuple):
    """What the response to an infer request has.

    Attributes:
        request: The request.
        outputs: `(rows, *row)` per returned output.
        version: The model version that computed them.
        parameters: The parameters of the response, or None.
    """

    request: InferRequest
    outputs: Mapping[str, Array]
    version: int
    parameters: dict[str, Any] | None


@dataclass(slots=True)
class InferHandler:
    """Handles one timestep of one sequence, or a batch of a model without state.

    Attributes:
        context: The dependencies of every route.
        served: The model.
        version: The requested version, or None: the default.
        tenant: The owner of the sequences.
        idempotency_key: The key in the header, of valid length, or None.
        document_bytes: Length in bytes of the JSON document at the start of the body; None: the whole body.
        transport: How the request reached the service, for the metrics.
        response_format: The format of the response; set by `encode_response`.
        extra_headers: Further response headers, or None; set by `encode_response`.
    """

    context: AppContext
    served: ServedModel
    version: int | None
    tenant: str
    idempotency_key: str | None
    document_bytes: int | None = None
    transport: Transport = "oip"
    response_format: Format = Format.JSON
    extra_headers: Mapping[str, str] | None = None
    _codec: InferCodec = field(init=False)
    _request: InferRequest = field(init=False)
    is_reusable: ClassVar[bool] = False

    def submit(self, body: bytes, done: Callable[[Any], None]) -> None:
        """Submit the request's timesteps, or raise what is wrong with the body."""
        codec = self._codec = codec_of(self.context, self.served)
        if LargeBodies.is_large(body):
            self.context.large_bodies.submit(
                lambda: codec.read(body, self.document_bytes), lambda request: self.submit_request(request, done), done
            )
        else:
            self.submit_request(codec.read(body, self.document_bytes), done)

    def submit_request(self, request: InferRequest, done: Callable[[Any], None]) -> None:
        """Submit the timesteps of a decoded request, or raise what is wrong with it; otherwise as `submit`."""
        served, engine, self._request = self.served, self.context.engine, request
        idempotency_key = self._check_idempotency_key(request)
        if request.stream is None:
            _submit_rows(engine, self._rows(request), lambda results: done(_first_error(results) or results))
            return
        timestep = Timestep(
            StreamKey(self.tenant, served.name, request.stream),
            request.rows[0],
            seq=request.step,
            create="auto" if request.start else "never",
            idempotency_key=None if request.peek else idempotency_key,
            version=self.version,
            transport=self.transport,
            lifecycle=_LIFECYCLES[request.start, request.end],
            source=request.source,
        )
        engine.steps.submit(timestep, lambda result: done(self._as_triton_error(result)), peek=request.peek)

    def response(self, result: Any) -> InferResult:
        """Return what a response has, from a result that is not a `ServiceError`."""
        request = self._request
        if isinstance(result, Prediction):
            flags = {"skipped": result.skipped, "source_changed": result.source_changed}
            parameters: dict[str, Any] = {
                "sequence_id": request.sequence,
                "step": result.step,
                "replayed": result.replayed,
                **{name: value for name, value in flags.items() if value},
            }
            outputs = result.outputs
            if result.version != self.served.version:  # the stream stays with that one, whose outputs may be others
                there = [one for one in request.outputs if one[0].is_kind_of(outputs.get(one[0].name))]
                request = request._replace(outputs=there)
            return InferResult(request, outputs, result.version, parameters)
        outputs = {spec.name: np.concatenate([row.outputs[spec.name] for row in result]) for spec, _ in request.outputs}
        return InferResult(request, outputs, self.served.version, None)

    def encode_response(self, result: Any) -> bytes:
        """Return the response body."""
        body, document_bytes = self._codec.write(*self.response(result))
        if document_bytes is not None:
            self.response_format = Format.BYTES
            self.extra_headers = {"inference-header-content-length": str(document_bytes)}
        return body

    def _check_idempotency_key(self, request: InferRequest) -> str | None:
        parameter = request.idempotency_key
        if parameter is not None and self.idempotency_key not in (None, parameter):
            raise TritonError(
                "bad_request", "the parameter 'idempotency_key' and the header Idempotency-Key differ; send one of them"
            )
        return parameter or self.idempotency_key

    def _rows(self, request: InferRequest) -> list[Timestep]:
        """Return one timestep without a stream for each row of the batch."""
        key = StreamKey(self.tenant, self.served.name, "")
        return [
            Timestep(
                key,
                inputs,
                version=self.version,
                transport=self.transport,
                lifecycle="none",
            )
            for inputs in request.rows
        ]

    def _as_triton_error(self, result: StepOutcome) -> StepOutcome:
        if isinstance(result, ServiceError) and result.code == "stream_not_found":
            assert self._request.sequence is not None
            return missing_start_flag(self.served.name, self._request.sequence)
        return result


def _submit_rows(engine: Engine, timesteps: Sequence[Timestep], done: Callable[[list[StepOutcome]], None]) -> None:
    """Submit timesteps of no stream; `done` gets their results, in order, once all are there."""
    results = BulkResults(len(timesteps), lambda found: done(found.by_row()))
    for i, timestep in enumerate(timesteps):
        engine.steps.submit(timestep, partial(results.receive, i))


def _first_error(results: Sequence[StepOutcome]) -> ServiceError | None:
    return next((result for result in results if isinstance(result, ServiceError)), None)


def make_infer_handler(context: AppContext, model: str, version: str | None, headers: RequestHeaders) -> InferHandler:
    """Return the handler of an infer request.

    Args:
        context: The dependencies of every route.
        model: The model's name in the path.
        version: The version in the path, or None.
        headers: The request's headers.

    Raises:
        ServiceError: The head is rejected.
    """
    tenant = context.authenticate_and_count(headers.authorization, "step").tenant
    served = model_for_oip(context, model, version)
    return InferHandler(
        context,
        served,
        None if version is None else served.version,
        tenant,
        headers.idempotency_key,
        headers.document_bytes,
    )
