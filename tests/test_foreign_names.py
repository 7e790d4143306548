"""Names of dependencies that the service uses although they are no part of their documented interface.

Any release may rename one, so these dependencies have upper bounds in pyproject.toml. `NAMES` has every such name: what
a new release has lost is found here by its name, and not in a traceback of the service.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib
import inspect
import pkgutil
import re
import textwrap
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import stepwell
import stepwell_client
from stepwell_export.runtime.errors import MissingExtraError

ROOT = Path(__file__).parents[1]

PLACES = """
prometheus_client.metrics:Histogram
    _buckets _metric_init _sum _upper_bounds
prometheus_client.values
    MutexValue ValueClass
redis.asyncio.connection:AbstractConnection
    _reader _writer
uvicorn.protocols.http.flow_control
    FlowControl
uvicorn.protocols.http.flow_control:FlowControl
    pause_reading read_paused resume_reading write_paused
uvicorn.protocols.http.httptools_impl
    HttpToolsProtocol RequestResponseCycle STATUS_LINE
uvicorn.protocols.http.httptools_impl:HttpToolsProtocol
    _should_upgrade _start_asgi_task _unset_keepalive_if_required _unsupported_upgrade_warning config
    connections cycle flow handle_websocket_upgrade headers limit_concurrency loop on_headers_complete on_message_begin
    on_message_complete on_response_complete parser pipeline root_path
    send_400_response server_state shutdown timeout_keep_alive timeout_keep_alive_handler
    timeout_keep_alive_task transport url
uvicorn.protocols.http.httptools_impl:RequestResponseCycle
    disconnected keep_alive message_event response_complete scope
uvicorn.protocols.websockets.websockets_sansio_impl
    WebSocketsSansIOProtocol
uvicorn.protocols.websockets.websockets_sansio_impl:WebSocketsSansIOProtocol
    close_sent close_timer conn default_headers frames handle_bytes handle_connect handle_cont handle_events
    handle_parser_exception handle_text handshake_complete handshake_initiated loop read_paused send shutdown
    start_keepalive stop_keepalive transport
uvicorn.server
    ServerState
uvicorn.server:Server
    config force_exit handle_exit should_exit shutdown started startup
uvicorn.server:ServerState
    default_headers
websockets.server:ServerProtocol
    accept data_to_send handshake_exc parser_exc receive_data send_close send_response
websockets.utils
    apply_mask
"""
NAMES = {where: set(names.split()) for where, names in re.findall(r"^(\S+)\n((?: .*\n)+)", PLACES, re.MULTILINE)}
"""Of each module, or module:class, the names that the service uses."""

CYCLE = "uvicorn.protocols.http.httptools_impl:RequestResponseCycle"
FLOW, STATE = "uvicorn.protocols.http.flow_control:FlowControl", "uvicorn.server:ServerState"
VARIABLES = {
    "self.cycle": CYCLE,
    "cycle": CYCLE,
    "self._current_cycle": CYCLE,
    "self.flow": FLOW,
    "self.server_state": STATE,
    "pipeline.server_state": STATE,
    "server_state": STATE,
    "self.conn": "websockets.server:ServerProtocol",
    "connection_state": "websockets.server:ServerProtocol",
    "connection": "redis.asyncio.connection:AbstractConnection",
    "values": "prometheus_client.values",
}
"""What holds an object of a dependency in the service's source."""

PACKAGES = ("uvicorn", "websockets", "redis", "prometheus_client")
UNDOCUMENTED = re.compile(r"uvicorn\.(protocols|server)\b|prometheus_client\.values|websockets\.(server|utils)\b")
"""Modules whose every name counts here; of other modules those with an underscore in front do."""


@pytest.mark.parametrize("where", NAMES)
def test_the_names_that_the_service_uses_are_there(where: str) -> None:
    package = where.partition(".")[0]
    there: frozenset[str] = frozenset()
    with contextlib.suppress(ImportError, AttributeError):
        there = names_of(where)

    assert NAMES[where] - there == set(), (
        f"{package} {version(package)} does not have these in {where}, which the service uses. "
        f"See what became of them, or keep {package} below that release in pyproject.toml."
    )


def test_the_table_has_every_name_that_the_service_uses_and_no_other() -> None:
    """One too many in the source: use a documented name, or add it to `NAMES`.

    Where a new release has a name that the service gave to something of its own, the two would meet: rename ours.
    """
    assert used_names() == NAMES


def test_each_package_whose_undocumented_names_are_used_has_an_upper_bound() -> None:
    projects = (ROOT / "pyproject.toml", ROOT / "clients" / "python" / "pyproject.toml")
    needed = {line for each in projects for line in tomllib.loads(each.read_text())["project"]["dependencies"]}
    names = "|".join(PACKAGES).replace("_", "-")
    bounds = {line for line in needed if re.match(rf"({names})\b", line)}

    assert len(bounds) == len(PACKAGES)
    assert [line for line in bounds if "<" not in line] == []


# ---------------------------------------------------------------- what dependencies have


@cache
def names_of(where: str) -> frozenset[str]:
    """The names that a module has, or a class and its objects, but for those of asyncio's protocols."""
    module, _, cls = where.partition(":")
    found = importlib.import_module(module)
    if not cls:
        return frozenset(dir(found))
    bases = [base for base in getattr(found, cls).__mro__ if base.__module__.partition(".")[0] in PACKAGES]
    names = {name for base in bases for name in [*vars(base), *names_on_self(base)]}
    return frozenset(name for name in names - {*dir(asyncio.Protocol)} if not name.startswith("__"))


def names_on_self(cls: type) -> Iterator[str]:
    """What a class reads, sets and calls of `self` and `super()`, and the names of its methods."""
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(cls)))):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in {"self", "super()"}:
            yield node.attr
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign):
            yield ast.unparse(node.target)


# ---------------------------------------------------------------- what the service uses


def used_names() -> dict[str, set[str]]:
    """What the service's modules use of `PACKAGES`, as far as that is undocumented."""
    used = defaultdict[str, set[str]](set)
    infos = [pkgutil.walk_packages(package.__path__, f"{package.__name__}.") for package in (stepwell, stepwell_client)]
    for info in chain.from_iterable(infos):
        if info.name != "stepwell.__main__":
            try:
                module = importlib.import_module(info.name)
            except ModuleNotFoundError as exc:
                if (exc.name or "").partition(".")[0] in (*PACKAGES, "stepwell", "stepwell_client", "stepwell_export"):
                    raise
                continue  # it needs a package of an extra, which is not installed: a broker's client
            except MissingExtraError:
                continue
            nodes = [*ast.walk(ast.parse(inspect.getsource(module)))]
            for where, name in (*imported(nodes), *read_of_variables(nodes), *used_by_subclasses(module)):
                if UNDOCUMENTED.match(where) or name.startswith("_"):
                    used[where].add(name)
    return dict(used)


def imported(nodes: Sequence[ast.AST]) -> Iterator[tuple[str, str]]:
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in PACKAGES:
            yield from ((node.module, alias.name) for alias in node.names)


def read_of_variables(nodes: Sequence[ast.AST]) -> Iterator[tuple[str, str]]:
    there = frozenset[str]().union(*map(names_of, VARIABLES.values()))
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr in there:
            where = VARIABLES.get(ast.unparse(node.value))
            if where is not None and node.attr in names_of(where):
                yield where, node.attr


def used_by_subclasses(module: Any) -> Iterator[tuple[str, str]]:
    for cls in vars(module).values():
        if isinstance(cls, type) and cls.__module__ == module.__name__:
            base = next((base for base in cls.__mro__ if base.__module__.partition(".")[0] in PACKAGES), None)
            if base is not None:
                where = f"{base.__module__}:{base.__name__}"
                yield from ((where, name) for name in {*names_on_self(cls)} & names_of(where))
