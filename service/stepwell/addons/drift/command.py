"""`stepwell drift`: how the inputs and outputs of a model's live streams are distributed beside its reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from stepwell.commands.service_calls import DEFAULT_URL, HttpApi, Key, Url, model_path
from stepwell.commands.tables import Json, print_json, table

_COLUMNS: Final = ("", "feature", "values 1h", "missing", "min", "median", "max")
_OF_REFERENCE: Final = ("", "feature", "PSI 1h", "PSI 24h", "values 1h", "missing", "outside", "min", "median", "max")
_LEAST_NEEDED: Final = ("min", "max", "values 1h", "missing", "median")
"""Columns that are left out where the terminal is too narrow, the first one first."""

_WIDEST: Final = 10_000
_NO_REFERENCE: Final = (
    "The model has no reference, so there is no PSI. Export it with own data: stepwell export .. --verify FILE.npz."
)


def drift(
    *,
    model: Annotated[str, typer.Option(help="The model's name.")],
    version: Annotated[
        int | None, typer.Option(min=1, metavar="V", help="A version; by default the one of new streams.")
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Show each number of the inputs and outputs over the last hour, the ones that drifted most first."""
    with HttpApi(url, key, {"version_not_found": "List the versions with `stepwell release show`."}) as service:
        query = {} if version is None else {"version": version}
        found = service.get(model_path(model, "drift"), **query)
    if as_json:
        print_json(found)
        return
    console = Console(highlight=False, markup=False)
    title, rows = f"{model}, sampled timesteps of all replicas", list(_rows(found["windows"]))
    columns, left_out = list(_OF_REFERENCE if found["reference"] else _COLUMNS), list[str]()
    for least_needed in _LEAST_NEEDED:
        if _width(console, title, columns, rows) <= console.width:
            break
        columns.remove(least_needed)
        left_out.append(least_needed)
    console.print(_table(title, columns, rows))
    if left_out:
        console.print(f"Without {', '.join(left_out)}: they need more than {console.width} characters. --json has all.")
    if not found["reference"]:
        console.print(_NO_REFERENCE)


def _table(title: str, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> Table:
    return table(title, columns, (tuple(row[name] for name in columns) for row in rows))


def _width(console: Console, title: str, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> int:
    """Return the characters of a line in which no cell has to be divided."""
    options = console.options.update(max_width=_WIDEST)
    return console.measure(_table(title, columns, rows), options=options).maximum


def _rows(windows: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Yield a row for each number, by column: those that drifted most first."""
    hour, day = windows["1h"], windows["24h"]
    features = [(side, name) for side in ("inputs", "outputs") for name in hour[side]]
    for side, name in sorted(features, key=lambda each: -(hour[each[0]][each[1]]["psi"] or 0.0)):
        found = hour[side][name]
        yield {
            "": side.removesuffix("s"),
            "feature": name,
            "PSI 1h": _number(found["psi"]),
            "PSI 24h": _number(day[side][name]["psi"]),
            "values 1h": f"{found['count']:,}",
            "missing": _percent(found["missing"]),
            "outside": _percent(found["outside"]),
            "min": _number(found["min"]),
            "median": _number(found["quantiles"].get("0.5")),
            "max": _number(found["max"]),
        }


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
