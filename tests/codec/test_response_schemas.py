"""The structs of bodies and responses, from which the API's description is derived, are what is decoded and encoded."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec import Struct

from stepwell.addons.rollouts.bodies import RolloutBody, RolloutResponse, rollout_response
from stepwell.addons.rollouts.requests import RolloutResult
from stepwell.codec import JSON
from stepwell.codec.response_schemas import (
    BulkResponse,
    PeekResponse,
    PositionResponse,
    Problem,
    StepResponse,
)
from stepwell.codec.responses import bulk_response, position_response, step_response
from stepwell.codec.step_bodies import (
    BulkBody,
    BulkMessage,
    BulkStepsBody,
    FeedMessage,
    PeekBody,
    RunBody,
    StepBody,
    StepsBody,
    StreamMessage,
)
from stepwell.codec.stream_ops import ForkBody, ResetBody, SnapshotBody, StateBody
from stepwell.codec.strict.bodies import check_envelope
from stepwell.errors import ServiceError
from stepwell.requests.problems import problem_document
from stepwell.types import BulkPrediction
from tests.codec.test_codec import STATE_ID, prediction
from tests.graphs import manifest_of

BODIES: list[type[Struct]] = [
    *(StepBody, StepsBody, PeekBody, FeedMessage, StreamMessage, BulkBody, BulkStepsBody, BulkMessage),
    *(RolloutBody, ResetBody, ForkBody, SnapshotBody, StateBody, RunBody),
]
SPECS = manifest_of(
    name="m",
    inputs=[{"name": "x", "dtype": "float32", "shape": [2]}],
    outputs=[{"name": "y", "dtype": "float32", "shape": [2]}],
).answered
FLAGS = {"replayed": True, "created": True}
ROLLED_OUT = RolloutResult({"y": np.ones((1, 3, 2))}, {"x": np.ones((1, 3, 2))}, 5, 3, STATE_ID, **FLAGS)


@pytest.mark.parametrize("body_type", BODIES)
def test_an_unknown_key_of_a_body_is_rejected_with_the_keys_that_it_may_have(body_type: type[Struct]) -> None:
    with pytest.raises(ServiceError) as caught:
        check_envelope({"odd key": 1}, body_type)

    for field in msgspec.structs.fields(body_type):
        assert field.encode_name in str(caught.value)


@pytest.mark.parametrize("body_type", BODIES)
def test_a_value_that_no_field_accepts_is_rejected_with_what_was_expected(body_type: type[Struct]) -> None:
    """Except values that are checked later, against the model."""
    fields = msgspec.structs.fields(body_type)
    later = {"inputs", "id", "to", "from", "temperature", "top_k", "top_p"} - (
        {"to"} if body_type is ForkBody else set()
    )
    required = {field.encode_name: _valid(field.encode_name) for field in fields if field.required}
    for key in [field.encode_name for field in fields if field.encode_name not in later]:
        with pytest.raises(ServiceError, match=rf"`{key}` is a number that is not finite; expected "):
            check_envelope({**required, key: float("nan")}, body_type)


def _valid(key: str) -> Any:
    return {"horizon": 1, "states": {}, "streams": ["a"], "stream": "a", "to": "a"}.get(key, [1])


@pytest.mark.parametrize(
    ("document", "document_type"),
    [
        (step_response(prediction([[1, 2]], **FLAGS), JSON, chunk=False), StepResponse),
        (step_response(prediction([[1, 2]]), JSON, chunk=False), PeekResponse),
        (
            bulk_response(BulkPrediction(prediction([[1, 2]]).batch, [1]), SPECS, JSON, chunk=False, keep="all"),
            BulkResponse,
        ),
        (rollout_response(ROLLED_OUT, JSON, samples=False), RolloutResponse),
        (position_response(prediction([[1, 2]], replayed=True)), PositionResponse),
        (problem_document(ServiceError("seq_gap", "p", step=1, expected=2, state_id=STATE_ID)), Problem),
    ],
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_a_response_has_the_fields_of_its_struct(document: dict[str, Any], document_type: type[Struct]) -> None:
    described = msgspec.convert(document, document_type)

    assert msgspec.to_builtins(described) == document
