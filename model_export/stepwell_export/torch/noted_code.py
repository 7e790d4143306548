"""`NotedCode`: runs the functions of a module with the operands of each operation on Python's numbers noted.

The code of a function is compiled again from its source, with each operand in a call that notes it: `t * t` becomes
`note(7, 0, t) * note(7, 1, t)`. Only for as long as the block lasts, the functions have that code.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import linecache
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import isgenerator
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from stepwell_export.torch.axis_inference import Sequences
from stepwell_export.torch.capture import FILLS, MOVES, CapturedTensor
from stepwell_export.torch.checks import user_frame

_NOTE = "__stepwell_note__"
"""The name by which noted code calls back, in the globals of its functions."""

_PATHS = sysconfig.get_paths()
_STANDARD = (_PATHS["stdlib"], _PATHS["platstdlib"])
_INSTALLED = (_PATHS["purelib"], _PATHS["platlib"])
_OF_TORCH = ("/numpy/", "/opt_einsum/")
"""Libraries that torch computes with."""

_HOLDING = {"append", "appendleft", "copy", "extend", "insert", "pop", "popleft", "size"}
"""Methods of Python's own containers that hold a number as it is."""

_MAKES_DATA = {"as_tensor", "asarray", "fill_", "full", "full_like", "masked_fill", "new_full", "new_tensor", "tensor"}
"""Functions of torch that make a tensor of numbers."""

_MOVES = MOVES | FILLS | {"arange", "dim", "new", "size", "narrow", "pad"}
"""Functions of torch to which a number is a size, or a place."""

_REACHED = 500_000
"""The most objects among which the functions of a module are looked for."""

_OF_FRAMES = {"dir", "eval", "exec", "globals", "locals", "super", "vars"}
"""Functions that look at the frame that calls them."""

_OF_MODULES = {"__builtins__", "__cached__", "__file__", "__loader__", "__spec__"}
"""Names that each module has."""

IN_AXES = 10
"""The first place of an operand that is an index of one of several axes, as only tensors have them."""

TAKEN = "taken"
"""How often something was taken of an iterator, as an operand."""

Values = dict[int, set[float]]
"""By a number of timesteps: the numbers that an operand was."""


@dataclass(slots=True)
class Site:
    """An operation in the code of a module.

    Attributes:
        kind: The class of its syntax: `BinOp`, `Call`, ..
        what: The operator, or operators.
        place: File, line and text, for a message.
        operands: What its operands were, by their place in it.
        differences: What the first of two operands next to each other was more than the second.
        called: What it called.
        sizes: How long the container was that it took something of.
        tensors: Whether there were tensors among its operands, and whether one of them followed from an input.
        tables: How many numbers a tensor has that follows from no input, and of which something is taken.
    """

    kind: str
    what: tuple[str, ...]
    place: str
    operands: dict[Any, Values] = field(default_factory=dict)
    differences: dict[Any, Values] = field(default_factory=dict)
    called: set[Any] = field(default_factory=set)
    sizes: Values = field(default_factory=dict)
    tensors: set[bool] = field(default_factory=set)
    tables: Values = field(default_factory=dict)
    last: Any = None

    @property
    def makes_data(self) -> bool:
        """Whether numbers become a tensor that follows from no input, which exporters compute while they trace."""
        if self.kind == "Call":
            names = {one.__name__ for one in self.called if is_of_torch(one)}
            return bool(names & _MAKES_DATA) or (self.tensors == {False} and not names <= _MOVES)
        return self.kind == "BinOp" and self.tensors == {False}

    @property
    def takes(self) -> bool:
        """Whether numbers are places in a tensor that follows from no input."""
        names = {one.__name__ for one in self.called if is_of_torch(one)}
        return bool(self.tables) and (self.kind == "Subscript" or not names.isdisjoint(MOVES | {"narrow"}))


class NotedCode:
    """Lets functions note the operands of their operations.

    Attributes:
        sites: The operations.
        steps: The number of timesteps of the run.
        captures: Whether what follows from an input is seen in the run.
        runs: The numbers of timesteps of all runs.
        unread: A function whose source cannot be read; None: there is none.
    """

    def __init__(self, whole: Sequences) -> None:
        """Find the functions of a module, by running it, and compile them."""
        codes = _codes(whole)
        self.sites: list[Site] = []
        self.steps = 0
        self.captures = False
        self.runs: list[int] = []
        self.unread: str | None = None
        self._repeats = False
        self._made: set[CodeType] = set()
        self._files: dict[str, dict[Any, list[tuple[CodeType, CodeType]]]] = {}
        self._codes = {code: made for code, home in codes.items() if (made := self._of(code, home)) is not None}
        self._functions = _functions(_named_by([{"": whole.module}, *codes.values()]), self._codes)
        for code in self._codes.keys() - {one.__code__ for one in self._functions}:
            self._cannot_read(code)

    @contextlib.contextmanager
    def now(self, *, repeats: bool = False) -> Iterator[None]:
        """While the functions run; `repeats`: operands that were the same number in all runs are that one."""
        self._repeats = repeats
        before = [(one, one.__code__) for one in self._functions]
        homes = {id(one.__globals__): one.__globals__ for one in self._functions}.values()
        try:
            for one in self._functions:
                one.__code__ = self._codes[one.__code__]
            for home in homes:
                home[_NOTE] = self.note
            yield
        finally:
            for one, code in before:
                one.__code__ = code
            for home in homes:
                home.pop(_NOTE, None)

    def note(self, at: int, place: Any, value: Any) -> Any:
        """Note an operand, and return it."""
        site = self.sites[at]
        if self._repeats:
            return self._same(site, place, value) if site.kind == "Call" else value
        if place == "called":
            site.called.add(_plain_function(value))
            owner = getattr(value, "__self__", None)
            if _is_number(owner):  # `t.bit_length()`
                self._note(site, "self", owner)
            if isinstance(owner, Tensor):
                site.tensors.add(self._is_known(site, owner))
            return value
        if site.kind in {"Subscript", "Compare"} and not isinstance(value, Tensor) and hasattr(value, "__len__"):
            site.sizes.setdefault(self.steps, set()).add(len(value))
        if next in site.called and type(value).__module__ in {"builtins", "itertools"} and not isgenerator(value):
            taken = site.operands.setdefault(TAKEN, {}).setdefault(self.steps, set())
            taken.add(len(taken))
        elif zip in site.called and hasattr(value, "__len__"):
            site.operands.setdefault(f"size {place}", {}).setdefault(self.steps, set()).add(len(value))
        elif place != "container":
            self._note(site, place, value)
            if isinstance(value, Tensor):
                site.tensors.add(self._is_known(site, value))
            both = site.last, value
            if place and site.kind in {"Compare", "Call"} and all(map(_is_number, both)):
                values = site.differences.setdefault(place, {})
                values.setdefault(self.steps, set()).add(both[0] - both[1])
            site.last = value
        elif isinstance(value, Tensor):
            self._is_known(site, value)
        return value

    def _is_known(self, site: Site, value: Tensor) -> bool:
        """Whether a tensor follows from an input; one that does not is a table."""
        if isinstance(value, CapturedTensor) and value.capture.depends(value):
            return True
        if self.captures:
            site.tables.setdefault(self.steps, set()).add(value.numel())
        return False

    def _note(self, site: Site, place: Any, value: Any, *, depth: int = 2) -> None:
        if _is_number(value):
            site.operands.setdefault(place, {}).setdefault(self.steps, set()).add(value)
        elif depth and isinstance(value, tuple | list) and len(value) < 100:
            for at, part in enumerate(value):
                self._note(site, (place, at), part, depth=depth - 1)

    def _same(self, site: Site, place: Any, value: Any) -> Any:
        """Return an operand with each number that was the same in all runs in its place."""
        if type(value) in {tuple, list}:
            return type(value)(self._same(site, (place, at), part) for at, part in enumerate(value))
        values = set[float]().union(*site.operands.get(place, {}).values())
        is_size = isinstance(value, Tensor) and not value.dim() and not value.is_floating_point()  # in a trace
        return values.pop() if len(values) == 1 and is_size else value

    def is_followed(self, called: Any) -> bool:
        """Whether a function is noted itself, is torch's, or makes an object."""
        code = getattr(called, "__code__", None)
        if code in self._codes or code in self._made:
            return True
        if isinstance(called, type):
            home = getattr(sys.modules.get(called.__module__), "__file__", None) or _STANDARD[0]
            return not _is_standard(home) and "/numpy/" not in home
        if is_of_torch(called):
            return True
        return (
            isinstance(getattr(called, "__self__", None), list | tuple | dict)
            and getattr(called, "__name__", "") in _HOLDING
        )

    def _of(self, code: CodeType, home: Mapping[str, Any]) -> CodeType | None:
        """Return a function's code as noted; None: it cannot be read."""
        file = code.co_filename
        if file not in self._files:
            self._files[file] = self._compiled(file, home)
        found = self._files[file].get(_key(code), [])
        if len(found) > 1:  # lambdas of one line
            found = [(plain, made) for plain, made in found if plain == code]
        if len(found) != 1 or found[0][1].co_freevars != code.co_freevars:
            self._cannot_read(code)
            return None
        return found[0][1]

    def _cannot_read(self, code: CodeType) -> None:
        self.unread = (
            self.unread or f"{Path(code.co_filename).name}, line {code.co_firstlineno}, as its source cannot be read"
        )

    def _compiled(self, file: str, home: Mapping[str, Any]) -> dict[Any, list[tuple[CodeType, CodeType]]]:
        """Return the code of each function of a file, as it is and as noted."""
        lines = linecache.getlines(file, dict(home))
        found: dict[Any, list[tuple[CodeType, CodeType]]] = defaultdict(list)
        try:
            tree = ast.parse("".join(lines))
            plain = compile(tree, file, "exec", dont_inherit=True)
            tree = ast.fix_missing_locations(_Noting(self.sites, file, lines).visit(tree))
            noted = compile(tree, file, "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError):
            return found
        left = [(plain, noted)]
        while left:
            inner = zip(*(filter(_is_code, code.co_consts) for code in left.pop()), strict=True)
            for one, made in inner:
                found[_key(one)].append((one, made))
                self._made.add(made)
                left.append((one, made))
        return found


def _is_code(value: Any) -> bool:
    return isinstance(value, CodeType)


def _key(code: CodeType) -> tuple[Any, ...]:
    return code.co_qualname, code.co_firstlineno, code.co_argcount


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def is_of_torch(called: Any) -> bool:
    """Whether what is called is a function of torch, or a method of a tensor."""
    if isinstance(called, type) or not hasattr(called, "__name__"):
        return False
    owner = getattr(called, "__self__", None)
    home = getattr(called, "__module__", None) or getattr(owner, "__module__", None) or type(owner).__module__
    return isinstance(owner, Tensor) or str(home).partition(".")[0] == "torch"


def _plain_function(value: Any) -> Any:
    """Return the function of a bound method of Python code; anything else as it is, if it can be in a set."""
    plain = getattr(value, "__func__", value)
    if hasattr(type(plain), "forward"):
        plain = type(plain)
    try:
        hash(plain)
    except TypeError:
        return type(plain)
    return plain


def _codes(whole: Sequences) -> dict[CodeType, dict[str, Any]]:
    """Return the code of a module that runs, each function's with its globals."""
    found: dict[CodeType, dict[str, Any]] = {}

    def look(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code not in found and user_frame(frame, within=()) is frame and _is_own(code):
            found[code] = frame.f_globals

    collects = gc.isenabled()
    gc.disable()  # what is called back by a collection is no code of the module
    try:
        with profiled(look):
            for steps in whole.lengths:
                whole.run(whole.drawn(1, steps))
    finally:
        if collects:
            gc.enable()
    for part in whole.module.modules():  # of no file, which are passed by otherwise
        forward = type(part).forward
        if isinstance(forward, FunctionType) and forward.__code__.co_filename.startswith("<"):
            found[forward.__code__] = forward.__globals__
    inner = {const for code in found for const in code.co_consts if isinstance(const, CodeType)}
    return {code: home for code, home in found.items() if code not in inner}


def _named_by(homes: Iterable[Mapping[str, Any]]) -> Iterable[Any]:
    """Return what modules name, but not what Python adds: a loader may hold all of the program that imports."""
    named = (value for home in homes for name, value in home.items() if name not in _OF_MODULES)
    return {id(value): value for value in named}.values()


def _functions(roots: Iterable[Any], codes: Mapping[CodeType, Any]) -> list[FunctionType]:
    """Return the functions of some code, of all that can be reached from a module and its globals."""
    found: list[FunctionType] = []
    left, seen = list(roots), {id(root) for root in roots}
    while left and len(seen) < _REACHED:
        one = left.pop()
        parts: list[Any] = []
        if isinstance(one, FunctionType):
            if one.__code__ in codes:
                found.append(one)
            parts = [one.__closure__, one.__defaults__, one.__kwdefaults__, one.__dict__]
        elif isinstance(one, type):
            if one.__module__.partition(".")[0] not in {"torch", "builtins"}:
                parts = [*one.__mro__, *vars(one).values()]
        elif not isinstance(one, str | int | float | bytes | None | Tensor | ModuleType | CodeType | FrameType):
            parts = [type(one), *gc.get_referents(one)]
        for part in parts:
            if id(part) not in seen:
                seen.add(id(part))
                left.append(part)
    return found


def _is_own(code: CodeType) -> bool:
    file = code.co_filename
    return not _is_standard(file) and not any(part in file for part in _OF_TORCH)


def _is_standard(file: str) -> bool:
    """Whether a file belongs to Python's own library."""
    return file.startswith(_STANDARD) and not file.startswith(_INSTALLED)


@contextlib.contextmanager
def profiled(look: Callable[[FrameType, str, Any], None]) -> Iterator[None]:
    """Call `look(frame, event, argument)` for each call of Python code, and each return."""
    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield
    finally:
        if before is None or callable(before):
            sys.setprofile(before)
        else:  # cProfile before Python 3.12, which `sys.setprofile` does not take back
            sys.setprofile(None)
            before.enable()


class _Noting(ast.NodeTransformer):
    """Wraps the operands of operations on numbers: `t * t` becomes `note(7, 0, t) * note(7, 1, t)`."""

    def __init__(self, sites: list[Site], file: str, lines: Sequence[str]) -> None:
        self._sites, self._file, self._lines = sites, Path(file).name, lines

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        site = self._site(node, type(node.op).__name__)
        self.generic_visit(node)
        node.left, node.right = self._noted(site, 0, node.left), self._noted(site, 1, node.right)
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        site = self._site(node, type(node.op).__name__, kind="BinOp")
        target = ast.parse(ast.unparse(node.target), mode="eval").body
        self.generic_visit(node)
        node.value = self._noted(site, 1, node.value)
        if isinstance(node.target, ast.Subscript) and not isinstance(node.target.slice, ast.Constant):
            return node
        for part in ast.walk(target):
            ast.copy_location(part, node)
        return [ast.copy_location(ast.Expr(self._noted(site, 0, target)), node), node]

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        kinds: dict[type[ast.unaryop], str] = {ast.Not: "test", ast.Invert: "UnaryOp"}
        if kind := kinds.get(type(node.op)):
            site = self._site(node, kind=kind)
            self.generic_visit(node)
            node.operand = self._noted(site, 0, node.operand)
            return node
        return self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        site = self._site(node, *(type(op).__name__ for op in node.ops))
        self.generic_visit(node)
        node.left = self._noted(site, 0, node.left)
        node.comparators = [self._noted(site, at, one) for at, one in enumerate(node.comparators, 1)]
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        site = self._site(node, kind="test")
        self.generic_visit(node)
        node.values = [self._noted(site, at, one) for at, one in enumerate(node.values)]
        return node

    def _visit_test(self, node: Any) -> ast.AST:
        site = self._site(node.test, kind="test")
        self.generic_visit(node)
        node.test = self._noted(site, 0, node.test)
        return node  # type: ignore[no-any-return]

    visit_If = visit_While = visit_IfExp = visit_Assert = _visit_test  # noqa: N815

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        sites = [self._site(one, kind="test") for one in node.ifs]
        self.generic_visit(node)
        node.ifs = [self._noted(site, 0, one) for site, one in zip(sites, node.ifs, strict=True)]
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id in _OF_FRAMES:
            return self.generic_visit(node)
        site = self._site(node)
        self.generic_visit(node)
        node.func = self._noted(site, "called", node.func)
        for at, one in enumerate(node.args):
            if isinstance(one, ast.Starred):
                one.value = self._noted(site, at, one.value)
            else:
                node.args[at] = self._noted(site, at, one)
        for at, keyword in enumerate(node.keywords, len(node.args)):
            keyword.value = self._noted(site, at, keyword.value)
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if not isinstance(node.ctx, ast.Load):
            return self.generic_visit(node)
        site = self._site(node)
        self.generic_visit(node)
        node.value = self._noted(site, "container", node.value)
        if isinstance(node.slice, ast.Tuple) and any(
            isinstance(one, ast.Slice | ast.Starred) for one in node.slice.elts
        ):
            node.slice.elts = [self._places(site, IN_AXES + 3 * at, one) for at, one in enumerate(node.slice.elts)]
        else:
            node.slice = self._places(site, 0, node.slice)
        return node

    def _places(self, site: int, at: int, node: Any) -> Any:
        """Note the index of an axis: a place, or the ends of a slice."""
        if not isinstance(node, ast.Slice | ast.Starred):
            return self._noted(site, at, node)
        for which, end in enumerate(("lower", "upper", "step")):
            if (part := getattr(node, end, None)) is not None:
                setattr(node, end, self._noted(site, at + which, part))
        return node

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.AST:
        site = self._site(node)
        self.generic_visit(node)
        node.value = self._noted(site, 0, node.value)
        return node

    def visit_Match(self, node: ast.Match) -> ast.AST:
        site = self._site(node)
        self.generic_visit(node)
        node.subject = self._noted(site, 0, node.subject)
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return node

    def visit_arguments(self, node: ast.arguments) -> ast.AST:
        node.defaults = [self.visit(one) for one in node.defaults]
        node.kw_defaults = [None if one is None else self.visit(one) for one in node.kw_defaults]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None:
            node.value = self.visit(node.value)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.visit_arguments(node.args)
        node.body = [made for one in node.body for made in _as_list(self.visit(one))]
        return node

    def _site(self, node: Any, *what: str, kind: str = "") -> int:
        line = self._lines[node.lineno - 1].strip() if node.lineno <= len(self._lines) else ""
        place = f"{self._file}, line {node.lineno}: `{line}`"
        self._sites.append(Site(kind or type(node).__name__, what, place))
        return len(self._sites) - 1

    def _noted(self, site: int, at: int | str, value: ast.expr) -> ast.expr:
        name = ast.Name(_NOTE, ast.Load())
        call = ast.Call(name, [ast.Constant(site), ast.Constant(at), value], [])
        return ast.copy_location(call, value)


def _as_list(found: Any) -> list[Any]:
    return found if isinstance(found, list) else [found]
