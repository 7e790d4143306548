"""`model_card`: the page of a model's repository: what it takes and returns, and what its verification compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

_FIELDS: Final = """---
library_name: stepwell
pipeline_tag: time-series-forecasting
tags: [onnx, recurrent, streaming, stepwell]
---
"""
_ABOUT: Final = """A recurrent model as an ONNX graph of one timestep, with its states as inputs and outputs. Served by
Stepwell, it gives a prediction for each new timestep of thousands of live streams.
"""


def model_card(described: Mapping[str, Any], repository: str, file: str) -> str:
    """Return the page in Markdown, with the fields that the Hub reads in front.

    Args:
        described: The model, as `stepwell_export.runtime.describe` returns it.
        repository: The repository's id.
        file: The model file's name in it.
    """
    name, parity = described["name"], described["parity"]
    parts = [
        _FIELDS,
        f"# {name}\n",
        _ABOUT,
        f"```sh\nstepwell pull {repository}\nstepwell serve\n```\n",
        _table(
            "Inputs, one timestep", ("name", "dtype", "shape", "unit", "numbers"), map(_tensor, described["inputs"])
        ),
        _table("Outputs", ("name", "dtype", "shape", "unit", "numbers"), map(_tensor, described["outputs"])),
        _table(
            f"States, {described['bytes_per_stream']:,} bytes for each stream",
            ("name", "dtype", "shape"),
            ((state["in"], state["dtype"], _shape(state["shape"])) for state in described["states"]),
        ),
        "## Verification\n",
        _verification(parity),
        _table(
            "File",
            ("file", "weights", "opset", "fingerprint"),
            [
                (
                    file,
                    described["weights"] or "unchanged",
                    _opset(described["graph"]["opset"]),
                    described["fingerprint"],
                )
            ],
        ),
    ]
    return "\n".join(parts)


def _verification(parity: Mapping[str, Any] | None) -> str:
    if parity is None:
        return "This graph was not compared with an original.\n"
    return (
        f"Compared with {parity['against']} over sequences of {parity['steps']:,} timesteps "
        f"({', '.join(parity['sequences'])}): the largest difference is {parity['max_abs']:.3g}; "
        f"{parity['atol']:g} + {parity['rtol']:g} of the value was allowed.\n"
    )


def _tensor(spec: Mapping[str, Any]) -> tuple[str, ...]:
    labels = spec.get("labels") or []
    units = spec.get("unit") or ""
    units = units if isinstance(units, str) else ", ".join(units)
    return spec["name"], spec["dtype"], _shape(spec["shape"]), units, ", ".join(labels)


def _shape(shape: Sequence[int]) -> str:
    return "one number" if not shape else " x ".join(map(str, shape))


def _opset(opset: Mapping[str, int]) -> str:
    return ", ".join(f"{domain} {version}".strip() for domain, version in opset.items())


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table without the columns in which no row has anything."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    used = [n for n in range(len(columns)) if any(row[n] for row in cells)]
    lines = [[columns[n] for n in used], ["---"] * len(used), *([row[n] for n in used] for row in cells)]
    return f"**{title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
