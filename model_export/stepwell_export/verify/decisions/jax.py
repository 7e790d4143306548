"""`JaxObserver`: the decisions of a function on JAX, whose jaxpr is run with what it decides as one more result.

A jaxpr has an equation for each operation, with the user's line or the layer. The copy is compiled once for each shape;
an original that decides nothing is not run at all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
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

_MASKED_SCAN = "keras/src/backend/jax/rnn.py"

_JAX = str(Path(jax.__file__).parent)
_FRAMEWORKS = (_JAX, str(Path(__file__).parents[2]))


@dataclass(frozen=True, slots=True)
class _Point:
    key: str
    name: str
    outcomes: tuple[str, ...]


class JaxObserver:
    """Runs a function of arrays, and records its decisions."""

    def __init__(self, run: Callable[..., Any], *, framework: str) -> None:
        """Keep the function.

        Args:
            run: Takes arrays and returns a structure of arrays.
            framework: The folder of the library that calls JAX; its lines are not the user's.
        """
        self._run = run
        self._framework = framework
        self._compiled: dict[Any, tuple[Any, list[_Point], Observed]] = {}

    def observe(self, arrays: Sequence[Array]) -> Observed:
        """Return the decisions of one run."""
        shapes = tuple((array.shape, array.dtype.str) for array in arrays)
        if shapes not in self._compiled:
            self._compiled[shapes] = self._made(arrays)
        function, points, constants = self._compiled[shapes]
        seen = Observed()
        seen.add(constants)
        flags = np.asarray(function(*arrays)) if points else ()
        at = 0
        for point in points:
            taken = flags[at : at + len(point.outcomes)]
            seen.note(point.key, point.name, dict(zip(point.outcomes, map(bool, taken), strict=True)))
            at += len(point.outcomes)
        return seen

    def _made(self, arrays: Sequence[Array]) -> tuple[Any, list[_Point], Observed]:
        closed = jax.make_jaxpr(self._run)(*arrays)
        jaxpr, used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)
        del used
        constants = Observed()
        walk = _Walk(self._framework, constants)
        points: list[_Point] = []

        def flagged(*values: Any) -> Any:
            points.clear()
            traced = walk.run(jaxpr, closed.consts, values, [True] * len(values), "", "")
            points.extend(traced.points)
            return jnp.stack(traced.flags) if traced.flags else jnp.zeros(0, bool)

        jax.eval_shape(flagged, *arrays)
        if not points:
            return None, [], constants
        options: dict[str, str | bool] = {"xla_llvm_disable_expensive_passes": True}
        compiled = jax.jit(flagged).lower(*arrays).compile(compiler_options=options)
        return compiled, list(points), constants


@dataclass(slots=True)
class _Found:
    """What a part of a jaxpr gave.

    Attributes:
        values: Its results.
        follows: Which of these follow from the inputs, or from positions.
        flags: One boolean for each outcome.
        points: What these are.
    """

    values: list[Any]
    follows: list[bool]
    flags: list[Any]
    points: list[_Point]


class _Walk:
    """Runs jaxprs equation by equation, and records what each decides."""

    def __init__(self, framework: str, constants: Observed) -> None:
        self._skipped = (*_FRAMEWORKS, framework)
        self._constants = constants

    def run(  # noqa: PLR0917  # what a jaxpr is run with
        self, jaxpr: Any, consts: Sequence[Any], values: Sequence[Any], follows: Sequence[bool], place: str, label: str
    ) -> _Found:
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
        made_by: dict[Any, Any] = {}
        guards: set[Any] = set()  # what only shows whether numbers exist
        flags: list[Any] = []
        points: list[_Point] = []

        def read(var: Any) -> Any:
            return var.val if isinstance(var, core.Literal) else env[var]

        for eqn in jaxpr.eqns:
            given = [read(var) for var in eqn.invars]
            own = [not isinstance(var, core.Literal) and var in depends for var in eqn.invars]
            does_follow = any(own) or eqn.primitive.name in {"iota", "while", "scan"}
            where = self._place(eqn, place)
            self._constants.candidates.update(_lengths_of(eqn))
            traced = self._inner(eqn, given, own, where, label) if does_follow else None
            if traced is None:
                outs = _bound(eqn, given)
                traced = _Found(outs, [does_follow] * len(outs), [], [])
            env.update(zip(eqn.outvars, traced.values, strict=True))
            depends.update(var for var, follow in zip(eqn.outvars, traced.follows, strict=True) if follow)
            made_by.update(dict.fromkeys(eqn.outvars, eqn))
            if _is_guard(eqn, guards, made_by):
                guards.update(eqn.outvars)
            flags += traced.flags
            points += traced.points
            if _is_of_library(eqn):
                guards.update(eqn.outvars)
            elif does_follow and not traced.points and not guards.intersection(eqn.outvars):
                for name, outcomes, taken in self._decided(eqn, given, traced.values, guards, label):
                    flags += taken
                    points.append(_Point(f"{where} {label} {name}", f"{name}{_called_place(where)}", outcomes))
        results = [read(var) for var in jaxpr.outvars]
        return _Found(results, [not isinstance(v, core.Literal) and v in depends for v in jaxpr.outvars], flags, points)

    # ---------------------------------------------------------------- jaxprs inside of equations

    def _inner(self, eqn: Any, given: list[Any], own: list[bool], place: str, label: str) -> _Found | None:
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
        if jaxpr is None or _is_of_library(eqn) or (name not in DECIDING and _is_of_jax(jaxpr)):
            return None
        return self.run(jaxpr, consts, given, own, place, name)

    def _scan(self, eqn: Any, given: list[Any], own: list[bool], place: str, label: str) -> _Found | None:
        params = eqn.params
        closed, (count, carried) = params["jaxpr"], scan_counts(params)
        points: list[_Point] = []
        inside = [*own[:count], *[True] * (len(own) - count)]

        def body(carry: Any, xs: Any) -> Any:
            points.clear()
            traced = self.run(closed.jaxpr, closed.consts, [*given[:count], *carry, *xs], inside, place, label)
            points.extend(traced.points)
            return traced.values[:carried], (traced.values[carried:], traced.flags)

        carry, (ys, flags) = lax.scan(
            body, given[count : count + carried], given[count + carried :],
            length=params["length"], reverse=params["reverse"],
        )  # fmt: skip
        values = [*carry, *ys]
        return _Found(values, [True] * len(values), [flag.any() for flag in flags], list(points))

    def _while(self, eqn: Any, given: list[Any], place: str, label: str) -> _Found:
        params = eqn.params
        tests, bodies = params["cond_nconsts"], params["body_nconsts"]
        test, body = params["cond_jaxpr"], params["body_jaxpr"]
        start = given[tests + bodies :]
        points: list[_Point] = []

        def step(values: Sequence[Any]) -> _Found:
            given_to_body = [*given[tests : tests + bodies], *values]
            return self.run(body.jaxpr, body.consts, given_to_body, [True] * len(given_to_body), place, label)

        def look(values: Sequence[Any]) -> int:
            points.extend(step(values).points)
            return 0

        jax.eval_shape(look, start)
        size = sum(len(point.outcomes) for point in points)

        def is_on(carry: Any) -> Any:
            (goes_on,) = jax.core.eval_jaxpr(test.jaxpr, test.consts, *given[:tests], *carry[0])
            return goes_on

        def next_of(carry: Any) -> Any:
            traced = step(carry[0])
            return traced.values, jnp.logical_or(carry[1], jnp.stack(traced.flags)) if size else carry[1]

        values, flags = lax.while_loop(is_on, next_of, (list(start), jnp.zeros(size, bool)))
        return _Found(list(values), [True] * len(values), [flags[i] for i in range(size)], points)

    def _cond(self, eqn: Any, given: list[Any], own: list[bool], place: str, label: str) -> _Found:
        branches = eqn.params["branches"]
        counts: list[list[_Point]] = []
        for i, branch in enumerate(branches):
            traced: list[_Point] = []

            def look(values: Any, branch: Any = branch, traced: list[_Point] = traced, i: int = i) -> Any:
                traced.extend(self.run(branch.jaxpr, branch.consts, values, own[1:], f"{place}.{i}", label).points)
                return 0

            jax.eval_shape(look, given[1:])
            counts.append(traced)
        sizes = [sum(len(point.outcomes) for point in points) for points in counts]

        def branch_of(i: int) -> Any:
            branch = branches[i]

            def run(*values: Any) -> Any:
                traced = self.run(branch.jaxpr, branch.consts, values, own[1:], f"{place}.{i}", label)
                parts = [jnp.zeros(sum(sizes[:i]), bool), *[flag[None] for flag in traced.flags]]
                return traced.values, jnp.concatenate([*parts, jnp.zeros(sum(sizes[i + 1 :]), bool)])

            return run

        index = given[0]
        values, flags = lax.switch(index, [branch_of(i) for i in range(len(branches))], *given[1:])
        points = [point for traced in counts for point in traced]
        taken = [flags[i] for i in range(sum(sizes))]
        if own[0]:
            outcomes = (
                record.TRUE_FALSE[::-1] if len(branches) == 2 else tuple(f"branch {i}" for i in range(len(branches)))
            )
            points.append(_Point(f"{place} {label} cond", f"cond{_called_place(place)}", outcomes))
            at = jnp.clip(index.astype(jnp.int32), 0, len(branches) - 1)
            taken += [at == i for i in range(len(branches))]
        return _Found(list(values), [any(own)] * len(values), taken, points)

    # ---------------------------------------------------------------- decisions

    def _decided(
        self, eqn: Any, given: list[Any], made: list[Any], guards: set[Any], label: str
    ) -> Iterable[tuple[str, tuple[str, ...], list[Any]]]:
        kind, params = eqn.primitive.name, eqn.params
        if not made or not made[0].size:
            return
        if kind in record.COMPARED:
            if _is_index_check(eqn):
                return
            self._note_values(eqn.invars, given)
            yield record.COMPARED[kind], record.TRUE_FALSE, [made[0].any(), (~made[0]).any()]
        elif kind == "select_n" and given[0].dtype == bool and eqn.invars[0] not in guards:
            if not isinstance(eqn.invars[0], core.Literal):
                yield "Where", record.TRUE_FALSE, [given[0].any(), (~given[0]).any()]
        elif kind in {"max", "min"}:
            yield from self._larger(kind, eqn, given, label)
        elif kind == "clamp":
            low, x, high = given
            yield "Clip", record.LOWER, [(x > low).any(), (x <= low).any()]
            yield "Clip ", record.UPPER, [(x < high).any(), (x >= high).any()]
        elif kind in {"argmax", "argmin"} or str(params.get("name")) in {"argmax", "argmin"}:
            yield "ArgMax", record.PLACES, [jnp.array(True), made[0].max() > made[0].min()]
        elif kind == "rem" or str(params.get("name")) in {"remainder", "fmod"}:
            self._note_values(eqn.invars, given)
            x = given[0]
            yield "Mod", record.WRAPPED, [(made[0] == x).any(), (made[0] != x).any()]

    def _larger(
        self, kind: str, eqn: Any, given: list[Any], label: str
    ) -> Iterable[tuple[str, tuple[str, ...], list[Any]]]:
        limits = [_number(var, value) for var, value in zip(eqn.invars, given, strict=True)]
        if any(
            limit is not None and (abs(limit) > record.NO_LIMIT or (kind == "max" and is_guard(limit)))
            for limit in limits
        ):
            return
        self._note_values(eqn.invars, given)
        a, b = given
        called = label.strip("_").capitalize() if label in _ACTIVATIONS else kind.capitalize()
        if limits == [None, None]:
            yield called, record.SIDES, [(a >= b).any(), (a <= b).any()]
            return
        x, limit = (a, b) if limits[0] is None else (b, a)
        if kind == "max":
            yield called, record.LOWER, [(x > limit).any(), (x <= limit).any()]
        else:
            yield called, record.UPPER, [(x < limit).any(), (x >= limit).any()]

    def _note_values(self, variables: Sequence[Any], given: Sequence[Any]) -> None:
        for var, value in zip(variables, given, strict=True):
            number = _number(var, value)
            if number is not None and np.isfinite(number):
                self._constants.note_value(number)

    def _place(self, eqn: Any, outer: str) -> str:
        """Return what identifies the place of an equation, then a bar, then how a message calls it."""
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


def _lengths_of(eqn: Any) -> list[int]:
    """Return whole numbers of an equation that may meet the time axis: padding, kernels, windows."""
    kind, params = eqn.primitive.name, eqn.params
    jaxpr, _ = _called_by(eqn)
    if jaxpr is not None and kind not in {"scan", "while"}:
        return [length for inner in jaxpr.eqns for length in _lengths_of(inner)]
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
    if jaxpr is not None and eqn.primitive.name not in {"scan", "while", "cond"}:
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


def _number(var: Any, value: Any) -> float | None:
    """Return the number that a literal or a constant of one element is."""
    if isinstance(value, jax.core.Tracer) or np.size(value) != 1 or np.iscomplexobj(value):
        return None
    return float(np.asarray(value).reshape(()))


def _is_index_check(eqn: Any) -> bool:
    """Whether an equation compares a whole number with 0, as in front of every look-up by index."""
    other = eqn.invars[1]
    is_whole = jnp.issubdtype(eqn.invars[0].aval.dtype, jnp.integer)
    return bool(eqn.primitive.name == "lt" and is_whole and isinstance(other, core.Literal) and other.val == 0)


def _is_guard(eqn: Any, guards: set[Any], made_by: Mapping[Any, Any]) -> bool:
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
