"""`ConnectConfig`: what a connector reads, sends and writes, from a TOML file or from flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from msgspec import Struct

from stepwell.addons.connect.login import LoginSection
from stepwell.addons.connect.toml_document import TomlDocument
from stepwell.addons.event_time.times import TimeUnit

_FIX: Final = 'The page "Connecting brokers and files" of the documentation has a complete file.'

BodyFormat = Literal["json", "msgpack", "csv", "raw", "avro", "protobuf", "json-schema"]
"""The format of messages that are read."""

OutFormat = Literal["json", "msgpack", "avro", "protobuf", "json-schema"]
"""The format of messages that are written."""


class FromSection(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What is read.

    Attributes:
        url: The topic, stream, queue or file.
        format: The format of the messages; by default that of the ending of a file `.csv`, else JSON.
        stream: Where a message has its stream's id: `key`, `header:NAME`, `topic`, the path of a field, or a template
            of these, such as `pump-{id}`.
        position: The path of a field that grows; None: the broker's own position.
        seq: The path of the field with the step of the timestep; None: there is none.
        login: How to log in; None: as the URL says.
        schema: The file with the schema of Avro, Protobuf (a descriptor set) or JSON Schema; None: the registry has it.
        message: The full name of Protobuf's message; None: the only one.
        registry: The schema registry; None: there is none.
        registry_login: How to log in to it; None: as its URL says.
        time: The path of the field with the time; None: there is none.
        time_unit: The unit of times that are numbers.
        order: How long a message waits for those before it, such as `5s`; None: timesteps are applied as they come.
        idle: How long nothing must have come for that all go on that wait.
        ahead: How far ahead of the connector's clock a time may be.
        order_messages: Messages that wait at most.
        every: From one timestep to the next, such as `1s`; None: each message is one.
        take: Which value a tick has of several: one rule, or rules by input.
        fill: Which value a tick has if there is none.
        gap: Ticks in a row that are filled at most.
    """

    url: str
    stream: str
    format: BodyFormat = "json"
    position: str | None = None
    seq: str | None = None
    login: LoginSection | None = None
    schema: str | None = None
    message: str | None = None
    registry: str | None = None
    registry_login: LoginSection | None = None
    time: str | None = None
    time_unit: TimeUnit = "s"
    order: str | None = None
    idle: str = "10s"
    ahead: str = "1h"
    order_messages: int = 100_000
    every: str | None = None
    take: str | dict[str, str] = "last"
    fill: str = "hold"
    gap: int = 60

    @property
    def uses_time_rules(self) -> bool:
        """Whether it has a rule that only order and ticks have."""
        return (self.idle, self.take, self.fill, self.gap) != ("10s", "last", "hold", 60)


class ServiceSection(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The service and the model.

    Attributes:
        model: The model's name.
        url: The service's address.
        key_env: The environment variable with the API key; None: no key.
        version: The model's version; None: the default one.
    """

    model: str
    url: str | None = None
    key_env: str | None = None
    version: int | None = None


class ToSection(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Where predictions are written, and in which format; the logins and the registry as in `FromSection`."""

    url: str
    format: OutFormat = "json"
    login: LoginSection | None = None
    registry: str | None = None
    registry_login: LoginSection | None = None


class DeadLetterSection(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Where messages are written that cannot be used; `login` as in `FromSection`."""

    url: str
    login: LoginSection | None = None


class ConnectConfig(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, rename={"source": "from"}):
    """The configuration of a connector.

    Attributes:
        source: What is read; `[from]` in a file.
        service: The service and the model.
        inputs: By input, the paths of the fields that it consists of; numbers are constants. An input that is not
            listed is the field of its name.
        to: Where predictions are written; None: nowhere.
        dead_letter: Where messages are written that cannot be used; None: they are only logged and counted.
    """

    source: FromSection
    service: ServiceSection
    inputs: dict[str, list[str | int | float]] = {}
    to: ToSection | None = None
    dead_letter: DeadLetterSection | None = None


def read_config(path: Path) -> ConnectConfig:
    """Return the configuration in a TOML file.

    Raises:
        SettingsError: The file cannot be read, is not TOML, or has an unknown, missing or wrong key.
    """
    return _config_of(TomlDocument.read(path, fix=_FIX))


def config_of_flags(tables: dict[str, Any]) -> ConnectConfig:
    """Return the configuration in the tables that the command line stands for; raises as `read_config` does."""
    return _config_of(TomlDocument("The command line", tables, fix=_FIX))


def _config_of(document: TomlDocument) -> ConnectConfig:
    source = document.tables.get("from")
    if isinstance(source, dict) and str(source.get("url")).lower().endswith(".csv"):
        source.setdefault("format", "csv")
    return document.convert(ConnectConfig)
