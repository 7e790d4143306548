"""`contents_of`: what a model file runs, opens and computes in, read from its bytes; nothing is loaded.

A model file is a program that onnxruntime runs. Its bytes are walked here as far as these questions need it.

Source: onnx.proto, the field numbers below.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from stepwell_export.runtime.errors import ModelLoadError
from stepwell_export.runtime.protobuf import VARINT, BrokenError, fields, opened, varint

DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Domains whose operators are onnxruntime's own and stay within the process."""

REFUSED: Final = frozenset({"EPContext", "PythonOp", "PythonOpGrad", "ATen", "Snpe"})
"""Operators of `com.microsoft` that open files, run other programs' code, or hand over to a compiled blob."""

_DEEPEST: Final = 64  # messages within messages; a graph in a branch in a loop adds three
_MOST: Final = 5_000_000  # parts; a graph of 100,000 nodes has two million

# What is looked into: message -> field -> the message in it. Whatever is not here is passed over unread.
_WITHIN: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 11: "value", 15: "sparse"},
    "value": {2: "type"},
    "type": {1: "tensor_type"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
# What is read: message -> (field of the name, field of the domain), or of an entry key and value.
_TEXTS: Final[dict[str, tuple[int, int]]] = {"node": (4, 7), "function": (1, 10), "entry": (1, 2), "attribute": (1, 0)}
# Which field has an element type: of tensors, of inputs, and of an attribute `to`, as Cast has it.
_TYPES: Final[dict[str, int]] = {"tensor": 2, "tensor_type": 1, "attribute": 3}
_FLOAT16: Final = 10


@dataclass(frozen=True, slots=True)
class Contents:
    """What a model file would run and open.

    Attributes:
        operators: Domain and type of every node, wherever it stands.
        functions: Domain and name of the functions that the file itself defines.
        weights: Where the tensors lie that are kept outside the file, as the file names it.
        element_types: ONNX element types of weights, inputs and casts.
    """

    operators: frozenset[tuple[str, str]]
    functions: frozenset[tuple[str, str]]
    weights: frozenset[str]
    element_types: frozenset[int]

    @property
    def has_float16(self) -> bool:
        """Whether some tensors are float16."""
        return _FLOAT16 in self.element_types


def contents_of(source: Path | bytes) -> Contents:
    """Read a model file."""
    with opened(source) as data:
        return _walk(data)


def check_operators(source: Path | bytes) -> Contents:
    """Check that a model file runs known operators only and opens no file but weights of its own; return what it has.

    Raises:
        ModelLoadError: It does not; the message names the operator or file.
    """
    name = source.name if isinstance(source, Path) else "The model"
    contents = contents_of(source)
    for domain, operator in sorted(contents.operators - contents.functions):
        if domain not in DOMAINS or (domain == "com.microsoft" and operator in REFUSED):
            raise ModelLoadError(
                f"{name} has the operator {operator[:80]!r} of the domain {domain[:80]!r}, which is not run here; "
                f"expected operators of {', '.join(sorted(DOMAINS - {''}))}.",
                fix="Export the model without custom operators and without contexts compiled for a device.",
            )
    if isinstance(source, Path):
        for location in sorted(contents.weights):
            _demand_own_file(source, location)
    return contents


def weight_files(source: Path, contents: Contents) -> list[Path]:
    """Return the files of the weights that a model file keeps outside itself, sorted."""
    return sorted({source.parent / location for location in contents.weights})


# ------------------------------------------------------------------- the files of weights


def _demand_own_file(source: Path, location: str) -> None:
    """Check that a location is a plain file below the model's folder that nothing else is a name of.

    onnxruntime refuses what leads out of the folder by its path; a hard link leads out without one.

    Raises:
        ModelLoadError: It is not.
    """
    parts = PurePosixPath(location).parts
    found = ""
    if not parts or "\\" in location or "\0" in location or ".." in parts or PurePosixPath(location).is_absolute():
        found = "leads out of the model's folder"
    else:
        path = source.parent
        for part in parts:
            path = path / part
            try:
                status = path.lstat()
            except OSError as exc:
                found = f"cannot be read: {exc.strerror}"
                break
            if stat.S_ISLNK(status.st_mode):
                found = "is a symbolic link"
                break
        else:
            if not stat.S_ISREG(status.st_mode):
                found = "is no plain file"
            elif status.st_nlink > 1:
                found = f"has {status.st_nlink} names (hard links)"
    if found:
        raise ModelLoadError(
            f"{source.name} keeps weights in {location[:200]!a}, which {found}; expected a plain file of its own, in "
            "the model's folder.",
            fix="Put a copy of the weights beside the model, or export it again.",
        )


def _walk(data: memoryview) -> Contents:
    operators: set[tuple[str, str]] = set()
    functions: set[tuple[str, str]] = set()
    weights: set[str] = set()
    element_types: set[int] = set()
    to_do = [("model", 0, len(data), 0)]
    seen = 0
    while to_do:
        kind, start, end, depth = to_do.pop()
        if seen > _MOST:
            raise BrokenError(f"it has more than {_MOST} parts")
        if depth > _DEEPEST:
            raise BrokenError(f"it is nested deeper than {_DEEPEST}")
        within, texts = _WITHIN.get(kind, {}), _TEXTS.get(kind, (0, 0))
        first = second = ""
        for field, at, to in fields(data, start, end):  # onnxruntime, too, passes over those encoded in another way
            seen += 1
            if (inner := within.get(field)) is not None:
                to_do.append((inner, at, to, depth + 1))
            elif field == texts[0]:
                first = str(data[at:to], "utf-8", "replace")
            elif field == texts[1]:
                second = str(data[at:to], "utf-8", "replace")
        if kind == "node":
            operators.add((second, first))
        elif kind == "function":
            functions.add((second, first))
        elif kind == "entry" and first == "location":
            weights.add(second)
        elif kind in _TYPES and (kind != "attribute" or first == "to"):
            found = fields(data, start, end, kinds=(VARINT,))
            element_types.update(varint(data, at, to)[0] for field, at, to in found if field == _TYPES[kind])
    return Contents(frozenset(operators), frozenset(functions), frozenset(weights), frozenset(element_types))
