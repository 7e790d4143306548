"""`CsvHeader`: the first line of a CSV file: the names of its columns, and what separates the cells."""

from __future__ import annotations

import csv
from typing import NamedTuple

from stepwell.addons.recorded.errors import RecordedDataError

_DELIMITERS = ",;\t|"


class CsvHeader(NamedTuple):
    """The first line of a CSV file.

    Attributes:
        names: The names of the columns, all different.
        delimiter: A comma, semicolon, tab or bar, whichever the line has most.
    """

    names: list[str]
    delimiter: str

    @classmethod
    def of(cls, line: str, where: object) -> CsvHeader:
        """Parse a line.

        Args:
            line: The line, with or without its end.
            where: The file, for the error.

        Raises:
            RecordedDataError: It has no names, or a name twice.
        """
        line = line.removeprefix("\ufeff")
        delimiter = max(_DELIMITERS, key=line.count)
        names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
        if not any(names) or len(set(names)) != len(names):
            found = "no names" if not any(names) else f"the names {', '.join(names)}, some of them twice"
            raise RecordedDataError(
                f"The first line of {where} has {found}; expected a different name for each column.",
                fix="Put a line with the names of the columns first.",
            )
        return cls(names, delimiter)
