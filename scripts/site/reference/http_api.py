"""The page of the HTTP API, from the OpenAPI document."""

from __future__ import annotations

import functools
import inspect
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from scripts.site.markdown import slug, table
from scripts.site.reference.schemas import components, type_of
from stepwell.app import create_app
from stepwell.error_codes import CODES
from stepwell.settings import Settings

_HEAD = """\
# HTTP API

Every route of the service. A running service has the same at `/docs`, where requests can be tried out, and at
`/openapi.json`; [openapi.json](openapi.json) is that of this version. [Examples](../docs/examples.md) has each request
in three languages, [Security](../docs/security.md#scopes) the scope that each route needs.

Bodies are JSON, or msgpack with `Content-Type: application/msgpack`. Every error is a [Problem](#problem), except under
`/v2`.
"""


@functools.cache
def application() -> FastAPI:
    """Return the service's application; it has no store and is not started."""
    return create_app(Settings())


def document() -> dict[str, Any]:
    """Return the OpenAPI document."""
    return application().openapi()


def page() -> str:
    """Return the page."""
    by_tag: defaultdict[str, list[str]] = defaultdict(list)
    for path, operations in document()["paths"].items():
        for method, operation in operations.items():
            by_tag[operation["tags"][0]].append(_operation(method.upper(), path, operation))
    sections = [f"## {tag.capitalize()}\n\n" + "\n".join(operations) for tag, operations in by_tag.items()]
    return "\n".join([_HEAD, *sections, _other_routes(), components(document()["components"]["schemas"])])


def _other_routes() -> str:
    """Return the section of the routes that the OpenAPI document leaves out: pages, and the documents themselves."""
    routes = [one for one in application().routes if isinstance(one, APIRoute) and not one.include_in_schema]
    rows = [
        (f"`{' '.join(sorted(one.methods or ()))} {one.path}`", inspect.getdoc(one.endpoint) or "") for one in routes
    ]
    return f"## Pages and documents\n\n{table(('route', 'response'), rows)}"


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parts = [f"### {method} {path}\n", operation.get("description", ""), ""]
    parameters = [
        (f"`{one['name']}`", one["in"], type_of(one["schema"]), one.get("description", ""))
        for one in operation.get("parameters", [])
    ]
    if parameters:
        parts.append(table(("parameter", "in", "type", "description"), parameters))
    if "requestBody" in operation:
        content = operation["requestBody"]["content"]
        bodies = dict.fromkeys(type_of(one.get("schema", {})) for one in content.values())
        parts.append(f"Body: {' or '.join(bodies)}\n")
    rows = [(status, _response(response)) for status, response in sorted(operation.get("responses", {}).items())]
    parts.append(table(("status", "response"), rows))
    return "\n".join(parts)


def _response(response: Mapping[str, Any]) -> str:
    """Return the schemas of a response, or the error codes that its description lists."""
    codes = [code.strip("` ") for code in response["description"].split(",")]
    if all(code in CODES for code in codes):
        return ", ".join(f"[`{code}`](../docs/errors.md#{slug(code)})" for code in codes)
    schemas = [type_of(one["schema"]) for one in response.get("content", {}).values() if "schema" in one]
    return " or ".join(dict.fromkeys(schemas)) or response["description"]
