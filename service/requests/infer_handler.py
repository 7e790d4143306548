"""`InferHandler`: an infer request of the Open Inference Protocol, from its head to the bytes of the answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from service.codec import Format
from service.codec.oip import InferRequest, TritonError, missing_start_flag, unknown_model
from service.codec.strict_tensors import pack_inputs, pack_rows
from service.engine.stepping.columnar_batch import StepOutcome
from service.errors import ServiceError
from service.requests.bulk import submit_rows
from service.types import Lifecycle, Prediction, StreamKey, Timestep

if TYPE_CHECKING:
    from service.models.registry import ServedModel
    from service.requests.context import AppContext

_LIFECYCLES: Mapping[tuple[bool, bool], Lifecycle] = {
    (False, False): "on",
    (True, False): "new",
    (False, True): "last",
    (True, True): "whole",
}


_VERSION = re.compile(r"[1-9][0-9]{0,8}")


def model_for_oip(context: AppContext, model: str, version: str | None) -> ServedModel:
    """Return a model by the names that a path gives.

    Raises:
        PlainError: `model_not_found`, in Triton's words.
    """
    known = version is None or _VERSION.fullmatch(version) is not None
    try:
        if known:
            return context.engine.models.get(model, None if version is None else int(version))
    except ServiceError:
        pass
    raise unknown_model(model, version)


@dataclass(slots=True)
class InferHandler:
    """Moves one sequence by one timestep, or runs a model without state on a batch.

    Attributes:
        context: What every route needs.
        served: The model.
        version: The version that was asked for, or None.
        tenant: Whose sequences they are.
        idempotency_key: The header's, checked, or None.
        document_bytes: How much of the body is its JSON document, or None: all.
        answer_form: The format of the answer; known when it is encoded.
        more_headers: What the answer says besides; known when it is encoded.
    """

    context: AppContext
    served: ServedModel
    version: int | None
    tenant: str
    idempotency_key: str | None
    document_bytes: int | None
    response_format: Format = Format.JSON
    extra_headers: Mapping[str, str] | None = None
    _request: InferRequest = field(init=False)
    is_reusable: ClassVar[bool] = False

    def submit(self, body: bytes, done: Callable[[Any], None]) -> None:
        """Submit what the request asks for, or raise what is wrong with the body."""
        served, engine = self.served, self.context.engine
        asked = self._request = self.context.infer_codec(served).read(body, self.document_bytes)
        key = self._key(asked)
        if asked.stream is None:
            submit_rows(engine, self._rows(asked), lambda results: done(_first_error(results) or results))
            return
        timestep = Timestep(
            StreamKey(self.tenant, served.name, asked.stream),
            pack_inputs(asked.inputs),
            seq=asked.step,
            create="auto" if asked.start else "never",
            idempotency_key=key,
            version=self.version,
            transport="oip",
            lifecycle=_LIFECYCLES[asked.start, asked.end],
        )
        engine.submit(timestep, lambda result: done(self._as_triton_error(result)))

    def encode_response(self, result: Any) -> bytes:
        """Return the body of the answer."""
        asked = self._request
        if isinstance(result, Prediction):
            outputs, version = result.outputs, result.version
            said = {"sequence_id": asked.sequence, "step": result.step, "replayed": result.replayed}
        else:
            version, said = self.served.version, None
            outputs = {
                spec.name: np.concatenate([row.outputs[spec.name] for row in result]) for spec, _ in asked.outputs
            }
        body, document_bytes = self.context.infer_codec(self.served).write(asked, outputs, version, said)
        if document_bytes is not None:
            self.response_format = Format.BYTES
            self.extra_headers = {"inference-header-content-length": str(document_bytes)}
        return body

    def _key(self, asked: InferRequest) -> str | None:
        given = asked.idempotency_key
        if given is not None and self.idempotency_key not in (None, given):
            raise TritonError(
                "bad_request", "the parameter 'idempotency_key' and the header Idempotency-Key differ; send one of them"
            )
        return given or self.idempotency_key

    def _rows(self, asked: InferRequest) -> list[Timestep | ServiceError]:
        """Return one timestep of no stream for each row of the batch."""
        key = StreamKey(self.tenant, self.served.name, "")
        return [
            Timestep(
                key,
                inputs,
                version=self.version,
                transport="oip",
                lifecycle="none",
            )
            for inputs in pack_rows(asked.inputs)
        ]

    def _as_triton_error(self, result: StepOutcome) -> StepOutcome:
        if isinstance(result, ServiceError) and result.code == "stream_not_found":
            assert self._request.sequence is not None
            return missing_start_flag(self.served.name, self._request.sequence)
        return result


def _first_error(results: Sequence[StepOutcome]) -> ServiceError | None:
    return next((result for result in results if isinstance(result, ServiceError)), None)
