"""The page of the WebSockets, from the AsyncAPI document."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from scripts.site.markdown import slug, table
from scripts.site.reference.http_api import application
from scripts.site.reference.schemas import components
from stepwell.addons.asyncapi import document as asyncapi

_HEAD = """\
# WebSockets

Every WebSocket of the service, with its messages. A running service has the same at `/asyncapi.json` (AsyncAPI 3);
[asyncapi.json](asyncapi.json) is that of this version. [Watching](../docs/watching.md) explains `/v1/watch`.
"""


@functools.cache
def document() -> dict[str, Any]:
    """Return the AsyncAPI document."""
    return asyncapi.document(application())


def page() -> str:
    """Return the page."""
    found = document()
    sections = [_HEAD, found["info"]["description"], "## Routes\n"]
    for name, channel in found["channels"].items():
        operations = [one for one in found["operations"].values() if _name_in(one["channel"]) == name]
        rows = [row for operation in operations for row in _rows(operation, found["components"]["messages"])]
        sections.append(f"### WS {channel['address']}\n\n{channel['summary']}\n")
        query = channel["bindings"]["ws"]["query"]["properties"]
        sections += [f"`?{parameter}=`: {schema['description']}\n" for parameter, schema in query.items()]
        sections.append(table(("from", "message", "is", "replies"), rows))
    return "\n".join([*sections, components(found["components"]["schemas"])])


def _rows(operation: Mapping[str, Any], messages: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    sender = "client" if operation["action"] == "receive" else "service"
    replies = ", ".join(_link(_name_in(one)) for one in operation.get("reply", {}).get("messages", []))
    names = [_name_in(one) for one in operation["messages"]]
    return [(sender, _link(name), messages[name]["summary"], replies) for name in names]


def _name_in(reference: Mapping[str, str]) -> str:
    return reference["$ref"].rpartition("/")[2]


def _link(name: str) -> str:
    return f"[{name}](#{slug(name)})"
