"""A class name stands for one class."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
MODULES = sorted(
    path
    for package in ("service", "model_export")
    for path in (REPOSITORY / package).rglob("*.py")
    if not path.name.endswith(("_pb2.py", "_pb2_grpc.py"))
)


@pytest.mark.parametrize("package", ["service", "model_export"])
def test_no_two_classes_of_a_package_have_the_same_name(package: str) -> None:
    names = Counter(
        node.name
        for path in MODULES
        if path.is_relative_to(REPOSITORY / package)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )

    assert [name for name, n in names.items() if n > 1] == []
