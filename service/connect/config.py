"""`ConnectConfig`: what a connector reads, sends and writes, from a TOML file or from flags."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from service.connect.messages import ConnectUsageError

BodyFormat = Literal["json", "msgpack", "csv", "raw"]
"""The format of messages that are read."""

OutFormat = Literal["json", "msgpack"]
"""The format of messages that are written."""


class FromSection(Struct, kw_only=True, frozen=True):
    """What is read.

    Attributes:
        url: The topic, stream, queue or file.
        format: The format of the messages; by default that of the ending of a file `.csv`, else JSON.
        stream: Where a message has its stream's id: `key`, `header:NAME`, `topic` or the path of a field.
        position: The path of a field that grows; None: the broker's own position.
        seq: The path of the field with the step of the timestep; None: there is none.
    """

    url: str
    stream: str
    format: BodyFormat = "json"
    position: str | None = None
    seq: str | None = None


class ServiceSection(Struct, kw_only=True, frozen=True):
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


class ToSection(Struct, kw_only=True, frozen=True):
    """Where predictions are written, and in which format."""

    url: str
    format: OutFormat = "json"


class DeadLetterSection(Struct, kw_only=True, frozen=True):
    """Where messages are written that cannot be used."""

    url: str


class ConnectConfig(Struct, kw_only=True, frozen=True, rename={"source": "from"}):
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


_SECTIONS: dict[str, type[Struct]] = {
    "from": FromSection,
    "service": ServiceSection,
    "to": ToSection,
    "dead_letter": DeadLetterSection,
}


def read_config(path: Path) -> ConnectConfig:
    """Return the configuration in a TOML file.

    Raises:
        ConnectUsageError: The file cannot be read, is not TOML, or has an unknown, missing or wrong key.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        reason = "it is not there" if isinstance(exc, FileNotFoundError) else exc
        raise ConnectUsageError(
            f"{path} cannot be read: {reason}.", fix="Give a TOML file, or the URL of a source with --model."
        ) from exc
    return config_of(document, str(path))


def config_of(document: dict[str, Any], where: str) -> ConnectConfig:
    """Return the configuration in a document; raises as `read_config` does.

    Args:
        document: Tables by name, as TOML has them.
        where: Where it came from, for messages.
    """
    for name, table in document.items():
        if name != "inputs" and name not in _SECTIONS:
            raise _unknown(where, name, ["inputs", *_SECTIONS])
        if not isinstance(table, dict):
            raise ConnectUsageError(f"{where}: {name!r} is {table!r}; expected a table, [{name}].")
        for key in table if name != "inputs" else ():
            if key not in _SECTIONS[name].__struct_fields__:
                raise _unknown(where, f"{name}.{key}", [f"{name}.{one}" for one in _SECTIONS[name].__struct_fields__])
    source = document.get("from", {})
    if str(source.get("url", "")).lower().endswith(".csv"):
        document = document | {"from": {"format": "csv"} | source}
    try:
        return msgspec.convert(document, ConnectConfig)
    except msgspec.ValidationError as exc:
        raise ConnectUsageError(
            f"{where}: {exc}.", fix='The page "Connecting brokers and files" of the documentation has a complete file.'
        ) from exc


def _unknown(where: str, found: str, expected: list[str]) -> ConnectUsageError:
    return ConnectUsageError(
        f"{where} has the unknown key {found!r}; expected one of {', '.join(expected)}.",
        fix="Correct or remove the key.",
    )
