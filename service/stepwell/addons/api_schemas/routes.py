"""The parts of the routes' documentation: parameters, problems, and `route`, which combines them with the structs.

The schemas of bodies are derived from the structs that decode and encode them: see `components`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from stepwell.addons.api_schemas.responses import Problem
from stepwell.error_codes import CODES
from stepwell.requests.problems import MEDIA_TYPE
from stepwell_client.wire.ids import STREAM_ID
from stepwell_export.runtime.manifest import NAME

Schema = dict[str, Any]
Documented = type[Struct]

_documented: set[Documented] = {Problem}


def ref(body: Documented) -> Schema:
    """Return a reference to the schema of a struct, which becomes a component of the document."""
    _documented.add(body)
    return {"$ref": f"#/components/schemas/{body.__name__}"}


def components() -> dict[str, Schema]:
    """Return the schemas of all documented structs, and of those in their fields, by name."""
    ordered = sorted(_documented, key=lambda body: body.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    return schemas


PATH = {
    name: {"name": name, "in": "path", "required": True, "schema": {"type": "string"} | pattern}
    for name, pattern in (
        ("model", {}),
        ("stream", {"pattern": f"^{STREAM_ID.pattern}$"}),
        ("name", {"pattern": f"^{NAME.pattern}$"}),
    )
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
STREAM_READ = (
    *COMMON_PROBLEMS,
    *("store_unavailable", "overloaded", "draining", "bad_request", "model_not_found"),
)
STREAM_WRITE = (
    *STREAM_READ,
    *("bad_json", "too_large", "unsupported_encoding", "outcome_unknown", "store_full", "not_durable"),
)
STEPPING = (
    *STREAM_WRITE,
    *("stream_not_found", "seq_gap", "seq_passed", "seq_conflict", "source_passed", "state_changed", "stream_exists"),
    *("model_changed",),
    *("bad_input", "non_finite", "non_finite_state", "idempotency_key_reused", "state_corrupt", "model_timeout"),
    *("record_version", "stream_quota"),
)
STREAM_PATH = ("model", "stream")


def query(name: str, schema: Schema, description: str = "") -> Schema:
    """Return a parameter of the query."""
    parameter = {"name": name, "in": "query", "schema": schema}
    return parameter | ({"description": description} if description else {})


def required_fields(body: Documented) -> bool:
    """Whether a body has required fields, and so must be sent."""
    return any(field.required for field in msgspec.structs.fields(body))


def route(
    tag: str,
    *,
    path: Sequence[str] = (),
    parameters: Sequence[Schema] = (),
    body: Documented | None = None,
    answer: Documented | None = None,
    problems: Sequence[str] = (),
    status: int = 200,
) -> dict[str, Any]:
    """Return the arguments of `add_api_route` that document a route."""
    operation: dict[str, Any] = {"parameters": [*(PATH[name] for name in path), *parameters]}
    if body is not None:
        content = {"schema": ref(body)}
        operation["requestBody"] = {
            "required": required_fields(body),
            "content": {"application/json": content, "application/msgpack": content},
        }
    responses: dict[int | str, dict[str, Any]] = {}
    if answer is not None:
        responses[status] = {"description": "Done", "content": {"application/json": {"schema": ref(answer)}}}
    for code in problems:
        response = responses.setdefault(
            CODES[code].status, {"description": "", "content": {MEDIA_TYPE: {"schema": ref(Problem)}}}
        )
        response["description"] += f"{', ' if response['description'] else ''}`{code}`"
    return {"tags": [tag], "openapi_extra": operation, "responses": responses, "status_code": status}
