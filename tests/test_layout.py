"""A class name stands for one class."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

import stepwell

REPOSITORY = Path(__file__).parents[1]
MODULES = sorted(
    path
    for package in ("service", "model_export", "clients/python")
    for path in (REPOSITORY / package).rglob("*.py")
    if not path.name.endswith(("_pb2.py", "_pb2_grpc.py"))
)


@pytest.mark.parametrize("package", ["service", "model_export"])
def test_no_two_classes_of_a_package_have_the_same_name(package: str) -> None:
    assert [name for name, n in _classes(REPOSITORY / package).items() if n > 1] == []


def test_a_class_that_stepwell_exports_has_its_name_alone() -> None:
    names = _classes(REPOSITORY)

    assert [name for name in stepwell.__all__ if names[name] > 1] == []


def _classes(folder: Path) -> Counter[str]:
    return Counter(
        node.name
        for path in MODULES
        if path.is_relative_to(folder)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
