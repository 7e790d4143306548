"""A class name stands for one class."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import stepwell

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("service", "model_export", "clients/python")


def test_no_two_classes_of_a_package_have_the_same_name_and_one_that_stepwell_exports_has_its_name_alone() -> None:
    of_packages = {package: Counter(_classes(REPOSITORY / package)) for package in PACKAGES}
    everywhere = sum(of_packages.values(), Counter())

    for package in ("service", "model_export"):
        assert [name for name, n in of_packages[package].items() if n > 1] == [], package
    assert [name for name in stepwell.__all__ if everywhere[name] > 1] == []


def _classes(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*.py"):
        if not path.name.endswith(("_pb2.py", "_pb2_grpc.py")):
            nodes = ast.walk(ast.parse(path.read_text()))
            yield from (node.name for node in nodes if isinstance(node, ast.ClassDef) and node.name[0] != "_")
