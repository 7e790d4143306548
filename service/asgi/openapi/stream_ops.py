"""The documentation of the routes in `routes/stream_ops.py`."""

from __future__ import annotations

from service.asgi.openapi.schemas import (
    CREATE,
    IDEMPOTENCY_KEY,
    INPUTS,
    RETURN,
    SEQ,
    STATE_ID,
    STEPPING,
    STREAM,
    STREAM_PATH,
    STREAM_READ,
    STREAM_WRITE,
    TENSORS,
    VERSION,
    Schema,
    list_of,
    nullable,
    object_schema,
    route,
)
from service.ids import SEQ_LIMIT

_NAME: Schema = {
    "name": "name",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
}
_STEP: Schema = {"type": "integer", "minimum": 0, "exclusiveMaximum": SEQ_LIMIT}
_REPLAYED: Schema = {"const": True, "description": "The request was applied before; this is its first response."}
_STATES: Schema = {**TENSORS, "description": "One tensor per state of the model.", "example": {"h": [0.1, 0.2]}}
_FINGERPRINT: Schema = {
    "type": "string",
    "pattern": "^[0-9a-fA-F]{16}$",
    "description": "Identifies the model that wrote the state. A model that is not loaded is rejected, unless "
    "`version` names the version that accepts the state.",
}
_SNAPSHOT = object_schema(
    ["name", "version", "step", "state_id", "taken_at"],
    name=_NAME["schema"],
    version=nullable({"type": "integer"}),
    step=_STEP,
    state_id=STATE_ID,
    taken_at={"type": "string", "format": "date-time"},
)
_DRAW: dict[str, Schema] = {
    "temperature": {
        "type": "number",
        "minimum": 0,
        "description": "0: the most probable class; 1: the model's probabilities.",
    },
    "top_k": {"type": "integer", "minimum": 1, "description": "Draw from this many of the most probable classes."},
    "top_p": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "description": "Draw from the most probable classes with this total probability.",
    },
}
_READ = (*STREAM_READ, "stream_not_found", "state_corrupt", "record_version")
_WRITE = (
    *STREAM_WRITE,
    *("stream_not_found", "state_changed", "idempotency_key_reused", "state_corrupt", "record_version"),
)

PEEK = route(
    "rollouts",
    path=STREAM_PATH,
    parameters=[VERSION],
    body=object_schema(
        ["inputs"],
        inputs=INPUTS,
        chunk={"type": "boolean", "default": False, "description": "The inputs have a time axis."},
        seq=SEQ,
        after=STATE_ID,
        create=CREATE,
        return_=RETURN,
    ),
    answer=object_schema(
        ["outputs", "step"],
        outputs=TENSORS,
        step={"type": "integer", "description": "The step that the stream would be at."},
        state_id={**STATE_ID, "description": "The stream's current state id; absent if the stream does not exist."},
    ),
    problems=STEPPING,
)
_RULE: Schema = {
    "description": "The name of an output, or the rule that computes the input from it.",
    "anyOf": [
        {"type": "string"},
        object_schema(
            ["output"],
            output={"type": "string"},
            scale={"description": "Factor of the output: a number, or one for each element of the input."},
            offset={"description": "Term added to that: a number, or one for each element of the input."},
            std={"description": "Standard deviation of normal noise: a number, or the name of an output."},
            sample={"type": "boolean", "description": "The output has probabilities: draw a class from them."},
            logits={"type": "boolean", "description": "The output has logarithms of probabilities."},
            one_hot={"type": "boolean", "description": "The input is the one-hot vector of the drawn class."},
            **_DRAW,
        ),
    ],
}
ROLLOUT = route(
    "rollouts",
    path=STREAM_PATH,
    parameters=[VERSION, IDEMPOTENCY_KEY],
    body=object_schema(
        ["horizon"],
        horizon={"type": "integer", "minimum": 1, "description": "Number of timesteps."},
        inputs={
            **INPUTS,
            "description": "The first input; by default it is computed from the stream's last prediction.",
        },
        feedback={
            "type": "object",
            "additionalProperties": _RULE,
            "example": {"x": "y"},
            "description": "By input, the rule that computes it; by default the rules of the model's manifest.",
        },
        samples={
            "type": "integer",
            "minimum": 1,
            "description": "Number of samples; tensors then have a first axis for them.",
        },
        seed={"type": "integer", "minimum": 0, "exclusiveMaximum": SEQ_LIMIT},
        commit={"type": "boolean", "default": False, "description": "Apply the timesteps to the stream."},
        seq=SEQ,
        after=STATE_ID,
        create=CREATE,
        **_DRAW,
    ),
    answer=object_schema(
        ["outputs", "next", "step"],
        outputs={**TENSORS, "description": "A prediction for each timestep: `[horizon, ..]`."},
        next={**TENSORS, "description": "The next input that was computed from each prediction: `[horizon, ..]`."},
        step={"type": "integer", "description": "The step that the stream is at, or would be at."},
        state_id=STATE_ID,
        seed={"type": "integer", "description": "Seed of the random draws, if there were any."},
        replayed=_REPLAYED,
        created={"const": True, "description": "This request created the stream."},
    ),
    problems=STEPPING,
)
FORK = route(
    "copies",
    path=STREAM_PATH,
    parameters=[VERSION, IDEMPOTENCY_KEY],
    body=object_schema(
        ["to"],
        to={**STREAM, "description": "The stream to create."},
        from_={"anyOf": [{"const": "present"}, object_schema(["snapshot"], snapshot=_NAME["schema"])]},
        after=STATE_ID,
    ),
    answer=object_schema(
        ["stream", "step", "state_id"], stream=STREAM, step=_STEP, state_id=STATE_ID, replayed=_REPLAYED
    ),
    problems=(*_WRITE, "stream_exists", "snapshot_not_found", "model_changed", "stream_quota"),
)
STATE = route(
    "copies",
    path=STREAM_PATH,
    parameters=[VERSION],
    answer=object_schema(["states", "step", "fingerprint"], states=_STATES, step=_STEP, fingerprint=_FINGERPRINT),
    problems=(*_READ, "model_changed"),
)
PUT_STATE = route(
    "copies",
    path=STREAM_PATH,
    parameters=[VERSION, IDEMPOTENCY_KEY],
    body=object_schema(["states"], states=_STATES, step=_STEP, fingerprint=_FINGERPRINT, after=STATE_ID),
    answer=object_schema(["step", "state_id"], step=_STEP, state_id=STATE_ID, replayed=_REPLAYED),
    problems=(*_WRITE, "bad_input", "non_finite", "model_changed", "precondition_required", "stream_quota"),
)
SNAPSHOTS = route(
    "copies", path=STREAM_PATH, answer=object_schema(["snapshots"], snapshots=list_of(_SNAPSHOT)), problems=_READ
)
SNAPSHOT = route(
    "copies",
    path=STREAM_PATH,
    parameters=[_NAME],
    answer=object_schema(
        [*_SNAPSHOT["required"], "states", "fingerprint"],
        **_SNAPSHOT["properties"],
        states=_STATES,
        fingerprint=_FINGERPRINT,
    ),
    problems=(*_READ, "snapshot_not_found", "model_changed"),
)
PUT_SNAPSHOT = route(
    "copies",
    path=STREAM_PATH,
    parameters=[_NAME, IDEMPOTENCY_KEY],
    body=object_schema([], after=STATE_ID),
    answer=object_schema(
        ["name", "step", "state_id"], name=_NAME["schema"], step=_STEP, state_id=STATE_ID, replayed=_REPLAYED
    ),
    problems=(*_WRITE, "precondition_required", "stream_quota"),
)
DELETE_SNAPSHOT = route(
    "copies",
    path=STREAM_PATH,
    parameters=[_NAME, IDEMPOTENCY_KEY],
    problems=(*STREAM_WRITE, "idempotency_key_reused", "precondition_required"),
    status=204,
)
