"""`error_table`: how far two versions were from the truth, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from stepwell.commands.tables import table


def error_table(errors: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    """Return the table of errors by output and label, as a release and a backtest have them."""
    rows = [
        (f"{name}[{label}]" if label != name else name, _number(found["current"]), _number(found["candidate"]),
         _number(found["ratio"]), _interval(found), f"{found['n']:,}", verdict(found))
        for name, labels in errors.items() for label, found in labels.items()
    ]  # fmt: skip
    columns = ("output", "current", "candidate", "ratio", "95 %", "truths", "candidate")
    return table("Mean absolute errors against the truth", columns, rows)


def verdict(found: Mapping[str, Any]) -> str:
    """Return whether the candidate is `better` or `worse`: the whole interval is; else `undecided`, or `-`."""
    if found["low"] is None:
        return "-"
    return "worse" if found["low"] > 1 else "better" if found["high"] < 1 else "undecided"


def _interval(found: Mapping[str, Any]) -> str:
    return "-" if found["low"] is None else f"{found['low']:.3g} to {found['high']:.3g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
