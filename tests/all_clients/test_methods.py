"""The table of methods in `clients/README.md` has each public method of both clients, in its column."""

from __future__ import annotations

import inspect
import re

from stepwell_client import AsyncClient, AsyncModel, AsyncStream, Client, Feed, Model, Stream
from tests.all_clients.kit import FILE

ROWS = re.findall(r"^\|[^|]+\|([^|]*)\|([^|]*)\|$", (FILE.parent / "README.md").read_text(), re.M)
NAME = re.compile(r"`([A-Z]\w+\.\w+)`")
FOR_OTHER_MODULES = {
    "Client.run",
    "Client.watch",
    "AsyncClient.run",
    "AsyncClient.watch",
    "AsyncClient.feed_address",
    *("Client.rollout_timesteps", "AsyncClient.rollout_timesteps"),
}
UNLIKE_SYNC = {"Client.aclose": "Client.close"}  # as in other packages for asyncio


def python_methods(*classes: type) -> set[str]:
    found = set()
    for one in classes:
        names = {name for name, _ in inspect.getmembers(one, inspect.isfunction) if not name.startswith("_")}
        found |= {f"{one.__name__}.{name}" for name in names}
    return found - FOR_OTHER_MODULES


def typescript_methods(file: str) -> set[str]:
    declared = (FILE.parent / "typescript" / "types" / file).read_text()
    found = set()
    for name, body in re.findall(r"^export declare class (\w+) \{\n(.*?)^\}", declared, re.M | re.S):
        members = re.findall(r"^    (?:get )?(\w+)\(", body, re.M)
        found |= {f"{name}.{member}" for member in members if member != "constructor"}
    return found


def in_column(number: int) -> set[str]:
    return {name for row in ROWS for name in NAME.findall(row[number])}


def test_the_table_has_the_methods_of_the_python_client() -> None:
    assert in_column(0) == python_methods(Client, Model, Stream, Feed) | {"AsyncModel.feed"}


def test_the_client_for_asyncio_has_the_same_methods_and_feeds() -> None:
    found = {name.removeprefix("Async") for name in python_methods(AsyncClient, AsyncModel, AsyncStream)}

    named = {UNLIKE_SYNC.get(name, name) for name in found} - {"Model.feed"}
    assert named == python_methods(Client, Model, Stream)


def test_the_table_has_the_methods_of_the_typescript_client() -> None:
    assert in_column(1) == typescript_methods("client.d.ts") | typescript_methods("feed.d.ts")
