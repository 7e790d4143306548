"""`parse_condition`: conditions on outputs and inputs of timesteps, such as `outputs.wear[0] > 0.8`.

The grammar is a small part of Python's expressions. The text is parsed, checked against a list of allowed nodes and
turned into functions of arrays; it is never executed.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from stepwell_client.wire.texts import counted
from stepwell_export.runtime.manifest import Array

Values = Any
"""One value a timestep, `(T,)`, or one for all of them; of a whole tensor `(T, *row)`."""

_MAX_CHARACTERS: Final = 1000
_WHOLE: Final = 2**53  # larger whole numbers are used as floats
_COMPARISONS: Final[Mapping[type[ast.AST], Callable[[Any, Any], Any]]] = {
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip
_ARITHMETIC: Final[Mapping[type[ast.AST], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
_GREATER: Final = (ast.Gt, ast.GtE)
_LESS: Final = (ast.Lt, ast.LtE)
_EXPECTED: Final = "comparisons of outputs.NAME[i], inputs.NAME[i] and numbers, joined by and, or, not"


class ConditionError(Exception):
    """A text is not a condition. Its message has what was found and what was expected."""


class Reference(NamedTuple):
    """A tensor in a condition.

    Attributes:
        group: `outputs` or `inputs`.
        name: The tensor's name.
        place: The index in one row, or a label; empty: the whole row.
        reduced: It is the argument of `min` or `max`, so the place may be a part of the row.
    """

    group: str
    name: str
    place: tuple[int | str, ...]
    reduced: bool

    def __str__(self) -> str:
        """Return it as it is written in a condition."""
        name = f".{self.name}" if self.name.isidentifier() else f'["{self.name}"]'
        return f"{self.group}{name}" + "".join(f"[{one}]" for one in self.place)


class TensorRow(NamedTuple):
    """The row of an input or output.

    Attributes:
        shape: Its shape.
        labels: The names of its numbers, in C order; empty: they have none.
    """

    shape: Sequence[int]
    labels: Sequence[str] = ()


Rows = Mapping[str, Mapping[str, TensorRow]]
"""The rows of `outputs` and `inputs` by name."""

_Tensors = Mapping[str, Mapping[str, Array]]
_Function = Callable[[_Tensors, int], Values]


@dataclass(frozen=True, slots=True)
class AlarmCondition:
    """A parsed condition.

    Attributes:
        text: Its text.
        references: The tensors that it reads.
    """

    text: str
    references: tuple[Reference, ...]
    _holds: _Function

    def evaluate(self, tensors: Mapping[str, Mapping[str, Array]], n: int) -> npt.NDArray[np.bool_]:
        """Return for each timestep whether the condition holds, `(n,)`; comparisons with NaN do not hold.

        Args:
            tensors: `outputs` and `inputs` by name, each `(n, *row)`.
            n: Number of timesteps.
        """
        with np.errstate(all="ignore"):
            return np.broadcast_to(self._holds(tensors, n), (n,))

    def of_model(self, rows: Rows) -> AlarmCondition:
        """Return the condition with the indices of the labels that it names.

        Args:
            rows: Of the model.

        Raises:
            ConditionError: A tensor is missing, or an index or a label does not fit.
        """
        builder = _Builder(rows)
        condition = AlarmCondition(self.text, self.references, builder.truth(_tree(self.text)))
        condition._check(tuple(builder.references), rows)
        return condition

    @staticmethod
    def _check(references: Sequence[Reference], rows: Rows) -> None:
        """Check that every tensor exists and every index fits its row."""
        for one in references:
            known = rows[one.group]
            if one.name not in known:
                found = ", ".join(known) or "none"
                raise ConditionError(f"{one} is not there; the model's {one.group} are {found}")
            shape = tuple(known[one.name].shape)
            if len(one.place) > len(shape):
                raise ConditionError(
                    f"{one} has {counted(len(one.place), 'index', 'indices')}; a timestep of {one.name} has the shape "
                    f"{list(shape)}, so give {len(shape)}"
                )
            for axis, (i, size) in enumerate(zip(one.place, shape, strict=False)):
                if isinstance(i, str):
                    labels = ", ".join(known[one.name].labels) or "none"
                    raise ConditionError(f"{one} names the label {i!r}; the labels of {one.name} are {labels}")
                if not -size <= i < size:
                    raise ConditionError(
                        f"{one} has the index {i} on axis {axis}; a timestep of {one.name} has the shape "
                        f"{list(shape)}, so give 0 to {size - 1}"
                    )
            is_number = int(np.prod(shape[len(one.place) :], dtype=np.int64)) == 1
            if not is_number and not one.reduced:
                raise ConditionError(
                    f"{one} is not one number: a timestep of {one.name} has the shape {list(shape)}; "
                    "give an index for each axis, or min(..) or max(..) of it"
                )


def parse_condition(text: str) -> AlarmCondition:
    """Parse a condition.

    Raises:
        ConditionError: The text is not a condition.
    """
    builder = _Builder()
    holds = builder.truth(_tree(text))
    return AlarmCondition(text, tuple(dict.fromkeys(builder.references)), holds)


def opposite(text: str, limit: float) -> AlarmCondition:
    """Return the condition that a value is beyond another limit, on the other side.

    Args:
        text: A condition that compares one value with a number, such as `outputs.wear[0] > 0.8`.
        limit: The other limit, such as 0.6: `outputs.wear[0] < 0.6`.

    Raises:
        ConditionError: The text is not such a condition.
    """
    tree = _tree(text)
    if isinstance(tree, ast.Compare) and len(tree.ops) == 1 and isinstance(tree.ops[0], _LESS + _GREATER):
        sides = [tree.left, tree.comparators[0]]
        numbers = [_number(side) is not None for side in sides]
        if sum(numbers) == 1:
            value = sides[numbers.index(False)]
            is_above = isinstance(tree.ops[0], _GREATER) == numbers[1]
            return parse_condition(f"{ast.unparse(value)} {'<' if is_above else '>'} {limit!r}")
    raise ConditionError(
        f"a number needs a `when` that compares one value with a number, such as outputs.y[0] > 0.8; found {text!r}"
    )


class _Builder:
    """Turns the nodes of a condition into functions, and collects the tensors that they read."""

    def __init__(self, rows: Rows | None = None) -> None:
        self.references: list[Reference] = []
        self._rows = rows

    def truth(self, node: ast.expr) -> _Function:
        """Return the function of a node that is true or false."""
        match node:
            case ast.BoolOp(op=op, values=values):
                parts = [self.truth(value) for value in values]
                combine = np.all if isinstance(op, ast.And) else np.any
                return lambda tensors, n: combine(
                    np.stack([np.broadcast_to(part(tensors, n), (n,)) for part in parts]), axis=0
                )
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = self.truth(operand)
                return lambda tensors, n: np.logical_not(inner(tensors, n))
            case ast.Compare(left=left, ops=ops, comparators=rest):
                return self._comparison([left, *rest], ops)
            case ast.Call(func=ast.Name(id="isnan"), args=[argument], keywords=[]):
                inner = self._value(argument)
                return lambda tensors, n: np.isnan(inner(tensors, n))
        raise ConditionError(f"`{ast.unparse(node)}` is neither true nor false; expected {_EXPECTED}")

    def _comparison(self, sides: Sequence[ast.expr], ops: Sequence[ast.cmpop]) -> _Function:
        for op in ops:
            if type(op) not in _COMPARISONS:
                raise ConditionError(f"{type(op).__name__} is not a comparison; expected one of > >= < <= == !=")
        values = [self._value(side) for side in sides]
        compare = [_COMPARISONS[type(op)] for op in ops]

        def holds(tensors: _Tensors, n: int) -> Values:
            found = [value(tensors, n) for value in values]
            pairs = zip(compare, found, found[1:], strict=False)
            return np.all(np.stack([np.broadcast_to(one(a, b), (n,)) for one, a, b in pairs]), axis=0)

        return holds

    def _value(self, node: ast.expr) -> _Function:
        """Return the function of a node that is a number."""
        number = _number(node)
        if number is not None:
            return lambda _tensors, _n: number
        match node:
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                inner = self._value(operand)
                return lambda tensors, n: -inner(tensors, n)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                a, b, apply = self._value(left), self._value(right), _ARITHMETIC[type(op)]
                return lambda tensors, n: apply(a(tensors, n), b(tensors, n))
            case ast.Call(func=ast.Name(id="abs"), args=[argument], keywords=[]):
                inner = self._value(argument)
                return lambda tensors, n: np.abs(inner(tensors, n))
            case ast.Call(func=ast.Name(id="min" | "max" as name), args=[argument], keywords=[]):
                reduce = np.min if name == "min" else np.max
                rows = self._reference(argument, reduced=True)
                return lambda tensors, n: reduce(rows(tensors, n).reshape(n, -1), axis=1)
        one = self._reference(node, reduced=False)
        return lambda tensors, n: one(tensors, n).reshape(n)

    def _reference(self, node: ast.expr, *, reduced: bool) -> _Function:
        """Return the function of a tensor: its rows, indexed."""
        index: list[int | str] = []
        inner = node
        while isinstance(inner, ast.Subscript):
            if (number := _number(inner.slice)) is not None:
                if number != int(number):
                    raise ConditionError(f"`{ast.unparse(node)}` has the index {number}; expected a whole number")
                index.insert(0, int(number))
            elif (label := _label(inner)) is not None:
                index.insert(0, label)
            else:
                break
            inner = inner.value
        match inner:
            case ast.Attribute(value=ast.Name(id="outputs" | "inputs" as group), attr=name):
                pass
            case ast.Subscript(value=ast.Name(id="outputs" | "inputs" as group), slice=ast.Constant(value=str(name))):
                pass
            case _:
                raise ConditionError(f"`{ast.unparse(node)}` is not a number; expected {_EXPECTED}")
        place = self._place(group, name, tuple(index))
        self.references.append(Reference(group, name, place, reduced))
        rows: tuple[Any, ...] = (slice(None), *place)
        return lambda tensors, _n: _as_numbers(tensors[group][name])[rows]

    def _place(self, group: str, name: str, place: tuple[int | str, ...]) -> tuple[int | str, ...]:
        """Return the indices of a label, if the model is known and has it."""
        row = None if self._rows is None else self._rows[group].get(name)
        if row is None or len(place) != 1 or place[0] not in row.labels:
            return place
        return tuple(int(i) for i in np.unravel_index(row.labels.index(str(place[0])), tuple(row.shape)))


def _tree(text: str) -> ast.expr:
    if len(text) > _MAX_CHARACTERS:
        raise ConditionError(f"the condition has {len(text)} characters; expected at most {_MAX_CHARACTERS}")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as exc:
        reason = exc.msg if isinstance(exc, SyntaxError) else exc
        raise ConditionError(f"{text!r} cannot be read: {reason}; expected {_EXPECTED}") from exc


def _number(node: ast.expr) -> int | float | None:
    """Return the number that a node is; None: it is something else."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value if isinstance(value, float) or abs(value) < _WHOLE else float(str(value))
        case ast.UnaryOp(op=ast.USub(), operand=operand) if (number := _number(operand)) is not None:
            return -number
    return None


def _label(node: ast.Subscript) -> str | None:
    """Return the label that a subscript is, `y[rpm]` or `y["rpm"]`; None: it is a tensor's name, or something else."""
    if isinstance(node.value, ast.Name):
        return None
    match node.slice:
        case ast.Name(id=label) | ast.Constant(value=str(label)):
            return label
    return None


def _as_numbers(array: Array) -> Array:
    """Return an array as float64, the numbers that JSON shows, or as int64."""
    return array.astype(np.float64 if array.dtype.kind == "f" or array.dtype == np.uint64 else np.int64)
