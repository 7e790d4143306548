"""The parts of the routes' documentation: schemas, parameters, and `route`, which combines them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.ids import SEQ_LIMIT
from service.requests.problems import MEDIA_TYPE, PROBLEMS

Schema = dict[str, Any]

TENSOR: Schema = {
    "description": "Nested arrays of the declared shape; a bare number where the shape is []. In msgpack also packed.",
    "example": [0.1, 0.2, 0.3, 0.4],
}
TENSORS: Schema = {"type": "object", "additionalProperties": TENSOR, "example": {"x": [0.1, 0.2, 0.3, 0.4]}}
INPUTS: Schema = {
    "description": "One tensor per input of the model; for a model with one input, the tensor alone is accepted too.",
    "anyOf": [TENSORS, {}],
    "example": {"x": [0.1, 0.2, 0.3, 0.4]},
}
SEQ: Schema = {
    "type": "integer",
    "minimum": 1,
    "exclusiveMaximum": SEQ_LIMIT,
    "description": "Number of the first timestep of this request, from 1 since creation or reset.",
}
STATE_ID: Schema = {"type": "string", "minLength": 22, "maxLength": 22, "description": "Hash of the stream's history."}
STREAM: Schema = {"type": "string", "pattern": "^[A-Za-z0-9._:@-]{1,128}$"}
CREATE: Schema = {
    "enum": ["auto", "never", "must"],
    "default": "auto",
    "description": "auto: create a missing stream; never: an error if it is missing; must: an error if it exists.",
}
RETURN: Schema = {"enum": ["all", "last", "none"], "default": "all", "description": "Which predictions are returned."}


def object_schema(required: Sequence[str], **properties: Schema) -> Schema:
    """Return the schema of an object with these keys and no others; a trailing `_` is removed from a name."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": {name.rstrip("_"): schema for name, schema in properties.items()},
    }


def nullable(schema: Schema) -> Schema:
    """Return the schema of a value that may be null."""
    return {"anyOf": [schema, {"type": "null"}]}


def list_of(schema: Schema) -> Schema:
    """Return the schema of a list of items."""
    return {"type": "array", "items": schema}


PROBLEM_REF: Schema = {"$ref": "#/components/schemas/Problem"}
PROBLEM: Schema = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "applied", "retry"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was found, what was expected, what to do."},
        "code": {"enum": list(PROBLEMS)},
        "applied": {"enum": ["no", "yes", "unknown"], "description": "Whether this request was applied to the stream."},
        "retry": {"enum": ["same", "resend_from", "never"]},
        "step": {"type": "integer", "description": "The stream's step."},
        "expected": {"type": "integer", "description": "The `seq` that the stream expects next."},
        "state_id": STATE_ID,
    },
}

PATH = {
    "model": {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}},
    "stream": {"name": "stream", "in": "path", "required": True, "schema": STREAM},
}
VERSION: Schema = {
    "name": "version",
    "in": "query",
    "schema": {"type": "integer", "minimum": 1},
    "description": "A model version; by default the stream's own, and for new streams the highest.",
}
IDEMPOTENCY_KEY: Schema = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "description": "A retry with the same key gets the first response again, for `idempotency_ttl_s` seconds.",
}
COMMON_PROBLEMS = ("unauthenticated", "forbidden", "rate_limited", "internal")
STORE = ("store_unavailable", "overloaded", "draining")
STREAM_READ = (*COMMON_PROBLEMS, *STORE, "bad_request", "model_not_found")
STREAM_WRITE = (
    *STREAM_READ,
    "bad_json",
    "too_large",
    "unsupported_encoding",
    "outcome_unknown",
    "store_full",
    "not_durable",
)
STEPPING = (
    *STREAM_WRITE,
    *("stream_not_found", "seq_gap", "seq_passed", "seq_conflict", "state_changed", "stream_exists", "model_changed"),
    *("bad_input", "non_finite", "non_finite_state", "idempotency_key_reused", "state_corrupt", "model_timeout"),
    *("record_version", "stream_quota"),
)
STREAM_PATH = ("model", "stream")


def route(
    tag: str,
    *,
    path: Sequence[str] = (),
    parameters: Sequence[Schema] = (),
    body: Schema | None = None,
    answer: Schema | None = None,
    problems: Sequence[str] = (),
    status: int = 200,
) -> dict[str, Any]:
    """Return the arguments of `add_api_route` that document a route."""
    operation: dict[str, Any] = {"parameters": [*(PATH[name] for name in path), *parameters]}
    if body is not None:
        content = {"schema": body}
        operation["requestBody"] = {
            "required": bool(body.get("required")),
            "content": {"application/json": content, "application/msgpack": content},
        }
    responses: dict[int | str, dict[str, Any]] = {}
    if answer is not None:
        responses[status] = {"description": "Done", "content": {"application/json": {"schema": answer}}}
    for code in problems:
        response = responses.setdefault(
            PROBLEMS[code][0], {"description": "", "content": {MEDIA_TYPE: {"schema": PROBLEM_REF}}}
        )
        response["description"] += f"{', ' if response['description'] else ''}`{code}`"
    return {"tags": [tag], "openapi_extra": operation, "responses": responses, "status_code": status}
