"""Lays the wheel out as one package: `service/` and `model_export/` are moved below `stepwell/` (ADR 0035).

In a clone they are packages of their own, which names them in the layout that its readers see. In other people's
environments, packages of such common names would be in the way of theirs. So the copies that go into the wheel import
each other as `stepwell.service` and `stepwell.model_export`; nothing else in them is changed.
"""

from __future__ import annotations

import ast
import re
import shutil
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "stepwell"
MOVED = ("service", "model_export")
_NAMES = "|".join(MOVED)
_FROM = re.compile(rf"from\s+(?=(?:{_NAMES})\b)")
_MODULE = re.compile(rf"(?:{_NAMES})(?:\.[a-z_][a-z0-9_]*)+")  # as text: "stepwell.commands.demo"


class OnePackage(BuildHookInterface):  # type: ignore[type-arg]
    """Makes the wheel's files, all but `stepwell/py.typed`. An editable install gets a path to the clone, and none."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the package to a temporary folder, and have the wheel include it."""
        if version == "editable":
            return
        self._folder = tempfile.TemporaryDirectory(prefix="stepwell-wheel-")
        lay_out(Path(self.root), Path(self._folder.name))
        build_data["force_include"][self._folder.name] = PACKAGE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Delete the temporary folder."""
        if version != "editable":
            self._folder.cleanup()


def lay_out(root: Path, target: Path) -> None:
    """Write the package that a wheel has to a folder.

    Raises:
        ValueError: A module names one of the packages in a way that is not understood here.
    """
    for name in MOVED:
        shutil.copytree(root / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))
    shutil.copy(root / f"{PACKAGE}.py", target / "__init__.py")
    shutil.copy(root / "service" / "__main__.py", target / "__main__.py")  # python -m stepwell
    for path in sorted(target.rglob("*.py")):
        path.write_bytes(moved(path.read_bytes(), str(path.relative_to(target))))


def moved(source: bytes, name: str) -> bytes:
    """Return a module's source with the packages' new names.

    Raises:
        ValueError: As for `lay_out`.
    """
    lines = source.splitlines(keepends=True)
    for line, column, old, new in sorted(_changes(ast.parse(source), source, name), reverse=True):
        text = lines[line - 1]
        assert text[column:].startswith(old), (name, line)
        lines[line - 1] = text[:column] + new + text[column + len(old) :]
    return b"".join(lines)


def _changes(module: ast.Module, source: bytes, name: str) -> Iterator[tuple[int, int, bytes, bytes]]:
    """Yield what is replaced by what: line, column in bytes, old and new text."""
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and not node.level and _is_moved(node.module or ""):
            found = _FROM.match(ast.get_source_segment(source.decode(), node) or "")
            if found is None:
                raise _unclear(name, node)
            yield node.lineno, node.col_offset, found[0].encode(), f"{found[0]}{PACKAGE}.".encode()
        elif isinstance(node, ast.Import) and any(_is_moved(alias.name) for alias in node.names):
            [alias, *others] = node.names
            if others or alias.name not in MOVED:
                raise _unclear(name, node)
            yield node.lineno, node.col_offset, b"import ", f"from {PACKAGE} import ".encode()
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _MODULE.fullmatch(node.value):
            yield node.lineno, node.col_offset + 1, node.value.encode(), f"{PACKAGE}.{node.value}".encode()
        elif _begins_with_module(node) or _runs_package(node):
            raise _unclear(name, node)


def _is_moved(module: str) -> bool:
    return module.partition(".")[0] in MOVED


def _begins_with_module(node: ast.AST) -> TypeGuard[ast.JoinedStr]:
    """Whether it is a formatted text such as `f"service.{name}"`."""
    first = node.values[0] if isinstance(node, ast.JoinedStr) and node.values else None
    return isinstance(first, ast.Constant) and re.match(rf"(?:{_NAMES})\.", str(first.value)) is not None


def _runs_package(node: ast.AST) -> TypeGuard[ast.List | ast.Tuple]:
    """Whether it is a command that runs one of the packages: `-m service`."""
    items = node.elts if isinstance(node, ast.List | ast.Tuple) else []
    words = [item.value if isinstance(item, ast.Constant) else None for item in items]
    return any(word == "-m" and following in MOVED for word, following in pairwise(words))


def _unclear(name: str, node: ast.stmt | ast.expr) -> ValueError:
    return ValueError(
        f"{name}, line {node.lineno}: this cannot be moved into the package {PACKAGE}. Import with `from {MOVED[0]}.x "
        "import y`, name a module by one plain string, and run a program with `-m stepwell`."
    )
