"""Finds cells of CSV text that NumPy and Arrow read as numbers, and that JSON's grammar has not as numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stepwell_export.runtime.manifest import Array

_SPACE, _TAB, _LINE_FEED, _PLUS, _MINUS, _POINT, _ZERO, _NINE = b" \t\n+-.09"


def has_other_numbers(text: str, delimiter: str, n_rows: int, n_columns: int, at: Sequence[int]) -> bool:
    """Whether a cell of some columns begins like `+5`, `.5` or `007`, or has a point without a digit after it.

    Args:
        text: Lines without quotes, the last one with its end.
        delimiter: Separates the cells.
        n_rows: Number of the lines.
        n_columns: Number of the cells in each of them.
        at: Indices of the columns.

    Returns:
        True also if the lines cannot be divided by line feeds.

    Source: RFC 8259, 6.
    """
    data = np.frombuffer(text.encode() + b"\n\n\n", np.uint8)  # three bytes after the start of each cell
    ends = np.flatnonzero((data[:-3] == ord(delimiter)) | (data[:-3] == _LINE_FEED))
    if ends.size != n_rows * n_columns:
        return True
    starts = np.concatenate([[0], ends[:-1] + 1])
    points = np.flatnonzero(data == _POINT)
    points = points[~_is_digit(data[points + 1])]
    if points.size and np.isin((np.searchsorted(starts, points, "right") - 1) % n_columns, at).any():
        return True
    first = starts.reshape(n_rows, n_columns)[:, list(at)].ravel()
    while (is_space := (data[first] == _SPACE) | (data[first] == _TAB)).any():
        first = first + is_space
    sign = data[first]
    first = first + (sign == _MINUS)
    is_point = data[first] == _POINT
    has_zeros = (data[first] == _ZERO) & _is_digit(data[first + 1])
    return bool(((sign == _PLUS) | is_point | has_zeros).any())


def _is_digit(data: Array) -> Array:
    found: Array = (data >= _ZERO) & (data <= _NINE)
    return found
