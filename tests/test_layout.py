"""The layout that CONTRIBUTING.md describes: small folders, short modules, and one class per name."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
MAX_LINES = 350
MAX_MODULES = 15
LONGER = {
    "service/client/sync.py": "one class per noun of the API, with its docstrings",
}
MODULES = sorted(
    path
    for package in ("service", "model_export")
    for path in (REPOSITORY / package).rglob("*.py")
    if not path.name.endswith(("_pb2.py", "_pb2_grpc.py"))
)


def test_a_module_has_at_most_350_lines_or_a_reason() -> None:
    scripts = [path for path in (REPOSITORY / "service").rglob("*.js") if path.parent.name != "vendor"]
    lines = {str(path.relative_to(REPOSITORY)): len(path.read_text().splitlines()) for path in (*MODULES, *scripts)}

    assert {name: n for name, n in lines.items() if n > MAX_LINES and name not in LONGER} == {}


@pytest.mark.parametrize("name", LONGER)
def test_a_longer_module_is_still_longer(name: str) -> None:
    assert len((REPOSITORY / name).read_text().splitlines()) > MAX_LINES


def test_a_folder_has_at_most_15_modules() -> None:
    modules = Counter(path.parent for path in MODULES if path.name != "__init__.py")

    assert {folder: n for folder, n in modules.items() if n > MAX_MODULES} == {}


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
