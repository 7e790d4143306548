"""The contract for add-ons: all names that a package which extends Stepwell imports, and the groups it registers in.

An installed package registers what it adds as entry points in its project file; there is nothing else to call or to
configure. Stepwell registers its own brokers and gRPC in the same way.

    [project.entry-points."stepwell.brokers"]
    spool = "stepwell_fleet.spool:SPOOL"

        A `Broker`; the entry point's name is the scheme of its URLs. Its module has the two functions of
        `BrokerModule`: open_reader(url, options) -> MessageReader and open_writer(url, body_format) -> MessageWriter.
        Used by `connect` and `alert`, when they are given a URL with that scheme.

    [project.entry-points."stepwell.commands"]
    fleet = "stepwell_fleet.commands:COMMANDS"

        A mapping of the commands' names to `Command`. It is imported for `stepwell --help` and for a command that is
        not Stepwell's own; the function that a command names is imported when that command is run.

    [project.entry-points."stepwell.stages"]
    Deadband = "stepwell_fleet.deadband:Deadband"

        A subclass of `Stage`; the entry point's name is its name in `stepwell.stages`. Imported at its first use there.

    [project.entry-points."stepwell.step_rules"]
    leaky = "stepwell_fleet.leaky"

        A module that calls `register_step_rule`. Imported before a Keras model is loaded from a file; the entry
        point's name has no meaning.

    [project.entry-points."stepwell.settings"]
    fleet = "stepwell_fleet.settings:FleetSettings"

        A subclass of `AddonSettings`: more flags of `serve` and variables of the service, which its add-ons read. The
        entry point's name has no meaning.

    [project.entry-points."stepwell.addons"]
    overview = "stepwell_fleet.overview:Overview"

        A subclass of `ServiceAddon`. Each worker of the service creates one at its start, and calls its methods; the
        entry point's name has no meaning.

    [project.entry-points."stepwell.stores"]
    "redis+file" = "stepwell_fleet.store:open_transport"

        A function (url, *, timeout) -> RedisTransport; the entry point's name is the scheme of its URLs. Used
        wherever a store is opened by a URL with that scheme.

A package that cannot be used is an `AddonError`, which names the package and what to do. Two packages that register one
name in a group are one, too. `stepwell.testing` has the tests that every broker has to pass.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from stepwell.addons.connect.brokers.interface import Broker, BrokerModule, MessageReader, MessageWriter, ReaderOptions
from stepwell.addons.connect.messages import (
    BrokerMessage,
    BrokerUnavailableError,
    ConnectError,
    ConnectUsageError,
    OutMessage,
    Undeliverable,
)
from stepwell.addons.connect.urls import BrokerUrl
from stepwell.commands import Command
from stepwell.service_addon import ServiceAddon
from stepwell_export.keras.own_layers import register_step_rule
from stepwell_export.runtime.errors import StepwellError
from stepwell_export.runtime.registered import AddonError

if TYPE_CHECKING:
    from stepwell.addons.api_schemas.sockets import SocketDocumentation, document_socket
    from stepwell.commands.service_calls import DEFAULT_URL, HttpApi, Key, Model, Url
    from stepwell.engine.engine import Engine
    from stepwell.engine.model_reloads import ModelReloads
    from stepwell.engine.model_runs import ModelRuns
    from stepwell.engine.observer import EngineObserver, Sampler
    from stepwell.engine.placing import Placement, Placing
    from stepwell.engine.publisher import PendingCommits, Publisher
    from stepwell.models.artifacts import Artifact, Artifacts, LoadedArtifact, LoadModel
    from stepwell.protocols import Protocols
    from stepwell.requests.context import AppContext
    from stepwell.requests.error_formats import ErrorFormat
    from stepwell.requests.hot_routes import HotRoute
    from stepwell.requests.request_ids import TracedId
    from stepwell.requests.tracer import RequestTracer
    from stepwell.settings import AddonSettings, CheckModelFile
    from stepwell.store.commits import Notification
    from stepwell.store.transport.transport import RedisTransport, open_transport
    from stepwell_export.graph.builder import GraphBuilder
    from stepwell_export.stages.stage import Stage

__all__ = [
    "DEFAULT_URL",
    "AddonError",
    "AddonSettings",
    "AppContext",
    "Artifact",
    "Artifacts",
    "Broker",
    "BrokerMessage",
    "BrokerModule",
    "BrokerUnavailableError",
    "BrokerUrl",
    "CheckModelFile",
    "Command",
    "ConnectError",
    "ConnectUsageError",
    "Engine",
    "EngineObserver",
    "ErrorFormat",
    "GraphBuilder",
    "HotRoute",
    "HttpApi",
    "Key",
    "LoadModel",
    "LoadedArtifact",
    "MessageReader",
    "MessageWriter",
    "Model",
    "ModelReloads",
    "ModelRuns",
    "Notification",
    "OutMessage",
    "PendingCommits",
    "Placement",
    "Placing",
    "Protocols",
    "Publisher",
    "ReaderOptions",
    "RedisTransport",
    "RequestTracer",
    "Sampler",
    "ServiceAddon",
    "SocketDocumentation",
    "Stage",
    "StepwellError",
    "TracedId",
    "Undeliverable",
    "Url",
    "document_socket",
    "open_transport",
    "register_step_rule",
]

_LOADED_WHEN_USED: Final = {
    **dict.fromkeys(("AddonSettings", "CheckModelFile"), "stepwell.settings"),
    "AppContext": "stepwell.requests.context",
    "ErrorFormat": "stepwell.requests.error_formats",
    "HotRoute": "stepwell.requests.hot_routes",
    "GraphBuilder": "stepwell_export.graph.builder",
    "Engine": "stepwell.engine.engine",
    "EngineObserver": "stepwell.engine.observer",
    "ModelReloads": "stepwell.engine.model_reloads",
    **dict.fromkeys(("Artifact", "Artifacts", "LoadModel", "LoadedArtifact"), "stepwell.models.artifacts"),
    "ModelRuns": "stepwell.engine.model_runs",
    "Protocols": "stepwell.protocols",
    "RequestTracer": "stepwell.requests.tracer",
    **dict.fromkeys(("RedisTransport", "open_transport"), "stepwell.store.transport.transport"),
    "TracedId": "stepwell.requests.request_ids",
    **dict.fromkeys(("Placement", "Placing"), "stepwell.engine.placing"),
    **dict.fromkeys(("PendingCommits", "Publisher"), "stepwell.engine.publisher"),
    "Notification": "stepwell.store.commits",
    **dict.fromkeys(("SocketDocumentation", "document_socket"), "stepwell.addons.api_schemas.sockets"),
    "Sampler": "stepwell.engine.observer",
    "Stage": "stepwell_export.stages.stage",
    **dict.fromkeys(("DEFAULT_URL", "HttpApi", "Key", "Model", "Url"), "stepwell.commands.service_calls"),
}
"""Names whose modules load NumPy, onnx, an HTTP client or the engine, which most add-ons do not need."""


def __getattr__(name: str) -> Any:
    if name not in _LOADED_WHEN_USED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LOADED_WHEN_USED[name]), name)
