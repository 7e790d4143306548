"""Tables, lines, JSON documents and progress bars that commands print."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.table import Table

from stepwell_export.runtime.manifest import Manifest

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
"""Type of a command's `as_json` parameter."""


def tensors_table(manifest: Manifest) -> Table:
    """Return a table with a row for each input, window, state, constant, output and feedback rule of a model."""
    table = _table(f"{manifest.name}", "", "tensor", "dtype", "one row", "batch axis", "")
    for given in manifest.inputs:
        table.add_row("input", given.name, given.dtype, _row(given.shape), _axis(given.batch_axis), _notes(given))
    for window in manifest.windows:
        note = f"last {window.context} of {window.input}, put before the new timestep along axis {window.axis}"
        table.add_row("window", window.state_name, "", "", "", note)
    for state in manifest.states:
        note = f"-> {state.output}"
        if state.init != "zeros":
            note += ", has initial values"
        if state.store_dtype != state.dtype:
            note += f", stored as {state.store_dtype}"
        if state.is_learned:
            note += ", learned"
        table.add_row("state", state.input, state.dtype, _row(state.shape), _axis(state.batch_axis), note)
    for name, constant in manifest.constants.items():
        table.add_row("constant", name, constant.dtype, "", "", f"= {constant.value}")
    for output in manifest.outputs:
        note = "; ".join(filter(None, [output.kind if output.kind != "value" else "", _notes(output)]))
        table.add_row("output", output.name, output.dtype, _row(output.shape), _axis(output.batch_axis), note)
    for name, rule in manifest.feedback.items():
        source = rule if isinstance(rule, str) else json.dumps(rule)
        table.add_row("feedback", name, "", "", "", f"in a rollout, computed from {source}")
    return table


def key_value_table(title: str, facts: Mapping[str, str]) -> Table:
    """Return a table of names and values, without a header."""
    table = _table(title, "", "")
    table.show_header = False
    for name, value in facts.items():
        table.add_row(name, value)
    return table


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    """Return a table with a header."""
    table = _table(title, *columns)
    for row in rows:
        table.add_row(*row)
    return table


def parity_lines(parity: Mapping[str, Any] | None) -> str:
    """Return a one-line summary of a model's verification."""
    if parity is None:
        return "not verified"
    return (
        f"{parity['max_abs']:.1e} largest difference from {parity['against']} in {parity['steps']} steps "
        f"({', '.join(parity['sequences'])}); allowed {parity['atol']:.3g} + {parity['rtol']:g} of the value"
    )


def covered_lines(covered: Mapping[str, Any]) -> list[str]:
    """Return lines with what of a model's behaviour its verification compared, and what it did not."""
    ranges, driven = (
        ", ".join(f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in covered[what].items())
        for what in ("ranges", "driven")
    )
    decided, one_sided = covered["decisions"], len(covered["one_sided"])
    decisions = f"{decided - one_sided} of {decided} decisions of the original went both ways; " if decided else ""
    return [
        f"covered: {decisions}{ranges}, in few sequences {driven}; at most {covered['steps']:,} timesteps",
        "not:     longer streams, values outside these ranges, and combinations of events that did not occur",
    ]


def saved_lines(saved: Mapping[str, tuple[int, int]]) -> list[str]:
    """Return one line per size that a lower precision reduced."""
    prefixes = {"file": "file:    ", "bytes_per_stream": "stream:  "}
    return [
        f"{prefixes[name]}{format_bytes(before)} at full precision, {format_bytes(after)} now"
        for name, (before, after) in saved.items()
    ]


def format_bytes(count: int) -> str:
    """Return a number of bytes as text, with a unit."""
    size, unit = float(count), "bytes"
    for bigger in ("KiB", "MiB", "GiB"):
        if size < 1024:
            break
        size, unit = size / 1024, bigger
    return f"{count:,} bytes" if unit == "bytes" else f"{size:,.1f} {unit}"


def show(*parts: Table | str) -> None:
    """Print tables and lines; names from a model file are not interpreted as markup."""
    console = Console(highlight=False, markup=False)
    for part in parts:
        # Lines are not wrapped, so that a command in a line can be copied.
        console.print(part, soft_wrap=isinstance(part, str))


def print_json(document: object) -> None:
    """Print a document as JSON, indented."""
    typer.echo(json.dumps(document, indent=2))


def progress_bar(*columns: ProgressColumn) -> Progress:
    """Return a progress bar with a description and these columns; it is drawn if standard error is a terminal."""
    console = Console(stderr=True)
    shown = TextColumn("{task.description}"), BarColumn(), *columns
    return Progress(*shown, console=console, transient=True, disable=not console.is_terminal)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title or None, title_justify="left", title_style="bold", box=SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _row(shape: Iterable[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _axis(axis: int | None) -> str:
    return "none" if axis is None else str(axis)


def _notes(spec: Any) -> str:
    """Return what else is known of an input or output: its unit, its labels, missing values, its shape in the graph."""
    labels, unit = getattr(spec, "labels", None) or [], getattr(spec, "unit", None)
    missing = "may be missing" if getattr(spec, "missing", "refuse") == "nan" else ""
    if isinstance(unit, list):  # one for each number
        labels = [f"{label} in {one}" for label, one in zip(labels or range(len(unit)), unit, strict=True)]
        unit = None
    notes = [f"in {unit}" if unit else "", ", ".join(map(str, labels)), missing, _in_graph(spec)]
    return "; ".join(filter(None, notes))


def _in_graph(spec: Any) -> str:
    return "" if spec.graph_shape is None else f"{_row(spec.graph_shape)} in the graph"
