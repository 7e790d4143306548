"""Recurrent layers and embeddings as one call of the trace each, which becomes an operator of ONNX."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import keras
import numpy as np
from jax import lax
from jax import numpy as jnp
from keras.src import backend
from keras.src.layers.rnn.conv_lstm import ConvLSTMCell

from stepwell_export.jax.graph import JaxGraph
from stepwell_export.jax.rules.gathers import looked_up
from stepwell_export.jax.values import JaxValue
from stepwell_export.patched import patched
from stepwell_export.runtime.manifest import Array

_ACTIVATIONS: dict[str, tuple[str, float | None, float | None]] = {
    "tanh": ("Tanh", None, None), "sigmoid": ("Sigmoid", None, None), "relu": ("Relu", None, None),
    "hard_sigmoid": ("HardSigmoid", 1 / 6, 0.5), "linear": ("Affine", 1.0, 0.0),
    "softsign": ("Softsign", None, None), "softplus": ("Softplus", None, None), "elu": ("Elu", 1.0, None),
}  # fmt: skip
"""ONNX's name, alpha and beta by Keras' name."""

_OPERATORS: dict[type, tuple[str, list[int], list[str]]] = {
    keras.layers.LSTMCell: ("LSTM", [0, 3, 1, 2], ["recurrent_activation", "activation", "activation"]),
    keras.layers.GRUCell: ("GRU", [0, 1, 2], ["recurrent_activation", "activation"]),
    keras.layers.SimpleRNNCell: ("RNN", [0], ["activation"]),
}
"""The operator, its gates by their place in Keras, and its activations."""

_LAYERS = (keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN, keras.layers.RNN)

_DESCRIBING = {
    "__init__", "add_weight", "build", "build_from_config", "compute_mask", "compute_output_shape",
    "compute_output_spec", "from_config", "get_build_config", "get_config", "get_initial_state", "load_own_variables",
    "save_own_variables",
}  # fmt: skip
"""Methods that may differ without another result."""

_BEFORE_FIRST = int(np.iinfo(np.int64).min) + 1


@dataclass(frozen=True, slots=True)
class Operator:
    """A cell as a recurrent operator: its kind, the order of its gates, and its attributes."""

    kind: str
    order: list[int]
    attributes: dict[str, Any]


@contextmanager
def recurrent_layers(layers: Sequence[Any], graph: JaxGraph) -> Iterator[None]:
    """Let recurrent layers and embeddings be one call each, and unrolled layers a loop.

    Args:
        layers: All layers of a model.
        graph: Gets the rule of each call.
    """
    changes: list[tuple[Any, str, Any]] = [(backend, "rnn", partial(_rolled, backend.rnn))]
    for number, layer in enumerate(layers):
        if isinstance(layer, keras.layers.RNN) and "inner_loop" not in vars(layer):
            changes.append((layer, "inner_loop", partial(_inner_loop, layer, f"keras_recurrent_{number}", graph)))
        elif type(layer).call is keras.layers.Embedding.call and "call" not in vars(layer):
            changes.append((layer, "call", partial(_look_up, layer, f"keras_embedding_{number}", graph)))
    with patched(*changes):
        yield


def _inner_loop(  # noqa: PLR0917  # as Keras calls it
    layer: Any, key: str, graph: JaxGraph, sequences: Any, initial_state: Any, mask: Any, training: bool = False
) -> Any:
    """Run a layer as Keras does; as one call of a program of its own, if it is an operator."""
    original = partial(type(layer).inner_loop, layer)
    is_masked = any(one is not None for one in keras.tree.flatten(mask))
    operator = None if is_masked or len(sequences.shape) != 3 else _operator(layer)
    if operator is None:
        return original(sequences=sequences, initial_state=initial_state, mask=mask, training=training)

    def run(sequences: Any, states: Any) -> Any:
        last, answers, after = original(sequences=sequences, initial_state=states, mask=None, training=training)
        return last, answers, list(after)

    run.__name__ = key
    graph.hooks[key] = partial(_emit, layer, operator)
    last, answers, after = jax.jit(run)(sequences, list(initial_state))
    return last, answers, after


def _look_up(layer: Any, key: str, graph: JaxGraph, inputs: Any) -> Any:
    """Run an Embedding as one call, of ids as they come in, whatever Keras casts them to."""

    def run(ids: Any) -> Any:
        return type(layer).call(layer, ids)

    def emit(graph: JaxGraph, _: Any, given: list[JaxValue]) -> list[JaxValue]:
        ids = graph.whole_numbers.get(given[-1].tensor, given[-1])
        whole = ids if "int" in ids.dtype else JaxValue(ids.shape, "int64", graph.cast(graph.whole(ids), "int64"))
        return [looked_up(graph, np.asarray(layer.embeddings, np.float32), whole, least=0)]

    run.__name__ = key
    graph.hooks[key] = emit
    return jax.jit(run)(inputs)


def _emit(layer: Any, operator: Operator, graph: JaxGraph, _: Any, inputs: list[JaxValue]) -> list[str]:
    """Emit a layer as an operator over axis 1; return its last answer, all answers, and its states behind the last."""
    cell, ints = layer.cell, graph.ints
    count = 2 if operator.kind == "LSTM" else 1
    x, *starts = inputs[-1 - count :]
    weights = [
        graph.constant(_gates_in_order(_array(kernel).T, operator.order))
        for kernel in (cell.kernel, cell.recurrent_kernel)
    ]
    weights.append(graph.constant(_biases(_array(cell.bias), operator.order)) if cell.use_bias else "")
    zeros = all(one.known is not None and not one.is_sizes and not np.any(one.known) for one in starts)
    states = [] if zeros else ["", *(graph.op("Unsqueeze", graph.whole(one), ints([0])) for one in starts)]
    sequence = graph.op("Transpose", graph.whole(x), perm=[1, 0, 2])
    outputs = [graph.fresh(operator.kind) for _ in range(1 + count)]
    backwards = {"direction": "reverse"} if layer.go_backwards else {}
    graph.add(operator.kind, [sequence, *weights, *states], outputs, **operator.attributes, **backwards)
    last = [graph.op("Squeeze", one, ints([0])) for one in outputs[1:]]
    answers = graph.op("Transpose", graph.op("Squeeze", outputs[0], ints([1])), perm=[1, 0, 2])
    if layer.go_backwards:  # the operator has its answers in the order of its input
        answers = graph.op("Slice", answers, ints([-1]), ints([_BEFORE_FIRST]), ints([1]), ints([-1]))
    return [last[0], answers, *last]


# ---------------------------------------------------------------- cells


def _operator(layer: Any) -> Operator | None:
    """Return a layer's operator; None: there is none, or not with its activations, or it computes something else."""
    facts = next((facts for cls, facts in _OPERATORS.items() if _computes_as(layer.cell, cls)), None)
    if facts is None or not any(_computes_as(layer, cls) for cls in _LAYERS):
        return None
    kind, order, names = facts
    activations = [_known(getattr(layer.cell, name)) for name in names]
    found = [activation for activation in activations if activation]
    if len(found) < len(activations):
        return None
    alphas, betas = ([given[place] for given in found if given[place] is not None] for place in (1, 2))
    attributes = {"hidden_size": layer.cell.units, "activations": [name for name, _, _ in found]}
    attributes |= {"activation_alpha": alphas} if alphas else {}
    attributes |= {"activation_beta": betas} if betas else {}
    attributes |= {"linear_before_reset": int(layer.cell.reset_after)} if kind == "GRU" else {}
    return Operator(kind, order, attributes)


def _computes_as(layer: Any, cls: type) -> bool:
    """Return whether a layer or cell computes as a class of Keras does: what its own class replaces only describes."""
    theirs = [part for part in type(layer).__mro__ if part not in cls.__mro__]
    if not isinstance(layer, cls) or any(part.__module__.partition(".")[0] == "keras" for part in theirs):
        return False
    names = {name for part in theirs for name, own in vars(part).items() if inspect.isfunction(own)}
    return "call" not in vars(layer) and not any(hasattr(cls, name) for name in names - _DESCRIBING)


def _known(activation: Any) -> tuple[str, float | None, float | None] | None:
    name = getattr(activation, "__name__", "")
    return _ACTIVATIONS.get(name) if getattr(keras.activations, name, None) is activation else None


def _array(variable: Any) -> Array:
    return np.asarray(variable.value, np.float32)


def _gates_in_order(array: Array, order: Sequence[int]) -> Array:
    """Return weights `(gates * units, ...)` with their gates in another order, below an axis of directions."""
    gates = np.split(array, len(order))
    return np.concatenate([gates[place] for place in order], out=np.empty(array.shape, array.dtype))[None]


def _biases(bias: Array, order: Sequence[int]) -> Array:
    """Return one bias, or that of the input and that of the state, as `(1, 2 * gates * units)`."""
    of_input, of_state = bias if bias.ndim > 1 else (bias, np.zeros_like(bias))
    return np.concatenate([_gates_in_order(of_input, order), _gates_in_order(of_state, order)], axis=1)


def state_names(cell: Any, states: Any) -> list[str]:
    """Return a name for each state of a cell, in flat order.

    Args:
        cell: The cell, or several on top of each other.
        states: Its states, nested as Keras has them.
    """
    if isinstance(cell, keras.layers.StackedRNNCells):
        pairs = zip(cell.cells, states, strict=True)
        return [f"{i}.{name}" for i, (c, own) in enumerate(pairs) for name in state_names(c, own)]
    count = len(keras.tree.flatten(states))
    known = any(_computes_as(cell, cls) for cls in (*_OPERATORS, ConvLSTMCell))
    return ["h", "c"][:count] if known else [f"state{i}" for i in range(count)]


# ---------------------------------------------------------------- unrolled layers


def _rolled(original: Callable[..., Any], step: Any, inputs: Any, states: Any, **options: Any) -> Any:
    """Run a layer that Keras would unroll as a loop."""
    is_unrolled, mask = options.pop("unroll", False), options.get("mask")
    if not is_unrolled or mask is None:
        return original(step, inputs, states, **options)

    # Masked, it repeats the answer before; a loop of Keras repeats the first state.
    first = jax.eval_shape(lambda x, before: step(x, before)[0], inputs[:, 0], states)

    def turn(carried: Any, now: Any) -> Any:
        before, answer = carried
        x, counts = now
        new, after = step(x, before)

        def kept(one: Any, other: Any) -> Any:
            return jnp.where(counts.reshape((*counts.shape, *(1,) * (one.ndim - 1))), one, other)

        new = kept(new, answer)
        return (keras.tree.map_structure(kept, list(after), list(before)), new), new

    start = (list(states), jnp.zeros(first.shape, first.dtype))
    xs = (jnp.swapaxes(inputs, 0, 1), jnp.swapaxes(mask.astype(bool), 0, 1))
    (after, last), answers = lax.scan(turn, start, xs, reverse=options.get("go_backwards", False))
    return last, jnp.swapaxes(answers, 0, 1), after
