"""`ConnectSession`: the parts of one connector, built from its configuration."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from msgspec import structs

from stepwell.addons.connect.brokers.interface import MessageReader, MessageWriter, ReaderOptions
from stepwell.addons.connect.brokers.jsonl_files import csv_header
from stepwell.addons.connect.chunk_sender import ChunkSender
from stepwell.addons.connect.chunks import PollLimits
from stepwell.addons.connect.config import ConnectConfig, DeadLetterSection, FromSection, ToSection
from stepwell.addons.connect.connector import Connector
from stepwell.addons.connect.counters import ConnectCounters
from stepwell.addons.connect.formats.bodies import SCHEMA_FORMATS, SchemaBodies
from stepwell.addons.connect.formats.predictions import SchemaWriter
from stepwell.addons.connect.formats.reader import SchemaReader
from stepwell.addons.connect.formats.registry import SchemaRegistry
from stepwell.addons.connect.late_timesteps import LateTimesteps
from stepwell.addons.connect.mapping.input_columns import InputColumn, make_columns
from stepwell.addons.connect.mapping.message_mapper import MessageMapper, check_segment
from stepwell.addons.connect.mapping.poll_mapper import PollMapper
from stepwell.addons.connect.mapping.tick_mapper import TickMapper
from stepwell.addons.connect.mapping.typed_decoding import typed_decoder
from stepwell.addons.connect.mapping.unseen_fields import UnseenFields
from stepwell.addons.connect.messages import ConnectError, ConnectUsageError
from stepwell.addons.connect.preview import preview
from stepwell.addons.connect.service_feed import ModelFacts, ServiceFeed
from stepwell.addons.connect.time_rules import TimeRules, follows_grid
from stepwell.addons.connect.timed_connector import TimedConnector
from stepwell.addons.connect.timeline import Timeline
from stepwell.addons.connect.urls import BrokerUrl, stream_segment
from stepwell_client.input_columns import input_columns
from stepwell_export.runtime.durations import duration_of


def _check_places(source: BrokerUrl, to: BrokerUrl | None, letters: BrokerUrl | None) -> None:
    """Check that nothing is written where it is read, and that no two writers append to one file."""
    share_a_file = to is not None and letters is not None and to.scheme == "file" and to.place == letters.place
    if share_a_file or source.place in [one.place for one in (to, letters) if one is not None]:
        raise ConnectUsageError(
            f"{letters.text if share_a_file and letters else source.text} is named twice.",
            fix="Give what is read, the predictions and the dead letters places of their own.",
        )


def _url_of(section: ToSection | DeadLetterSection | None, name: str) -> BrokerUrl | None:
    return None if section is None else BrokerUrl.parse(section.url, section.login, table=f"[{name}.login]")


def _bodies_of(section: FromSection) -> SchemaBodies | None:
    """Return what decodes messages with a schema; None: the format has none."""
    if section.format not in SCHEMA_FORMATS:
        if section.schema or section.registry or section.message:
            raise ConnectUsageError(
                f"The format {section.format} has no schema.", fix=f"Give one of {', '.join(SCHEMA_FORMATS)}."
            )
        return None
    registry = section.registry and SchemaRegistry(
        section.registry, section.registry_login, section.format, table="[from.registry_login]"
    )
    schema = None if section.schema is None else Path(section.schema)
    return SchemaBodies(section.format, schema=schema, message=section.message, registry=registry or None)


def _writer_of(url: BrokerUrl, section: ToSection) -> MessageWriter:
    """Return the writer of predictions."""
    writer = url.writer(section.format)
    if section.format not in SCHEMA_FORMATS:
        if section.registry is not None:
            raise ConnectUsageError(
                f"The format {section.format} has no schema.", fix=f"Give one of {', '.join(SCHEMA_FORMATS)}."
            )
        return writer
    registry = section.registry and SchemaRegistry(
        section.registry, section.registry_login, section.format, table="[to.registry_login]"
    )
    return SchemaWriter(writer, url, section.format, registry or None)


@dataclass(frozen=True, slots=True)
class _Mapped:
    """The model, and how messages become its timesteps."""

    model: ModelFacts
    columns: dict[str, InputColumn]
    mapper: MessageMapper


class ConnectSession:
    """One run of `stepwell connect`; `async with` disconnects from the service at the end."""

    def __init__(
        self, config: ConnectConfig, *, url: str, key: str | None, options: ReaderOptions, report: Callable[[str], None]
    ) -> None:
        """Create the readers and writers, which are not opened yet.

        Args:
            config: The configuration.
            url: The service's address.
            key: The API key, or None.
            options: How messages are read.
            report: Called with a sentence about anything that has to wait.

        Raises:
            ConnectUsageError: The configuration is wrong.
            MissingExtraError: A broker's client library is not installed.
            ClientError: `bad_url`.
            ConnectError, RecordedDataError: The first line of a CSV file cannot be used.
        """
        self.counters = ConnectCounters()
        self._rules: TimeRules | None = None
        if config.source.order is not None or not follows_grid(config.source):  # else the model's grid counts
            self._rules = TimeRules.of(config.source)
        self._config = config
        self._options = options
        self._report = report
        source = BrokerUrl.parse(config.source.url, config.source.login, table="[from.login]")
        to = _url_of(config.to, "to")
        letters = _url_of(config.dead_letter, "dead_letter")
        self._segment = stream_segment(source)
        check_segment(config.source, self._segment, source)
        is_csv_file = source.scheme == "file" and config.source.format == "csv"
        self._header = csv_header(source) if is_csv_file else None
        self._source = source
        self._acknowledges = source.broker.acknowledges
        self._bodies = _bodies_of(config.source)
        self._reader = self._new_reader()
        self._writer = _writer_of(to, config.to) if to and config.to else None
        self._dead_letters = letters.writer("json") if letters else None
        _check_places(source, to, letters)
        places_by_seq = not source.broker.has_positions and config.source.seq is not None
        self._has_own_positions = config.source.position is not None or places_by_seq
        self._feed = ServiceFeed(url, key, config.service.model, config.service.version, report=report)
        self.counters.watch_retries(lambda: self._feed.n_retries)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._feed.close()

    async def connector(self) -> Connector:
        """Return the connector, once the service has described the model.

        Raises:
            ConnectError: The service rejects the model's name or the key, or the inputs do not fit the model.
            ColumnsError: A CSV file has no columns with the names of an input.
        """
        mapped = await self._map()
        row_bytes = sum(
            math.prod(one.spec.shape) * np.dtype(one.spec.dtype).itemsize for one in mapped.columns.values()
        )
        limits = PollLimits(mapped.model.max_chunk_steps, mapped.model.max_body_bytes, row_bytes)
        parts: dict[str, Any] = {
            "reader": self._reader,
            "writer": self._writer,
            "dead_letters": self._dead_letters,
            "unseen": UnseenFields(mapped.mapper),
            "mapper": PollMapper(mapped.mapper, typed_decoder(self._config.source.format, mapped.mapper)),
            "sender": ChunkSender(self._feed, limits),
            "model": mapped.model,
            "late": LateTimesteps() if self._has_own_positions else None,
            "limits": limits,
            "counters": self.counters,
            "report": self._report,
            "acknowledges": self._acknowledges,
        }
        if self._rules is None:
            return Connector(**parts)
        return TimedConnector(
            rules=self._rules,
            timeline=Timeline(self._rules, self._rules.columns(mapped.model.inputs)),
            ticks=TickMapper(mapped.mapper) if self._rules.every else None,
            feed=self._feed,
            **parts,
        )

    async def preview(self) -> tuple[list[dict[str, Any]], ConnectError | None]:
        """Return what would be sent for the first messages, and an error in the mapping; raises as `connector` does."""
        mapped = await self._map()
        return await preview(self._reader, mapped.mapper, mapped.columns, rules=self._rules)

    @property
    def window(self) -> str | None:
        """How many messages can wait, in words; None: there is no order, so none waits."""
        if self._rules is None:
            return None
        window: int | None = getattr(self._reader, "window", None)
        if window is None or window >= self._rules.most:
            return f"at most {self._rules.most:,} messages wait (--order-messages)"
        return f"at most {window:,} messages wait: {self._source.scheme} lets no more be open at a time"

    def _use_grid(self, every: str | None) -> None:
        """Settle the rules of time, now that the time between the model's timesteps is known.

        Raises:
            ConnectUsageError: The rules are incomplete, or the reader cannot keep them.
        """
        given, source = self._config.source, self._source
        if every is not None and follows_grid(given):
            self._rules = TimeRules.of(structs.replace(given, every=every))
            self._reader = self._new_reader()
            self._report(f"one timestep every {every}, as the model was trained with")
        elif follows_grid(given):
            self._rules = TimeRules.of(given)
        elif every is not None and (given.every is None or duration_of(given.every) != duration_of(every)):
            told = "here each message is one" if given.every is None else f"--every is {given.every}"
            self._report(f"the model was trained with a timestep every {every}; {told}")
        if self._rules is None and not source.broker.has_positions and not self._has_own_positions:
            self._report(
                f"{source.scheme} messages have no positions: a message that is delivered twice is applied twice. "
                "Name a field that grows with --position, or one that counts the timesteps with --seq."
            )

    def _new_reader(self) -> MessageReader:
        """Return a reader that keeps as many messages open as the rules need."""
        most_open = None if self._rules is None else self._rules.most
        reader = self._source.reader(replace(self._options, header=self._header, most_open=most_open))
        if self._rules is not None and not hasattr(reader, "acknowledge_some"):
            raise ConnectUsageError(
                f"{self._source.text}: this broker's reader cannot keep single messages open, so --order and --every "
                "cannot be exact there.",
                fix="Leave them out, or read from a broker that comes with Stepwell.",
            )
        if self._bodies is not None and self._bodies.registry is not None:
            return cast("MessageReader", SchemaReader(reader, self._bodies.registry))
        return reader

    async def _map(self) -> _Mapped:
        model = await self._feed.describe()
        section = self._config.source
        self._use_grid(model.every)
        inputs: dict[str, list[str | int | float]] = dict(self._config.inputs)
        if self._header is not None:  # by the names that `replay` and `backfill` accept
            others = [spec for spec in model.inputs if spec.name not in inputs]
            found = input_columns(others, self._header.names, {}, where=self._config.source.url)
            inputs |= {name: list(names) for name, names in found.items()}
        columns = make_columns(model.inputs, inputs, raw=section.format == "raw")
        mapper = MessageMapper(
            section, columns, max_body_bytes=model.max_body_bytes, segment=self._segment, bodies=self._bodies
        )
        return _Mapped(model, columns, mapper)
