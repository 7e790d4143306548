"""The errors of reading recorded data."""

from __future__ import annotations

from collections.abc import Sequence

from model_export.errors import StepwellError

_MOST_NAMED = 12


class RecordedDataError(StepwellError):
    """A file of recorded data cannot be read, or has values that the model does not accept."""

    code = "bad_data"


class ColumnsError(StepwellError):
    """The columns that were named, or that the model's inputs need, are not those of the files."""

    code = "bad_columns"


def listed(names: Sequence[object]) -> str:
    """Return names as text, with the number of those that are left out."""
    more = len(names) - _MOST_NAMED
    return ", ".join(map(str, names[:_MOST_NAMED])) + (f" and {more} more" if more > 0 else "")
