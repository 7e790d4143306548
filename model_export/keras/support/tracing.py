"""Records what Python code does with `keras.ops` and layers, as a graph that can be walked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras.src.backend.common.global_state import get_global_attribute
from keras.src.ops import nn

from model_export.keras.graph import TRIAL
from model_export.keras.registry import Call, to_array
from model_export.keras.value import Value
from model_export.manifest import Array

_OTHER_TRIAL = 71
"""The same once more: what differs between both would not be open."""

_TAKES_SIZES = {"Reshape", "BroadcastTo", "GetItem", "Repeat", "Tile"}
"""Operations in which a size may be the number of timesteps."""


class RandomNumbersError(Exception):
    """The code drew random numbers, which would be the same in every timestep of the graph."""


@dataclass(frozen=True, slots=True)
class Traced:
    """What some code did, once.

    Attributes:
        function: From its arguments and weights to its results; None where no result depends on those.
        inputs: The values and weights that it starts from, in the function's order.
        results: Its flat results: True for one that the function gives, a value or an array for one that it does not.
    """

    function: Any
    inputs: list[Any]
    results: list[Any]

    def replay(self, run: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
        """Return the results, those of the function from `run(function, inputs)`."""
        computed = iter(run(self.function, self.inputs) if self.function is not None else [])
        return [next(computed) if result is True else result for result in self.results]


def trace(call: Call, function: Callable[..., Any], length: int | None) -> Traced:
    """Run code on symbolic tensors.

    Args:
        call: The call with the arguments; the code may use its layer's weights.
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
        if kind in _TAKES_SIZES and (a, b) == (TRIAL, _OTHER_TRIAL):
            continue
        # What differs over time is refused where it is used; places, as `Take` has them, are not.
        pair = (a, b) if kind == "Take" else (_of_one_timestep(a, TRIAL), _of_one_timestep(b, _OTHER_TRIAL))
        if not np.array_equal(*pair):
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
    said = [line for line in lines if not line.startswith("Exception encountered when calling")]
    return f"{type(failure).__name__}: {(said or [''])[0].rstrip('.')}"


def _trace(call: Call, function: Callable[..., Any], batch: int | None, length: int | None) -> Traced:
    symbols: list[Any] = []
    values: list[Any] = []

    def symbol(value: Any) -> Any:
        if not isinstance(value, Value):
            return value
        shape = (batch, *(length if size is None else size for size in value.row))
        symbols.append(keras.Input(batch_shape=shape, dtype=value.dtype))
        values.append(value)
        return symbols[-1]

    args, kwargs = keras.tree.map_structure(symbol, (call.args, call.kwargs))
    with _symbolic_attributes(call.layer) as weights, _no_random_numbers(call.layer), _grouped_convolutions():
        results = keras.tree.flatten(function(*args, **kwargs))
    given = [*zip(symbols, values, strict=True), *weights]
    same = {id(tensor): what for tensor, what in given}  # returned as it came in
    symbolic = [keras.backend.is_keras_tensor(result) for result in results]
    computed = [
        result for result, is_symbol in zip(results, symbolic, strict=True) if is_symbol and id(result) not in same
    ]
    reached = _reached(computed)
    used = [(tensor, what) for tensor, what in given if id(tensor) in reached]
    return Traced(
        keras.Function([tensor for tensor, _ in used], computed) if computed else None,
        [what for _, what in used],
        [same.get(id(r), True) if is_symbol else to_array(r) for r, is_symbol in zip(results, symbolic, strict=True)],
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
def _no_random_numbers(layer: Any) -> Iterator[None]:
    """See to it that the code inside draws no random numbers: on symbolic tensors they come out as constants.

    Raises:
        RandomNumbersError: A seed generator of the layer, or the global one, has moved. Those of the layer go back.
    """
    parts = layer._flatten_layers() if isinstance(layer, keras.Layer) else []
    before = [(generator, to_array(generator.state)) for part in parts for generator in part._seed_generators]
    shared = _shared_seed()
    try:
        yield
    finally:
        drew = _shared_seed() != shared
        for generator, state in before:
            drew |= not np.array_equal(to_array(generator.state), state)
            generator.state.assign(state)
        if drew:
            raise RandomNumbersError


def _shared_seed() -> list[int]:
    """Return the state of the seed generator that random functions use if they are given none."""
    generator = get_global_attribute("global_seed_generator")
    return [] if generator is None else [int(part) for part in to_array(generator.state)]


@contextmanager
def _grouped_convolutions() -> Iterator[None]:
    """Let convolutions by groups be traced: Keras 3.15 checks their channels as if there were one group."""
    check = getattr(nn, "check_conv_input_channels", None)
    if check is not None:
        nn.check_conv_input_channels = lambda *_: None
    try:
        yield
    finally:
        if check is not None:
            nn.check_conv_input_channels = check


class ActivationFunction(keras.Operation):  # type: ignore[misc]  # Keras has no types
    """An activation of Keras as one operation: the code of some goes past `keras.ops`.

    Args:
        function: A function of `keras.activations`.
    """

    def __init__(self, function: Any) -> None:
        super().__init__(name=function.__name__)
        self.function = function

    def call(self, x: Any) -> Any:
        """Return what the function gives."""
        return self.function(x)

    def compute_output_spec(self, x: Any) -> Any:
        """Return the result's shape, which is that of the operand."""
        return keras.KerasTensor(x.shape, x.dtype)


@contextmanager
def _symbolic_attributes(layer: Any) -> Iterator[list[tuple[Any, Array]]]:
    """Let a layer's own weights be symbolic tensors, and activations of Keras' layers operations, for a trace.

    `self.gain * x` would go past `keras.ops` otherwise: a variable calls the backend directly. Other people's code may
    call an activation with more arguments, or compare it with another one.
    """
    attributes = vars(layer) if isinstance(layer, keras.Layer) else {}
    own = attributes.items() if is_code_of_keras(layer) else ()
    functions = {name: value for name, value in own if is_activation(value)}
    weights = {name: weight for name, weight in attributes.items() if isinstance(weight, keras.Variable)}
    symbols = {name: keras.Input(batch_shape=weight.shape, dtype=weight.dtype) for name, weight in weights.items()}
    attributes.update(symbols)
    attributes.update({name: ActivationFunction(function) for name, function in functions.items()})
    try:
        yield [(symbols[name], to_array(weight)) for name, weight in weights.items()]
    finally:
        attributes.update(weights)
        attributes.update(functions)


def is_code_of_keras(layer: Any) -> bool:
    """Return whether a layer's code comes with Keras: which operations it calls is a detail then."""
    if not isinstance(layer, keras.Layer) or isinstance(layer, keras.layers.Lambda):
        return False
    return str(type(layer).call.__module__).startswith("keras.")


def is_activation(value: Any) -> bool:
    """Return whether something is a function of `keras.activations`."""
    name = getattr(value, "__name__", None)
    return isinstance(name, str) and callable(value) and getattr(keras.activations, name, None) is value
