"""The page "which models work", made from what the tests step and refuse, so that it cannot drift.

`python -m tests.model_export.models_page` writes it anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from stepwell_export.export_sources import choose_keras_backend

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def keras_section() -> str:
    """Return the tables of Keras."""
    from tests.model_export.keras import test_attention, test_preprocessing, test_refused, zoo

    works = [(model.shows, model.how, f"{model.tolerance:.0e}") for model in zoo.ZOO.values()]
    refused = [(cls, why) for _, cls, why in test_refused.REFUSED.values()]
    refused += [(f"keras.ops: {cls}", why) for _, cls, why in test_refused.REFUSED_OPERATIONS.values()]
    refused += [("attention", why) for _, why in test_attention.REFUSED.values()]
    refused += [(cls, why) for _, cls, why in test_preprocessing.REFUSED.values()]
    return _section(works, refused, ("layer", "the message"))


def torch_section() -> str:
    """Return the tables of PyTorch."""
    from tests.model_export.torch import test_refused, zoo

    works = [(module.shows, module.how, "1e-05") for module in zoo.ZOO.values()]
    refused = [
        (name.replace("_", " "), why)
        for group in (test_refused.WHOLE, test_refused.BY_ITS_GRAPH, test_refused.STATES)
        for name, (_, why) in group.items()
    ]
    return _section(works, refused, ("module", "the message"))


def onnx_section() -> str:
    """Return the tables of sequence graphs in ONNX."""
    from tests.model_export.streaming import test_node_cases, zoo, zoo_refused

    works = [(entry.shows, entry.how, "1e-05") for entry in zoo.ZOO.values()]
    refused = [(name.replace("_", " "), entry.told) for name, entry in zoo_refused.REFUSED.items()]
    cases = test_node_cases.CASES
    counts = Counter(cases[name].model.graph.node[0].op_type for name in test_node_cases.STEPPED)
    told = ", ".join(f"{operator} {count}" for operator, count in sorted(counts.items()))
    left = "; ".join(f"`{name}`: {why}" for name, why in sorted(test_node_cases.REFUSED.items()))
    note = f"The ONNX project's own backend cases that are stepped and equal: {told}. Refused: {left}."
    return _section(works, refused, ("graph", "the message")) + f"\n\n{note}"


SECTIONS: dict[str, Callable[[], str]] = {"keras": keras_section, "torch": torch_section, "onnx": onnx_section}


def part_of(text: str, name: str) -> str:
    """Return what the page has between the marks of a section."""
    return text.split(f"<!-- {name} -->\n", 1)[1].split(f"\n<!-- /{name} -->", 1)[0]


def write() -> None:
    """Put every section into the page."""
    text = PAGE.read_text()
    for name, section in SECTIONS.items():
        text = text.replace(
            f"<!-- {name} -->\n{part_of(text, name)}\n<!-- /{name} -->",
            f"<!-- {name} -->\n{section()}\n<!-- /{name} -->",
        )
    PAGE.write_text(text)


def _section(works: Sequence[Sequence[str]], refused: Iterable[Sequence[str]], heads: Sequence[str]) -> str:
    return (
        f"{_table(('what', 'how it is stepped', 'equal within'), works)}\n\n"
        f"Refused, and why:\n\n{_table(heads, sorted(set(map(tuple, refused)), key=lambda row: (row[0].lower(), row)))}"
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|').strip() for cell in line)} |" for line in lines)


if __name__ == "__main__":
    choose_keras_backend()
    write()
