"""`ColumnChoice`: which columns of a table are the streams, the times, and the numbers of each input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stepwell.addons.event_time.times import TimeUnit
from stepwell_client.input_columns import ColumnsError, input_columns
from stepwell_client.wire.stream_templates import StreamTemplate, is_template
from stepwell_client.wire.texts import listed, nearest
from stepwell_export.runtime.manifest import InputSpec


@dataclass(frozen=True, slots=True)
class ColumnChoice:
    """The columns that were named.

    Attributes:
        stream: The column of the stream ids, or a template of columns, such as `pump-{id}`; None: each file is one
            stream, with the file's name without its ending.
        time: The column of the times, by which the rows of each stream are sorted; None: they are not checked.
        inputs: The columns of an input's numbers, in C order; an input that is not here has columns of its own names.
        time_unit: The unit of times that are numbers.
    """

    stream: str | None = None
    time: str | None = None
    inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    time_unit: TimeUnit = "s"

    @property
    def template(self) -> StreamTemplate | None:
        """The template of the stream ids; None: they are a column as it stands, or there is none."""
        return StreamTemplate(self.stream) if self.stream is not None and is_template(self.stream) else None

    @property
    def stream_columns(self) -> list[str]:
        """The columns that the stream ids are made of."""
        template = self.template
        return template.names if template is not None else [] if self.stream is None else [self.stream]

    def input_columns(self, specs: Sequence[InputSpec], available: Sequence[str], where: str) -> dict[str, list[str]]:
        """Return the columns of each input in a table.

        Args:
            specs: The inputs.
            available: The columns of the table.
            where: The table's file.

        Raises:
            ColumnsError: A column is missing, or an input has too many or too few.
        """
        named = [("--stream-column", name) for name in self.stream_columns]
        for flag, name in [*named, ("--time-column", self.time)]:
            if name is not None and name not in available:
                raise ColumnsError(
                    f"{where} has no column {name!r}{nearest(name, available)}; it has {listed(available)}.",
                    fix=f"Name one of these with {flag}.",
                )
        return input_columns(specs, available, self.inputs, where=where)
