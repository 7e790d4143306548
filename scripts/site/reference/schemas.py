"""JSON schemas as Markdown: the type of a field in words, and the fields of an object as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from scripts.site.markdown import slug, table

Schema = Mapping[str, Any]


def type_of(schema: Schema) -> str:
    """Return a type in words; a named schema is a link to its heading on the same page."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{slug(name)})"
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(dict.fromkeys(type_of(one) for one in schema[union]))
    if schema.get("type") == "array":
        return f"array of {type_of(schema.get('items') or {})}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {type_of(schema['additionalProperties'])}"
    return str(schema.get("type", "any value"))


def fields(schema: Schema) -> str:
    """Return the fields of an object as a table; empty if it has none."""
    required = schema.get("required", [])
    rows = [
        (f"`{name}`", type_of(field), "required" if name in required else "", field.get("description", ""))
        for name, field in schema.get("properties", {}).items()
    ]
    return table(("field", "type", "", "description"), rows) if rows else ""


def components(schemas: Mapping[str, Schema]) -> str:
    """Return a section for each named schema."""
    parts = ["## Schemas\n"]
    for name, schema in sorted(schemas.items()):
        text = " ".join(schema.get("description", "").split())
        parts.append(f"### {name}\n\n{text}\n\n{fields(schema) or type_of(schema)}\n")
    return "\n".join(parts)
