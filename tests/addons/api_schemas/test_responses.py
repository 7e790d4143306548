"""The structs of responses, from which the API's description is derived, have the fields that are encoded."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec import Struct

from stepwell.addons.api_schemas.responses import (
    BulkResponse,
    PeekResponse,
    PositionResponse,
    Problem,
    StepResponse,
)
from stepwell.addons.rollouts.bodies import RolloutResponse, rollout_response
from stepwell.addons.rollouts.requests import RolloutResult
from stepwell.codec.responses import bulk_response, position_response, step_response
from stepwell.errors import ServiceError
from stepwell.requests.problems import problem_document
from stepwell.types import BulkPrediction
from stepwell_client.wire.formats import JSON
from tests.codec.test_codec import STATE_ID, prediction
from tests.graphs import manifest_of

SPECS = manifest_of(
    name="m",
    inputs=[{"name": "x", "dtype": "float32", "shape": [2]}],
    outputs=[{"name": "y", "dtype": "float32", "shape": [2]}],
).answered
FLAGS = {"replayed": True, "created": True}
ROLLED_OUT = RolloutResult({"y": np.ones((1, 3, 2))}, {"x": np.ones((1, 3, 2))}, 5, 3, STATE_ID, **FLAGS)


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
