"""`InferCall`: an infer request of the Open Inference Protocol, from its head to the bytes of the answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from service.api.moves import submit_all
from service.engine.block import Result
from service.engine.types import Life, Prediction, StreamKey, Timestep
from service.errors import ServiceError
from service.wire import Format
from service.wire.oip import Inference, PlainError, must_start, unknown_model
from service.wire.tensors import packed, packed_rows

if TYPE_CHECKING:
    from service.api.context import Context
    from service.engine.models import ServedModel

_LIVES: Mapping[tuple[bool, bool], Life] = {
    (False, False): "on",
    (True, False): "new",
    (False, True): "last",
    (True, True): "whole",
}


_VERSION = re.compile(r"[1-9][0-9]{0,8}")


def served_for_oip(context: Context, model: str, version: str | None) -> ServedModel:
    """Return a model by the names that a path gives.

    Raises:
        PlainError: `model_not_found`, in Triton's words.
    """
    known = version is None or _VERSION.fullmatch(version) is not None
    try:
        if known:
            return context.engine.shelf.get(model, None if version is None else int(version))
    except ServiceError:
        pass
    raise unknown_model(model, version)


@dataclass(slots=True)
class InferCall:
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

    context: Context
    served: ServedModel
    version: int | None
    tenant: str
    idempotency_key: str | None
    document_bytes: int | None
    answer_form: Format = Format.JSON
    more_headers: Mapping[str, str] | None = None
    _asked: Inference = field(init=False)
    serves_many: ClassVar[bool] = False

    def begin(self, body: bytes, done: Callable[[Any], None]) -> None:
        """Submit what the request asks for, or raise what is wrong with the body."""
        served, engine = self.served, self.context.engine
        asked = self._asked = self.context.infer_wire(served).read(body, self.document_bytes)
        key = self._key(asked)
        if asked.stream is None:
            submit_all(engine, self._rows(asked), lambda results: done(_first_error(results) or results))
            return
        timestep = Timestep(
            StreamKey(self.tenant, served.name, asked.stream),
            packed(asked.inputs),
            seq=asked.step,
            create="auto" if asked.start else "never",
            idempotency_key=key,
            version=self.version,
            door="oip",
            life=_LIVES[asked.start, asked.end],
        )
        engine.submit(timestep, lambda result: done(self._in_words(result)))

    def encode(self, result: Any) -> bytes:
        """Return the body of the answer."""
        asked = self._asked
        if isinstance(result, Prediction):
            outputs, version = result.outputs, result.version
            said = {"sequence_id": asked.sequence, "step": result.step, "replayed": result.replayed}
        else:
            version, said = self.served.version, None
            outputs = {
                spec.name: np.concatenate([row.outputs[spec.name] for row in result]) for spec, _ in asked.outputs
            }
        body, document_bytes = self.context.infer_wire(self.served).write(asked, outputs, version, said)
        if document_bytes is not None:
            self.answer_form = Format.BYTES
            self.more_headers = {"inference-header-content-length": str(document_bytes)}
        return body

    def _key(self, asked: Inference) -> str | None:
        given = asked.idempotency_key
        if given is not None and self.idempotency_key not in (None, given):
            raise PlainError(
                "bad_request", "the parameter 'idempotency_key' and the header Idempotency-Key differ; send one of them"
            )
        return given or self.idempotency_key

    def _rows(self, asked: Inference) -> list[Timestep | ServiceError]:
        """Return one timestep of no stream for each row of the batch."""
        key = StreamKey(self.tenant, self.served.name, "")
        return [
            Timestep(
                key,
                inputs,
                version=self.version,
                door="oip",
                life="none",
            )
            for inputs in packed_rows(asked.inputs)
        ]

    def _in_words(self, result: Result) -> Result:
        if isinstance(result, ServiceError) and result.code == "stream_not_found":
            assert self._asked.sequence is not None
            return must_start(self.served.name, self._asked.sequence)
        return result


def _first_error(results: Sequence[Result]) -> ServiceError | None:
    return next((result for result in results if isinstance(result, ServiceError)), None)
