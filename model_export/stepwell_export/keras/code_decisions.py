"""Finds what a model's Python code decides by a value or by a size, by running it where neither exists.

A trace runs code once, on abstract arrays whose numbers of rows and timesteps are symbols: `if ops.max(x) > 8` and
`if x.shape[1] > 2500` have no answer there. A decision is noted where it is made, since code may catch the error:
`try: n = int(x[0, 0, 0])`.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident
from types import FrameType
from typing import Any, Literal

import keras
import numpy as np

from stepwell_export.patched import patched
from stepwell_export.runtime.errors import RefusedModelError

_FRAMEWORKS = {"jax", "jaxlib", "keras", "stepwell_export", "numpy"}
_ROWS, _TIMESTEPS = "rows", "timesteps"
_TRACE = f"{__package__}.trace"
_FIXES = {
    "value": "Choose between numbers with `ops.where`, or between computations with `ops.cond`.",
    _ROWS: "Let it do the same for any number of rows: streams share a batch with others.",
    _TIMESTEPS: "Let it do the same for any number of timesteps; or declare the number, keras.Input((T, ...)), and the "
    "exported model does what this does for that many.",
}

Kind = Literal["value", "rows", "timesteps"]


@dataclass(frozen=True, slots=True)
class CodeDecision:
    """Where code decides by something that does not exist before a stream's numbers arrive.

    Attributes:
        kind: What it decides by.
        layer: The Keras layer whose code it is; None: none was found.
        place: File and line.
        line: The line's text.
    """

    kind: Kind
    layer: Any
    place: str
    line: str

    def refusal(self) -> RefusedModelError:
        """Return the error that names the layer and the line."""
        what = "the value of a tensor" if self.kind == "value" else f"the number of {self.kind}"
        named = "The model" if self.layer is None else _described(self.layer)
        return RefusedModelError(
            f"{named} cannot be stepped: it decides by {what} ({self.place}: `{self.line}`).",
            fix=_FIXES[self.kind],
            layer=named,
        )


def has_own_code(model: Any) -> bool:
    """Whether some code of a model is not Keras', be it a layer's or a function that a layer is given."""
    parts = [part for layer in model._flatten_layers() for part in (layer, *vars(layer).values())]
    modules = {
        str(getattr(part, "__module__", "")) for part in parts if callable(part) or isinstance(part, keras.Layer)
    }
    return any(isinstance(part, keras.layers.Lambda) for part in parts) or any(
        _is_own(module.partition(".")[0]) for module in modules if module
    )


def check_pure(model: Any, first: Any, second: Any, changed: list[Any]) -> None:
    """Check that a model only computes.

    Raises:
        RefusedModelError: It changes a variable, leaves the graph for Python, or is another one when it is run again.
    """
    innermost_first = sorted(model._flatten_layers(), key=lambda layer: len(layer.variables))
    for variable in changed:
        layer = next((part for part in innermost_first if any(v is variable for v in part.variables)), model)
        raise RefusedModelError(
            f"{_described(layer)} cannot be stepped: it assigns its variable {variable.name!r} outside training, so an "
            "answer depends on the calls before.",
            fix="Carry what it counts from timestep to timestep: keras.layers.RNN(cell), or a step rule "
            "(stepwell.register_step_rule).",
            layer=_described(layer),
        )
    if (place := _callback(first.jaxpr)) is not None:
        raise RefusedModelError(
            f"The model runs Python code on values by a callback of JAX ({place}), which is not part of any graph.",
            fix="Write it with `keras.ops`.",
        )
    same = str(first) == str(second) and all(
        a is b or np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f")
        for a, b in zip(first.consts, second.consts, strict=True)
    )
    if not same:
        raise RefusedModelError(
            f"Model {model.name!r} cannot be stepped: its Python code does something else when it is run again, as one "
            "with a counter or random numbers does.",
            fix="Let `call` depend on arguments and weights alone. A state is carried by keras.layers.RNN(cell), "
            "or by a step rule (stepwell.register_step_rule).",
        )


def _callback(jaxpr: Any) -> str | None:
    """Return where a program calls Python with values, other than to print them; None: nowhere."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in {"pure_callback", "io_callback"}:
            trace = equation.source_info.traceback
            own = next((f for f in getattr(trace, "frames", ()) if _is_own(_module_of(f.file_name))), None)
            return f"{Path(own.file_name).name}:{own.line_num}" if own else equation.primitive.name
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns") and (place := _callback(inner)) is not None:
                    return place
    return None


def _module_of(path: str) -> str:
    """Return the package that a file of this process belongs to; empty: none that is imported by a name."""
    parts = Path(path).parts
    return parts[parts.index("site-packages") + 1] if "site-packages" in parts else ""


# ---------------------------------------------------------------- how a decision is found


@contextmanager
def noted(found: list[CodeDecision], inside: list[tuple[str, CodeDecision]]) -> Iterator[None]:
    """Note the decisions of a model's code.

    JAX answers some questions about an open size wrongly: `steps == 64` is False, and `steps % 60` is true.

    Args:
        found: Gets those of people's own code, also where it catches the error.
        inside: Gets those of Keras' code that people's own code calls, with the error's first line: Keras may catch it.
    """
    from jax import errors, export

    size = type(export.symbolic_shape("n")[0])
    inconclusive = sys.modules[size.__module__].InconclusiveDimensionOperation
    equals, hashed, thread = size.__eq__, size.__hash__, get_ident()

    def note(kind: Kind, frame: FrameType | None, why: str = "") -> None:
        if get_ident() != thread:
            return
        stack = [place for place in _outwards(frame) if _package(place[0]) not in {"jax", "jaxlib", "numpy"}]
        own = next((at for at, (one, _) in enumerate(stack) if _is_own(_package(one))), None)
        if own is None:
            return
        decision = _decision(kind, stack[own:])
        if own == 0 or stack[0][0].f_code.co_name == "convert_to_numpy":
            found.append(decision)
        else:
            inside.append((why, decision))

    def noting(original: Any, kind_of: Callable[[str], Kind]) -> Any:
        def begin(error: Any, *args: Any, **kwargs: Any) -> None:
            original(error, *args, **kwargs)
            note(kind_of(str(error)), sys._getframe(1), str(error).partition("\n")[0])

        return begin

    def note_size(text: str) -> None:
        frame = sys._getframe(2)
        if _is_own(_package(frame)):
            note(_kind_of_size(text), frame)

    def equal(one: Any, other: Any) -> Any:
        answer = equals(one, other)
        if not answer and isinstance(other, int | size):
            note_size(f"{one} {other}")
        return answer

    def unequal(one: Any, other: Any) -> Any:
        answer = not equals(one, other)
        if answer and isinstance(other, int | size):
            note_size(f"{one} {other}")
        return answer

    def truth(one: Any) -> bool:
        note_size(str(one))
        return True

    def hash_of(one: Any) -> int:
        note_size(str(one))
        return int(hashed(one))

    of_values = (
        errors.ConcretizationTypeError, errors.TracerArrayConversionError, errors.TracerBoolConversionError,
        errors.TracerIntegerConversionError, errors.NonConcreteBooleanIndexError,
    )  # fmt: skip
    kinds = [*((error, lambda _: "value") for error in of_values), (inconclusive, _kind_of_size)]
    of_errors = ((error, "__init__", noting(error.__init__, kind_of)) for error, kind_of in kinds)
    of_sizes = (("__eq__", equal), ("__ne__", unequal), ("__bool__", truth), ("__hash__", hash_of))
    with patched(*of_errors, *((size, name, function) for name, function in of_sizes)):
        yield


def _kind_of_size(text: str) -> Kind:
    return "rows" if _ROWS in text and _TIMESTEPS not in text else "timesteps"


def _decision(kind: Kind, stack: list[tuple[FrameType, int]]) -> CodeDecision:
    """Return the decision at the first of these frames, which go outwards."""
    frame, number = stack[0]
    path = frame.f_code.co_filename
    receivers = (outer.f_locals.get("self") for outer, _ in stack)
    layer = next((one for one in receivers if isinstance(one, keras.Layer)), None)
    return CodeDecision(kind, layer, f"{Path(path).name}:{number}", linecache.getline(path, number).strip())


def _outwards(frame: FrameType | None) -> Iterator[tuple[FrameType, int]]:
    """Yield frames and their lines, up to those of the trace: what called that is no code of the model."""
    while frame is not None and frame.f_globals.get("__name__") != _TRACE:
        yield frame, frame.f_lineno
        frame = frame.f_back


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _is_own(package: str) -> bool:
    """Whether code is people's own, neither Python's nor that of the frameworks."""
    return package not in _FRAMEWORKS and package not in sys.stdlib_module_names


def _described(layer: Any) -> str:
    return f"Layer {layer.name!r} ({type(layer).__name__})"
