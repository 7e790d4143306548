"""Breaks one expression of one module while it is imported, to see whether the proof catches what that does.

The mutants are not listed: every operand, constant, condition and comparison of a rule or a pass can be changed, so
that they follow the code when it is rewritten.
"""

from __future__ import annotations

import ast
import builtins
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final

_REACHED: Final = "_campaign_reached"
_SWAPPED: Final = (ast.Sub, ast.Div, ast.FloorDiv, ast.MatMult)
_OTHER: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_LARGEST_CONSTANT: Final = 64


@dataclass(frozen=True, slots=True)
class Break:
    """One changed expression.

    Attributes:
        module: Its module.
        index: Which of the module's expressions that can be changed.
    """

    module: str
    index: int


class _Breaker(ast.NodeTransformer):
    """Changes the expression of one index; counts them all."""

    def __init__(self, index: int) -> None:
        self.index, self.count, self.what = index, 0, ""

    def visit_Raise(self, node: ast.Raise) -> ast.Raise:
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.JoinedStr:
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        if node.value is not None:
            node.value = self.visit(node.value)
        return node

    def visit_arguments(self, node: ast.arguments) -> ast.arguments:
        node.defaults = [self.visit(value) for value in node.defaults]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.args = self.visit(node.args)
        node.body = [self.visit(line) for line in node.body]
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.op, _SWAPPED):
            return self._changed(node, ast.BinOp(node.right, node.op, node.left), "swapped operands")
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if type(node.value) is int and abs(node.value) <= _LARGEST_CONSTANT:
            return self._changed(node, ast.Constant(node.value + 1), f"{node.value + 1} for {node.value}")
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        other = ast.Compare(node.left, [_OTHER[type(node.ops[0])](), *node.ops[1:]], node.comparators)
        return self._changed(node, other, "another comparison")

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        self.generic_visit(node)
        return self._changed(node, node.values[0], "a dropped condition")

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        if isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            return node
        self.generic_visit(node)
        return self._changed(node, node.operand, "a dropped sign or not") if isinstance(node.op, ast.Not) else node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        is_operator = len(node.args) > 2 and isinstance(node.args[0], ast.Constant) and node.args[0].value != ""
        if is_operator and not any(isinstance(value, ast.Starred) for value in node.args[:3]):
            args = [node.args[0], node.args[2], node.args[1], *node.args[3:]]
            return self._changed(node, ast.Call(node.func, args, node.keywords), "swapped arguments")
        return node

    def _changed(self, node: ast.expr, broken: ast.expr, what: str) -> ast.expr:
        self.count += 1
        if self.count - 1 != self.index:
            return node
        self.what = f"line {node.lineno}: {what}"
        reached = ast.Call(ast.Name(_REACHED, ast.Load()), [], [])
        both = ast.Subscript(ast.Tuple([reached, broken], ast.Load()), ast.Constant(1), ast.Load())
        return ast.copy_location(both, node)


def modules(packages: Sequence[str]) -> list[str]:
    """Return the modules of packages, by name, those of packages in them included."""
    return sorted(
        ".".join([package, *path.relative_to(_folder(package)).with_suffix("").parts])
        for package in packages
        for path in _folder(package).rglob("*.py")
        if path.name != "__init__.py"
    )


def count_breaks(module: str) -> int:
    """Return how many expressions of a module can be changed."""
    breaker = _Breaker(-1)
    breaker.visit(ast.parse(_source(module)))
    return breaker.count


def install(broken: Break) -> str:
    """Break a module that is imported later; return what is changed."""
    breaker = _Breaker(broken.index)
    tree = ast.fix_missing_locations(breaker.visit(ast.parse(_source(broken.module))))
    setattr(builtins, _REACHED, lambda: _reached.append(True))
    sys.meta_path.insert(0, _Finder(broken.module, compile(tree, str(_origin(broken.module)), "exec")))
    return f"{broken.module}, {breaker.what}"


_reached: list[bool] = []


def was_reached() -> bool:
    """Return whether the changed expression was evaluated since this was last called."""
    found = bool(_reached)
    _reached.clear()
    return found


def _folder(package: str) -> Path:
    """Return a package's folder; nothing but the top of the packages is looked for, as that would import the rest."""
    top, *inner = package.split(".")
    spec = importlib.util.find_spec(top)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent.joinpath(*inner)


def _origin(module: str) -> Path:
    return _folder(module).with_suffix(".py")


def _source(module: str) -> str:
    return _origin(module).read_text()


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, code: CodeType) -> None:
        super().__init__(name, path)
        self._code = code

    def get_code(self, fullname: str) -> CodeType:
        return self._code


class _Finder(MetaPathFinder):
    def __init__(self, module: str, code: CodeType) -> None:
        self._module, self._code = module, code

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._module:
            return None
        spec: Any = importlib.machinery.PathFinder.find_spec(fullname, path)
        spec.loader = _Loader(fullname, spec.origin, self._code)
        return spec  # type: ignore[no-any-return]  # a ModuleSpec, whose loader is not declared to be settable
