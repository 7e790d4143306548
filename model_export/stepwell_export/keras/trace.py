"""`Trace`: a Keras model's `call` as a jaxpr, in which the numbers of rows and timesteps are open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from threading import RLock
from typing import Any, Final

import jax
import keras
from jax._src import config

from stepwell_export.jax.graph import JaxGraph
from stepwell_export.keras.code_decisions import CodeDecision, check_pure, has_own_code, noted
from stepwell_export.keras.layer_names import named_operations
from stepwell_export.keras.own_layers import STEP_RULES, rules_in_place
from stepwell_export.keras.recurrent import recurrent_layers
from stepwell_export.keras.replacements import quiet, spectra_as_products, stateless, timesteps_as_rows
from stepwell_export.keras.subclassed import describe_cause
from stepwell_export.patched import patched
from stepwell_export.runtime.errors import RefusedModelError

TRACING: Final = RLock()
"""Held while parts of Keras are replaced: two threads would restore each other's replacements, and so keep them."""

_SEED = "seed_generator_state"
"""Keras' name of the variable of a seed, which layers with dropout move on although they use it in training alone."""


class UntracedError(RefusedModelError):
    """The code of a model does not run on abstract arrays of some numbers of rows and timesteps."""


@dataclass(frozen=True, slots=True)
class Trace:
    """What running a model's code on abstract arrays gave.

    Attributes:
        jaxpr: The closed jaxpr; None: the code did not run to its end.
        decisions: What the model's own code decides by.
        failure: Why it did not run to its end.
    """

    jaxpr: Any
    decisions: list[CodeDecision]
    failure: RefusedModelError | None = None


def trace(
    model: Any, function: Any, specs: Sequence[Any], graph: JaxGraph, *, steps: Any = None, length: int | None = None
) -> Trace:
    """Run a model's code on abstract arrays.

    Args:
        model: The model.
        function: It, or the functional model in a Sequential.
        specs: Shape and dtype of each flat input.
        graph: Gets the rules of recurrent layers.
        steps: The number of timesteps in the specs.
        length: That which the model declares; layers that have it as a setting give as many timesteps as come in.

    Raises:
        RefusedModelError: The model changes a variable, runs Python code on values, or does something else when it is
            run again.
    """
    changed: list[Any] = []

    def run(*arrays: Any) -> Any:
        with keras.StatelessScope() as scope:
            results = function.call(keras.tree.pack_sequence_as(function._inputs_struct, list(arrays)), training=False)
        changed[:] = [v for v in model.variables if id(v) in scope.state_mapping and v.name != _SEED]
        return keras.tree.flatten(results)

    found: list[CodeDecision] = []
    inside: list[tuple[str, CodeDecision]] = []
    with _traceable(model, graph), _open_settings(model, steps, length), noted(found, inside):
        try:
            programs = [
                jax.make_jaxpr(partial(run))(*specs)  # a function of its own each time: JAX keeps what it has traced
                for _ in range(2 if has_own_code(model) else 1)
            ]
        except Exception as exc:  # noqa: BLE001  # sizes that JAX cannot compare, or whatever people's code raises
            layer = _layer_of(exc, function)
            refusal = UntracedError(
                f"{layer} cannot be traced: {describe_cause(exc)}.",
                fix="Write its `call` with `keras.ops`, for any number of rows and timesteps.",
                layer=layer,
            )
            refusal.__cause__ = exc
            return Trace(None, found or [decision for why, decision in inside if why in str(exc)], refusal)
    if not found:
        check_pure(model, programs[0], programs[-1], changed)
    return Trace(programs[0], found)


@contextmanager
def _traceable(model: Any, graph: JaxGraph) -> Iterator[None]:
    """Let a model be traced as its graph is to be."""
    layers = list(dict.fromkeys(model._flatten_layers()))
    with ExitStack() as stack:
        for context in (
            TRACING, timesteps_as_rows(model), stateless(model),
            rules_in_place(layers) if STEP_RULES else nullcontext(),
            recurrent_layers(layers, graph), named_operations(), spectra_as_products(), quiet(), _whole_tracebacks(),
            config.softmax_custom_jvp(True),
        ):  # fmt: skip
            stack.enter_context(context)
        yield


@contextmanager
def _open_settings(model: Any, steps: Any, length: int | None) -> Iterator[None]:
    """Let layers that have the declared number of timesteps as a setting give as many as come in."""

    def reshape(layer: Any) -> Any:
        def call(x: Any) -> Any:
            first, *others = layer.target_shape
            return keras.ops.reshape(x, (x.shape[0], steps if x.shape[1] == steps else first, *others))

        return call

    def repeat(x: Any) -> Any:
        return keras.ops.broadcast_to(x[:, None], (x.shape[0], steps, x.shape[1]))

    opened = [one for one in model._flatten_layers() if length is not None and "call" not in vars(one)]
    reshaping = [one for one in opened if type(one) is keras.layers.Reshape and one.target_shape[:1] == (length,)]
    repeating = [one for one in opened if type(one) is keras.layers.RepeatVector and one.n == length]
    changes = [(layer, "call", reshape(layer)) for layer in reshaping] + [
        (layer, "call", repeat) for layer in repeating
    ]
    with patched(*changes):
        yield


@contextmanager
def _whole_tracebacks() -> Iterator[None]:
    """Let Keras keep its own frames in the traceback of an error: they have the layer that fails."""
    was_on = keras.config.is_traceback_filtering_enabled()
    keras.config.disable_traceback_filtering()
    try:
        yield
    finally:
        if was_on:
            keras.config.enable_traceback_filtering()


def _layer_of(exc: BaseException, model: Any) -> str:
    """Return the innermost layer whose code fails, for a message."""
    layers: list[Any] = []
    place = exc.__traceback__
    while place is not None:
        one = place.tb_frame.f_locals.get("self")
        if isinstance(one, keras.Operation) and one is not model and one not in layers[-1:]:
            layers.append(one)
        place = place.tb_next
    if not layers:
        return f"Model {model.name!r}"
    kind = "Layer" if isinstance(layers[-1], keras.Layer) else "Operation"
    return f"{kind} {'.'.join(one.name for one in layers)!r} ({type(layers[-1]).__name__})"
