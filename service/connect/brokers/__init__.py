"""The brokers that a connector reads from and writes to, by the scheme of their URLs."""

from __future__ import annotations

import importlib
from typing import Any

from model_export.errors import MissingExtraError
from service.connect.brokers.protocol import MessageReader, MessageWriter, ReaderOptions
from service.connect.urls import BrokerUrl

_MODULES = {
    "file": "jsonl_files",
    "redis": "redis_streams",
    "rediss": "redis_streams",
    "kafka": "kafka",
    "kafkas": "kafka",
    "mqtt": "mqtt",
    "mqtts": "mqtt",
    "nats": "nats_jetstream",
    "amqp": "amqp",
    "amqps": "amqp",
}


def make_reader(url: BrokerUrl, options: ReaderOptions) -> MessageReader:
    """Return the reader of a URL, which is not opened yet.

    Raises:
        MissingExtraError: The broker's client library is not installed.
        ConnectUsageError: The URL lacks something that reading needs.
    """
    reader: MessageReader = _module(url).open_reader(url, options)
    return reader


def make_writer(url: BrokerUrl, body_format: str) -> MessageWriter:
    """Return the writer of a URL, which is not opened yet; raises as `make_reader` does."""
    writer: MessageWriter = _module(url).open_writer(url, body_format)
    return writer


def _module(url: BrokerUrl) -> Any:
    try:
        return importlib.import_module(f"{__name__}.{_MODULES[url.scheme]}")
    except ModuleNotFoundError as exc:
        raise MissingExtraError(
            f"{url.scheme}:// needs the package {exc.name}, which is not installed.",
            fix="Install it with `pip install 'stepwell[connect]'`, or in a clone with STEPWELL_EXTRAS=connect.",
        ) from exc
