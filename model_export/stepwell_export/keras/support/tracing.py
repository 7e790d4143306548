"""Records what Python code does with `keras.ops` and layers, as a graph that can be walked."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from threading import RLock, get_ident
from typing import Any, Final

import keras
import numpy as np
from keras.src import backend
from keras.src.ops import nn, numpy

from stepwell_export.keras.graph import TRIAL
from stepwell_export.keras.rule_registry import Call, to_array
from stepwell_export.keras.value import Value
from stepwell_export.runtime.manifest import Array

_OTHER_TRIAL = 71
"""The same once more: what differs between both would not be open."""

_TAKES_SIZES = {"Reshape", "BroadcastTo", "GetItem", "Repeat", "Resize", "Tile"}
"""Operations in which a size may be the number of timesteps."""


TRACING: Final = RLock()
"""Held while functions of Keras are replaced: two threads would restore each other's replacements, and so keep them."""


class RandomNumbersError(Exception):
    """The code drew random numbers, which would be the same in every timestep of the graph."""


@dataclass(frozen=True, slots=True)
class Traced:
    """What some code did, once.

    Attributes:
        function: From its arguments to its results; None where no result depends on those.
        inputs: The values that it starts from, in the function's order.
        results: Its flat results: True for one that the function gives, a value or an array for one that it does not.
    """

    function: Any
    inputs: list[Value]
    results: list[Any]

    def replay(self, run: Callable[[Any, list[Value]], list[Any]]) -> list[Any]:
        """Return the results, those of the function from `run(function, inputs)`."""
        computed = iter(run(self.function, self.inputs) if self.function is not None else [])
        return [next(computed) if result is True else result for result in self.results]


def trace(call: Call, function: Callable[..., Any], length: int | None) -> Traced:
    """Run code on symbolic tensors.

    Args:
        call: The call with the arguments.
        function: The code.
        length: The number of timesteps that the model declares; None: open.

    Raises:
        RandomNumbersError: The code drew random numbers.
        Exception: What the code raises.
    """
    failure: Exception | None = None
    # Code that makes a tensor of the batch's size, or of the sequence's, cannot do so with an open one.
    for sizes in dict.fromkeys([(None, length), (None, None), (1, length or TRIAL)]):
        try:
            traced = _trace(call, function, *sizes)
            if sizes == (1, TRIAL):
                _check_open(traced, _trace(call, function, 1, _OTHER_TRIAL))
            return traced
        except RandomNumbersError:
            raise
        except Exception as exc:  # noqa: BLE001  # whatever people's code raises
            failure = failure or exc
    assert failure is not None
    raise failure


def _check_open(first: Traced, other: Traced) -> None:
    """Check that code does the same whatever the number of timesteps is.

    Raises:
        ValueError: It computes with that number, which would be that of a trial in the graph.
    """
    for (kind, a), (_, b) in zip(_constants(first), _constants(other), strict=True):
        if np.array_equal(a, b) or (kind in _TAKES_SIZES and (a, b) == (TRIAL, _OTHER_TRIAL)):
            continue
        # What differs over time is refused where it is used; places, as `Take` has them, are not.
        one, other_one = _of_one_timestep(a, TRIAL), _of_one_timestep(b, _OTHER_TRIAL)
        if kind == "Take" or not np.array_equal(one, other_one):
            raise ValueError("it computes with the number of timesteps, which is open")


def _constants(traced: Traced) -> Iterator[tuple[str, Any]]:
    """Yield what operations take besides tensors, with their names, and results that are constants."""
    yield from (("", result) for result in traced.results if isinstance(result, np.ndarray))
    levels = traced.function._nodes_by_depth if traced.function is not None else {}
    for node in (node for depth in sorted(levels) for node in levels[depth]):
        own = {} if isinstance(node.operation, keras.Layer) else vars(node.operation)
        given = [value for name, value in own.items() if not name.startswith("_")]
        for leaf in keras.tree.flatten((node.arguments.args, node.arguments.kwargs, given)):
            for part in (leaf.start, leaf.stop) if isinstance(leaf, slice) else [leaf]:
                if isinstance(part, int | float):
                    yield type(node.operation).__name__, part
                elif isinstance(part, np.ndarray) or keras.ops.is_tensor(part):
                    yield type(node.operation).__name__, to_array(part)


def _of_one_timestep(values: Any, length: int) -> Array:
    """Return an array with one entry along the axes that are as long as the sequence."""
    array = np.asarray(values)
    return array[tuple(slice(1) if size == length else slice(None) for size in array.shape)]


def describe_cause(failure: BaseException | None) -> str:
    """Return what failed, in one line, without what Keras writes around it."""
    plain = re.sub(r"\x1b\[\d*m", "", str(failure))
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    own = [line for line in lines if not line.startswith("Exception encountered when calling")]
    return f"{type(failure).__name__}: {(own or [''])[0].rstrip('.')}"


def _trace(call: Call, function: Callable[..., Any], batch: int | None, length: int | None) -> Traced:
    symbols: list[Any] = []
    values: list[Value] = []

    def symbol(value: Any) -> Any:
        if not isinstance(value, Value):
            return value
        shape = (batch, *(length if size is None else size for size in value.row))
        symbols.append(keras.Input(batch_shape=shape, dtype=value.dtype))
        values.append(value)
        return symbols[-1]

    args, kwargs = keras.tree.map_structure(symbol, (call.args, call.kwargs))
    with _open_backend():
        results = keras.tree.flatten(function(*args, **kwargs))
    same = dict(zip(map(id, symbols), values, strict=True))  # returned as it came in
    is_symbol = keras.backend.is_keras_tensor
    computed = [result for result in results if is_symbol(result) and id(result) not in same]
    reached = _reached(computed)
    used = [symbol for symbol in symbols if id(symbol) in reached]
    return Traced(
        keras.Function(used, computed) if computed else None,
        [same[id(symbol)] for symbol in used],
        [same.get(id(result), True) if is_symbol(result) else to_array(result) for result in results],
    )


def _reached(results: list[Any]) -> set[int]:
    """Return the ids of the tensors that results are computed from; Keras 3.12 refuses a function of others."""
    found: set[int] = set()
    waiting = list(results)
    while waiting:
        tensor = waiting.pop()
        if id(tensor) not in found:
            found.add(id(tensor))
            operation, node, _ = tensor._keras_history
            waiting += operation._inbound_nodes[node].input_tensors
    return found


@contextmanager
def _open_backend() -> Iterator[None]:
    """Let code that calls Keras' backend be traced: on symbolic tensors such a function is that of `keras.ops`.

    Layers of Keras call it, and so do the operators of a variable, as in `self.gain * x`. An array of NumPy or JAX
    beside one, as in `ops.exp(self.gain) * x`, leaves the operation to the symbolic tensor.

    Checks of Keras 3.15 that refuse what it computes are switched off: a convolution by groups is held to the channels
    of one, a batch normalization with an offset to a scale, and bins to an array.

    Raises:
        RandomNumbersError: The code draws a seed: random numbers on symbolic tensors come out as constants.
    """
    with TRACING, ExitStack() as restored:
        for owner, name, function in _replacements():
            if (original := getattr(owner, name, None)) is not None:
                restored.callback(setattr, owner, name, original)
                setattr(owner, name, function)
        for name, value in (("__array_ufunc__", None), ("__eq__", _comparing())):  # it has neither
            restored.callback(delattr, keras.KerasTensor, name)
            setattr(keras.KerasTensor, name, value)
        yield


def _replacements() -> list[tuple[Any, str, Any]]:
    """Return what `_open_backend` replaces: where it is, its name, and what stands there meanwhile."""
    return [
        *_backend_functions(),
        (keras.KerasTensor, "__jax_array__", property(_absent)),
        (nn, "check_conv_input_channels", lambda *_: None),
        (nn.BatchNorm, "compute_output_spec", lambda _, x, *__: keras.KerasTensor(x.shape, x.dtype)),
        (numpy.Digitize, "compute_output_spec", lambda _, x, __: keras.KerasTensor(x.shape, "int32")),
        (keras.random.SeedGenerator, "next", _refusing(keras.random.SeedGenerator.next)),
    ]


def _comparing() -> Callable[[Any, Any], Any]:
    """Return `==` that compares number by number in this thread, as tensors of every backend do.

    Keras leaves it to Python, for which two tensors are equal if they are one: `x == 0` would be False.
    """
    thread = get_ident()

    def equal(tensor: Any, other: Any) -> Any:
        if get_ident() != thread or other is None or isinstance(other, str):
            return NotImplemented
        return keras.ops.equal(tensor, other)

    return equal


def _absent(_: Any) -> Any:
    """Be no attribute: where a symbolic tensor has none of this name, operators of JAX's arrays leave it to the tensor.

    Raises:
        AttributeError: Always.
    """
    raise AttributeError


def _refusing(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that draws no seed in this thread; where a shape alone is computed it does."""
    thread = get_ident()

    def call(generator: Any, *args: Any, **kwargs: Any) -> Any:
        if get_ident() == thread and not backend.in_stateless_scope():
            raise RandomNumbersError
        return draw(generator, *args, **kwargs)

    return call


@cache
def _backend_functions() -> list[tuple[Any, str, Callable[..., Any]]]:
    """Return the functions of the backend that `keras.ops` has, too: where each is, its name, and one of both."""

    def of_both(function: Callable[..., Any], operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return (operation if backend.any_symbolic_tensors(args, kwargs) else function)(*args, **kwargs)

        return call

    chosen = import_module(f"keras.src.backend.{keras.backend.backend()}")
    parts = [(module, keras.ops) for module in (backend, chosen, chosen.core, chosen.math, chosen.nn, chosen.numpy)]
    return [
        (module, name, of_both(getattr(module, name), operation))
        for module, operations in (*parts, (chosen.image, keras.ops.image))
        for name, operation in vars(operations).items()
        if inspect.isfunction(operation) and "any_symbolic_tensors" in operation.__code__.co_names
        if callable(getattr(module, name, None))
    ]


def is_code_of_keras(layer: Any) -> bool:
    """Return whether a layer's code comes with Keras: which operations it calls is a detail then."""
    if not isinstance(layer, keras.Layer) or isinstance(layer, keras.layers.Lambda):
        return False
    return str(type(layer).call.__module__).startswith("keras.")
