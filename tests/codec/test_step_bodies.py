"""The structs of bodies, from which the API's description is derived, are what is decoded."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec import Struct

from stepwell.addons.copies.bodies import ForkBody, SnapshotBody, StateBody
from stepwell.addons.rollouts.bodies import RolloutBody
from stepwell.codec.resets import ResetBody
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
from stepwell.codec.strict.bodies import check_envelope
from stepwell.errors import ServiceError

BODIES: list[type[Struct]] = [
    *(StepBody, StepsBody, PeekBody, FeedMessage, StreamMessage, BulkBody, BulkStepsBody, BulkMessage),
    *(RolloutBody, ResetBody, ForkBody, SnapshotBody, StateBody, RunBody),
]


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
