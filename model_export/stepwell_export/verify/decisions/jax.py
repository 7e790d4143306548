"""`JaxObserver`: the decisions of a function on JAX, whose jaxpr is run equation by equation.

A jaxpr has an equation for each operation, with the user's line or the layer. What decides nothing is not run at all,
or in one piece where something else needs its values, as a recurrence without a mask.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import source_info_util
from jax.extend import core
from jax.interpreters import partial_eval

from stepwell_export.runtime.manifest import Array
from stepwell_export.verify.decisions import record
from stepwell_export.verify.decisions.record import Observed, is_guard

DECIDING = {
    "_where", "where", "clip", "maximum", "minimum", "relu", "relu6", "hard_sigmoid", "hard_tanh", "hard_silu",
    "leaky_relu", "elu", "selu", "celu", "squareplus", "scan", "select", "piecewise", "_piecewise",
}  # fmt: skip
"""Functions of JAX whose comparisons are decisions; those of all others only make them accurate."""

LIBRARY = {"divide_no_nan", "sinc", "softmax", "log_softmax", "_take", "take", "normalize", "moments", "one_hot"}
"""The same of functions of Keras that are not traced by themselves."""

_DECISIONS = {*record.COMPARED, "select_n", "max", "min", "clamp", "argmax", "argmin", "rem", "cond"}
"""The operations that decide something."""

_ENTERED = {"scan", "while", "cond"}
"""Those whose insides are looked at wherever they are written."""

_PLACES = {"argmax", "argmin"}
_DIVISIONS = {"rem", "remainder", "fmod"}

_MASKED_SCAN = "keras/src/backend/jax/rnn.py"

_JAX = str(Path(jax.__file__).parent)
_FRAMEWORKS = (_JAX, str(Path(__file__).parents[2]))

_Results = tuple[list[Any], list[bool]]
"""The results of a part of a jaxpr, and which of these follow from the inputs, or from positions."""


class JaxObserver:
    """Runs a function of arrays, and records its decisions."""

    def __init__(self, run: Callable[..., Any], *, framework: str) -> None:
        """Keep the function.

        Args:
            run: Takes arrays and returns a structure of arrays.
            framework: The folder of the library that calls JAX; its lines are not the user's.
        """
        self._run = run
        self._walk = _Walk(framework)
        self._traced: dict[Any, tuple[Any, Sequence[Any] | None]] = {}

    def observe(self, arrays: Sequence[Array]) -> Observed:
        """Return the decisions of one run."""
        shapes = tuple((array.shape, array.dtype.str) for array in arrays)
        if shapes not in self._traced:
            closed = jax.make_jaxpr(self._run)(*arrays)
            needed, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)
            # of their own, as the original may give up its weights
            weights = [np.array(value) for value in closed.consts] if _decides(needed) else None
            self._traced[shapes] = needed, weights
        jaxpr, consts = self._traced[shapes]
        self._walk.seen = Observed()
        self._walk.seen.candidates.update(length for eqn in _equations(jaxpr) for length in _lengths_of(eqn))
        if consts is not None:
            self._walk.run(jaxpr, consts, arrays, [True] * len(arrays), "", "")
        return self._walk.seen


class _Walk:
    """Runs jaxprs equation by equation, and records what each decides.

    Attributes:
        seen: What was recorded.
    """

    def __init__(self, framework: str) -> None:
        self.seen = Observed()
        self._skipped = (*_FRAMEWORKS, framework)
        self._places: dict[tuple[int, str], str] = {}  # by the equation; its jaxpr is kept
        self._of_library: dict[int, bool] = {}

    def run(  # noqa: PLR0917  # what a jaxpr is run with
        self, jaxpr: Any, consts: Sequence[Any], values: Sequence[Any], follows: Sequence[bool], place: str, label: str
    ) -> _Results:
        """Run a jaxpr.

        Args:
            jaxpr: It.
            consts: Its constants.
            values: What it takes.
            follows: Which of these follow from the inputs.
            place: What identifies the operation that it belongs to, and how a message calls its place.
            label: The function that it is of, such as `relu`.
        """
        env: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *values), strict=True))
        depends = {var for var, follow in zip(jaxpr.invars, follows, strict=True) if follow}
        guards: set[Any] = set()  # what only shows whether numbers exist

        def read(var: Any) -> Any:
            return var.val if isinstance(var, core.Literal) else env[var]

        for eqn in jaxpr.eqns:
            given = [read(var) for var in eqn.invars]
            own = [not isinstance(var, core.Literal) and var in depends for var in eqn.invars]
            does_follow = any(own) or eqn.primitive.name in {"iota", "while", "scan"}
            where = self._place(eqn, place)
            results = self._inner(eqn, given, own, where, label) if does_follow else None
            made, followed = results or (_bound(eqn, given), [does_follow] * len(eqn.outvars))
            env.update(zip(eqn.outvars, made, strict=True))
            depends.update(var for var, follow in zip(eqn.outvars, followed, strict=True) if follow)
            if _is_guard(eqn, guards) or (results is None and self._is_of_library(eqn)):
                guards.update(eqn.outvars)
            elif does_follow:
                for name, outcomes, taken in self._decided(eqn, given, own, made, guards, label):
                    self._note(f"{where} {label} {name}", f"{name}{_called_place(where)}", outcomes, taken)
        results_of = [read(var) for var in jaxpr.outvars]
        return results_of, [not isinstance(var, core.Literal) and var in depends for var in jaxpr.outvars]

    def _note(self, key: str, name: str, outcomes: Sequence[str], taken: Iterable[Any]) -> None:
        self.seen.note(key, name, dict(zip(outcomes, map(bool, taken), strict=True)))

    # ---------------------------------------------------------------- jaxprs inside of equations

    def _inner(self, eqn: Any, given: list[Any], own: list[bool], place: str, label: str) -> _Results | None:
        """Run an equation that has jaxprs inside; None: it has none, or only what a library does."""
        kind, params = eqn.primitive.name, eqn.params
        if kind == "scan":
            return self._scan(eqn, given, own, place, label)
        if kind == "while":
            return self._while(eqn, given, place, label)
        if kind == "cond":
            return self._cond(eqn, given, own, place, label)
        jaxpr, consts = _called_by(eqn)
        name = str(params.get("name") or _source_of(jaxpr).partition(" at ")[0]) or label
        if jaxpr is None or self._is_of_library(eqn) or (name not in DECIDING and _is_of_jax(jaxpr)):
            return None
        return self.run(jaxpr, consts, given, own, place, name)

    def _scan(self, eqn: Any, given: list[Any], own: list[bool], place: str, label: str) -> _Results | None:
        params = eqn.params
        closed, (count, carried) = params["jaxpr"], scan_counts(params)
        if not params["length"] or not _decides(closed.jaxpr):
            return None
        inside = [*own[:count], *[True] * (len(own) - count)]
        carry, rows = given[count : count + carried], [np.asarray(value) for value in given[count + carried :]]
        made: list[list[Any]] = [[]] * params["length"]
        for t in range(params["length"])[:: -1 if params["reverse"] else 1]:
            taken = [*given[:count], *carry, *(value[t] for value in rows)]
            results, _ = self.run(closed.jaxpr, closed.consts, taken, inside, place, label)
            carry, made[t] = results[:carried], [np.asarray(value) for value in results[carried:]]
        values = [*carry, *(np.stack(column) for column in zip(*made, strict=True))]
        return values, [True] * len(values)

    def _while(self, eqn: Any, given: list[Any], place: str, label: str) -> _Results | None:
        params = eqn.params
        tests, bodies = params["cond_nconsts"], params["body_nconsts"]
        test, body = params["cond_jaxpr"], params["body_jaxpr"]
        if not _decides(body.jaxpr):
            return None
        values, is_run = given[tests + bodies :], False
        while bool(jax.core.eval_jaxpr(test.jaxpr, test.consts, *given[:tests], *values)[0]):
            taken = [*given[tests : tests + bodies], *values]
            values, is_run = self.run(body.jaxpr, body.consts, taken, [True] * len(taken), place, label)[0], True
        self._note(f"{place} {label} while", f"loop{_called_place(place)}", ["run"], [is_run])
        return values, [True] * len(values)

    def _cond(self, eqn: Any, given: list[Any], own: list[bool], place: str, label: str) -> _Results:
        branches = eqn.params["branches"]
        at = int(np.clip(given[0], 0, len(branches) - 1))
        if own[0]:
            outcomes = [f"branch {i}" for i in range(len(branches))] if len(branches) > 2 else record.TRUE_FALSE[::-1]
            taken = [i == at for i in range(len(branches))]
            self._note(f"{place} {label} cond", f"cond{_called_place(place)}", outcomes, taken)
        branch = branches[at]
        values, _ = self.run(branch.jaxpr, branch.consts, given[1:], own[1:], f"{place}.{at}", label)
        return values, [any(own)] * len(values)

    # ---------------------------------------------------------------- decisions

    def _decided(  # noqa: PLR0917  # an equation, with what it takes and gives
        self, eqn: Any, given: list[Any], own: list[bool], made: list[Any], guards: set[Any], label: str
    ) -> Iterable[tuple[str, tuple[str, ...], list[Any]]]:
        names = {eqn.primitive.name, str(eqn.params.get("name"))}
        if not names & (_DECISIONS | _PLACES | _DIVISIONS) or not made or not np.size(made[0]):
            return
        numbers = [None if follows else _number(value) for follows, value in zip(own, given, strict=True)]
        kind, result, given = eqn.primitive.name, np.asarray(made[0]), [np.asarray(value) for value in given]
        if kind in record.COMPARED:
            if not _is_index_check(eqn):
                self._note_values(numbers)
                yield record.COMPARED[kind], record.TRUE_FALSE, [result.any(), (~result).any()]
        elif kind == "select_n" and given[0].dtype == bool and eqn.invars[0] not in guards:
            if not isinstance(eqn.invars[0], core.Literal):
                yield "Where", record.TRUE_FALSE, [given[0].any(), (~given[0]).any()]
        elif kind in {"max", "min"}:
            yield from self._larger(kind, given, numbers, label)
        elif kind == "clamp":
            low, x, high = given
            yield "Clip", record.LOWER, [(x > low).any(), (x <= low).any()]
            yield "Clip ", record.UPPER, [(x < high).any(), (x >= high).any()]
        elif names & _PLACES:
            yield "ArgMax", record.PLACES, [True, result.max() > result.min()]
        elif names & _DIVISIONS:
            self._note_values(numbers)
            yield "Mod", record.WRAPPED, [(result == given[0]).any(), (result != given[0]).any()]

    def _larger(
        self, kind: str, given: list[Array], numbers: list[float | None], label: str
    ) -> Iterable[tuple[str, tuple[str, ...], list[Any]]]:
        limits = [number for number in numbers if number is not None]
        if any(abs(limit) > record.NO_LIMIT or (kind == "max" and is_guard(limit)) for limit in limits):
            return
        self._note_values(limits)
        a, b = given
        called = label.strip("_").capitalize() if label in _ACTIVATIONS else kind.capitalize()
        if not limits:
            yield called, record.SIDES, [(a >= b).any(), (a <= b).any()]
            return
        x, limit = (a, b) if numbers[0] is None else (b, a)
        if kind == "max":
            yield called, record.LOWER, [(x > limit).any(), (x <= limit).any()]
        else:
            yield called, record.UPPER, [(x < limit).any(), (x >= limit).any()]

    def _note_values(self, numbers: Iterable[float | None]) -> None:
        for number in numbers:
            if number is not None and np.isfinite(number):
                self.seen.note_value(number)

    def _is_of_library(self, eqn: Any) -> bool:
        if id(eqn) not in self._of_library:
            self._of_library[id(eqn)] = _is_of_library(eqn)
        return self._of_library[id(eqn)]

    def _place(self, eqn: Any, outer: str) -> str:
        """Return what identifies the place of an equation, then a bar, then how a message calls it."""
        if (id(eqn), outer) not in self._places:
            self._places[id(eqn), outer] = self._read_place(eqn, outer)
        return self._places[id(eqn), outer]

    def _read_place(self, eqn: Any, outer: str) -> str:
        layer = str(eqn.source_info.name_stack)
        layer = layer.rpartition("/")[2] if layer else ""
        line = ""
        traceback = eqn.source_info.traceback
        key = []
        for frame in source_info_util.user_frames(traceback) if traceback is not None else ():
            if frame.file_name == __file__:  # what called the observer is no part of the model
                break
            if frame.file_name.startswith(self._skipped) or "site-packages" in frame.file_name:
                continue
            key.append(f"{frame.file_name}:{frame.start_line}:{frame.start_column}")
            line = line or f"{Path(frame.file_name).name}:{frame.start_line}"
        if not line and not layer:
            return outer
        known, _, called = outer.partition("|")
        where = f" at {line}" if line else called or f" of layer {layer!r}"
        return f"{known}/{eqn.source_info.name_stack} {key}|{where}"


_ACTIVATIONS = {
    "relu", "relu6", "hard_sigmoid", "hard_tanh", "hard_silu", "leaky_relu", "elu", "clip", "maximum", "minimum",
}  # fmt: skip


def scan_counts(params: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many constants a `scan` takes, and how many values it carries, by its parameters."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # JAX 0.12
    return len(consts), len(carry)


def _inside(eqn: Any) -> Iterator[Any]:
    """Yield the jaxprs inside of an equation."""
    for value in eqn.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                yield inner


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Yield the equations of a jaxpr and of those inside of them."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in _inside(eqn):
            yield from _equations(inner)


def _decides(jaxpr: Any) -> bool:
    """Whether a jaxpr, or one inside, has an operation that decides something, and is no library's.

    A library's loop, as of a recurrent layer of Keras, runs what may be the user's.
    """
    return any(
        (eqn.primitive.name in _DECISIONS or any(map(_decides, _inside(eqn))))
        and (eqn.primitive.name in _ENTERED or not _is_of_library(eqn))
        for eqn in jaxpr.eqns
    )


def _lengths_of(eqn: Any) -> list[int]:
    """Return whole numbers of an equation that may meet the time axis: padding, kernels, windows."""
    kind, params = eqn.primitive.name, eqn.params
    if kind == "pad":
        return [abs(int(amount)) for low, high, _ in params["padding_config"] for amount in (low, high)]
    if kind == "conv_general_dilated":
        kernel = [eqn.invars[1].aval.shape[axis] for axis in params["dimension_numbers"].rhs_spec[2:]]
        return [(size - 1) * int(dilation) for size, dilation in zip(kernel, params["rhs_dilation"], strict=True)]
    return [int(size) for size in params["window_dimensions"]] if kind.startswith("reduce_window") else []


def _called_by(eqn: Any) -> tuple[Any, Sequence[Any]]:
    """Return the jaxpr that an equation calls, and its constants; None: it calls none."""
    params = eqn.params
    inner: Any = next((params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params), None)
    jaxpr, consts = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, [])
    return (jaxpr, consts) if jaxpr is not None and len(jaxpr.invars) == len(eqn.invars) else (None, [])


def _bound(eqn: Any, given: Sequence[Any]) -> list[Any]:
    """Run an equation as it is."""
    jaxpr, consts = _called_by(eqn)
    if jaxpr is not None and eqn.primitive.name not in {"scan", "while", "cond", "jit", "pjit"}:
        return list(jax.core.eval_jaxpr(jaxpr, consts, *given))
    outs = eqn.primitive.bind(*given, **eqn.params)
    return list(outs) if eqn.primitive.multiple_results else [outs]


def _is_of_jax(jaxpr: Any) -> bool:
    """Whether a jaxpr is that of a function of JAX itself."""
    return f"{_JAX}/" in _source_of(jaxpr)


def _source_of(jaxpr: Any) -> str:
    """Return the function that a jaxpr was made of, and its file: `relu at .../functions.py:80`."""
    return str(getattr(getattr(jaxpr, "debug_info", None), "func_src_info", ""))


def _is_of_library(eqn: Any) -> bool:
    """Whether an equation is of the inside of a function that a library computes accurately, or applies a mask.

    What a mask is made of counts where it is made.
    """
    traceback = eqn.source_info.traceback
    frames = list(itertools.islice(source_info_util.user_frames(traceback), 4)) if traceback is not None else []
    inside = list(itertools.takewhile(lambda frame: "site-packages" in frame.file_name, frames))
    if inside and inside[0].file_name.endswith(_MASKED_SCAN):
        return True
    return any(frame.function_name.rpartition(".")[2] in LIBRARY for frame in inside)


def _called_place(place: str) -> str:
    """Return how a message calls a place; an operation of a functional model has no line and no layer."""
    return place.partition("|")[2] or " of the model"


def _number(value: Any) -> float | None:
    """Return the number that a constant of one element is."""
    return None if np.size(value) != 1 or np.iscomplexobj(value) else float(np.asarray(value).reshape(()))


def _is_index_check(eqn: Any) -> bool:
    """Whether an equation compares a whole number with 0, as in front of every look-up by index."""
    other = eqn.invars[1]
    is_whole = jnp.issubdtype(eqn.invars[0].aval.dtype, jnp.integer)
    return bool(eqn.primitive.name == "lt" and is_whole and isinstance(other, core.Literal) and other.val == 0)


def _is_guard(eqn: Any, guards: set[Any]) -> bool:
    """Whether an equation gives only whether numbers exist, or whether an index is negative."""
    kind, given = eqn.primitive.name, [var for var in eqn.invars if not isinstance(var, core.Literal)]
    if kind in {"ne", "eq"} and len(given) == 2 and given[0] is given[1]:
        return True
    if kind == "is_finite" or (kind == "lt" and _is_index_check(eqn)):
        return True
    return (
        kind in {"and", "or", "not", "broadcast_in_dim", "reshape", "convert_element_type"}
        and bool(given)
        and all(var in guards for var in given)
    )
