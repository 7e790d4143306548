"""The Keras model itself as the original of a parity check: whole sequences in, answers out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import keras
import numpy as np

from stepwell_export.converted import Activation
from stepwell_export.keras.replacements import find_wrappers, may_spread_timesteps, quiet, stateless, timesteps_as_rows
from stepwell_export.keras.sequence import ExportedStep
from stepwell_export.keras.subclassed import functional
from stepwell_export.runtime.errors import TensorError
from stepwell_export.runtime.manifest import Array
from stepwell_export.streaming.step import SequenceStep
from stepwell_export.verify.decisions.record import Observed, Observer, note_constants_of
from stepwell_export.verify.reference import PrefixAnswers, prefix_answers
from stepwell_export.verify.samplers import Sampler, random_sampler

ROUNDING = {"float16": 5e-3, "bfloat16": 5e-2}
"""How far a model that computes in these may be from the same one in float32, measured on 64 timesteps."""

PREFIXES = (1, 2, 3, 17)
"""Lengths at which an answer for a whole sequence is computed, besides the full one.

Not every length: each costs a compilation on the JAX backend.
"""

LONG = 200
"""Of sequences of this length or more, the end alone is computed."""

TIME_DISTRIBUTED = 400
UNROLLED = 64
"""The most timesteps of a model with such layers, where Keras runs, or compiles, each of them by itself."""


class KerasReference:
    """Runs a Keras model on whole sequences, from zero states, whatever its declared batch and length.

    Attributes:
        only_length: The one number of timesteps that the model takes, or runs within reason; None: any.
    """

    def __init__(self, model: Any, exported: ExportedStep) -> None:
        self._model = model
        self._exported = exported
        self._compiled: Any = None
        shapes = [tensor.shape for tensor in functional(model).inputs]
        lengths = {shape[1] for shape, facts in zip(shapes, exported.facts.values(), strict=True) if facts.time} - {
            None
        }
        self._length_is_free = not lengths
        self._spreads_timesteps = False
        if find_wrappers(model):
            self._spreads_timesteps = any(self._may_spread(length) for length in dict.fromkeys((2, *lengths)))
        self._any_length = self._length_is_free or self._runs_with(3)
        # An unrolled layer is run operation by operation: it is not run on more than it was made for.
        unrolled = any(getattr(layer, "unroll", False) for layer in model._flatten_layers())
        fixed = exported.bounded or unrolled or not self._any_length
        self.only_length = int(lengths.pop()) if lengths and fixed else None

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array | PrefixAnswers]:
        """Return each output's answers.

        Args:
            inputs: One array per input, shape `(batch, T, *shape)`.

        Returns:
            `(batch, T, *shape)` for an output of every timestep; an output of the whole sequence has
            answers for some of its beginnings.

        Raises:
            TensorError: The model takes one length only, and it is not this one.
        """
        length = next(iter(inputs.values())).shape[1]
        if self.only_length not in {None, length}:
            raise TensorError(
                f"The sequences have {length} timesteps; expected {self.only_length}, the one length that the "
                f"model {self._model.name!r} takes.",
                fix="Send sequences of that length, or build the model with None as its number of timesteps.",
            )
        timed = self._exported.timed
        whole = self._run(inputs, length)
        answers: dict[str, Array | PrefixAnswers] = {name: array for name, array in whole.items() if timed[name]}
        if last := [name for name, carries in timed.items() if not carries]:
            beginnings = PREFIXES if self._any_length and length < LONG else ()
            answers |= prefix_answers(lambda steps: self._run(inputs, steps), whole, last, length, beginnings)
        return answers

    @property
    def longest(self) -> int | None:
        """The most timesteps that the model runs within reason; None: any."""
        if any(getattr(layer, "unroll", False) for layer in self._model._flatten_layers()):
            return UNROLLED
        return TIME_DISTRIBUTED if find_wrappers(self._model) and not self._spreads_timesteps else None

    def _may_spread(self, length: int) -> bool:
        inputs = samplers(self._exported)["random"](np.random.default_rng(0), 2, length)
        with self.stateless():
            return may_spread_timesteps(self._model, self.feeds(inputs, length))

    def _runs_with(self, length: int) -> bool:
        specs = self._exported.manifest.inputs
        try:
            with quiet():  # a refusal is an answer here; JAX would also log it
                self._run({spec.name: np.zeros((1, length, *spec.shape), spec.dtype) for spec in specs}, length)
        except Exception:  # noqa: BLE001  # whatever the reason, the model does not run with this length
            return False
        return True

    def _run(self, inputs: Mapping[str, Array], length: int) -> dict[str, Array]:
        packed = self.feeds(inputs, length)
        with self.stateless(), timesteps_as_rows(self._model) if self._spreads_timesteps else nullcontext():
            if self._length_is_free:
                outputs = self._model.predict_on_batch(packed)
            else:  # `call` compiles nothing as a whole, and does not hold the length against the declared one
                outputs = self._model.call(packed, training=False)
        arrays = [np.asarray(output) for output in keras.tree.flatten(outputs)]
        return dict(zip(self._exported.timed, arrays, strict=True))

    def feeds(self, inputs: Mapping[str, Array], length: int) -> Any:
        """Return the first timesteps of sequences as the model takes its inputs."""
        facts = self._exported.facts
        arrays = [inputs[name][:, :length] if facts[name].time else inputs[name][:, 0] for name in facts]
        return keras.tree.pack_sequence_as(functional(self._model)._inputs_struct, arrays)

    @property
    def observer(self) -> Observer | None:
        """Records the decisions of the model, on the JAX backend; None: it is on another one."""
        if keras.backend.backend() != "jax":
            return None
        from stepwell_export.verify.decisions.jax import JaxObserver

        names = list(self._exported.facts)

        def run(*arrays: Any) -> Any:
            packed = self.feeds(dict(zip(names, arrays, strict=True)), arrays[0].shape[1])
            spread = timesteps_as_rows(self._model) if self._spreads_timesteps else nullcontext()
            with self.stateless(), keras.StatelessScope(), spread:  # what is traced is not to stay in variables
                return keras.tree.flatten(self._model.call(packed, training=False))

        recorder = JaxObserver(run, framework=str(Path(keras.__file__).parent))

        def observe(inputs: Mapping[str, Array]) -> Observed:
            seen = recorder.observe([inputs[name] for name in names])
            note_constants_of(self._model._flatten_layers(), ("call",), ("keras",), seen)
            seen.candidates.update(_numbers_of(functional(self._model)))
            return seen

        return observe

    def activations(self, sequences: Mapping[str, Array]) -> list[Activation]:
        """Return what each layer gives, to find the one to blame; a nested model is looked at as one layer.

        Args:
            sequences: One array per input, shape `(batch, T, *shape)`.
        """
        function, length = functional(self._model), next(iter(sequences.values())).shape[1]
        found = [
            (layer, tensor, keras.tree.flatten(layer.output)[0])
            for layer in function.layers
            if len(layer._inbound_nodes) == 1 and (tensor := _tensor_of(layer, self._exported.step)) is not None
        ]
        found = [part for part in found if _has_time(part[2].shape, length)]
        if not found:
            return []
        looked_at = keras.Model(_flat(function.inputs), [output for _, _, output in found])
        with self.stateless():
            values = keras.tree.flatten(looked_at.call(_flat(self.feeds(sequences, length)), training=False))
        return [
            Activation(f"{layer.name!r} ({type(layer).__name__})", tensor, np.asarray(value))
            for (layer, tensor, _), value in zip(found, values, strict=True)
        ]

    @contextmanager
    def stateless(self) -> Iterator[None]:
        """Let stateful layers start from zeros, and leave their own state and the compiled `predict` alone.

        A stateful model also has a fixed batch size, and on the JAX backend `predict` never moves its state.
        """
        model = self._model
        theirs, model.predict_function = model.predict_function, self._compiled
        try:
            with stateless(model):
                yield
        finally:
            self._compiled, model.predict_function = model.predict_function, theirs


def _numbers_of(function: Any) -> set[int]:
    """Return the whole numbers in the operations of a functional model that are no layers, such as ends of slices."""
    found: set[int] = set()
    for operation in function.operations:
        if isinstance(operation, keras.layers.Layer):
            continue
        given = [node.arguments.args for node in operation._inbound_nodes]
        given += [node.arguments.kwargs for node in operation._inbound_nodes]
        for value in keras.tree.flatten([given, vars(operation).get("pad_width"), vars(operation).get("shift")]):
            ends = (value.start, value.stop) if isinstance(value, slice) else (value,)
            found.update(abs(end) for end in ends if type(end) is int)
    return found


def _tensor_of(layer: Any, step: SequenceStep) -> str | None:
    """Return the step graph's tensor for what a layer gives; None where it has none, as of dropout."""
    own = [node.tensor for node in step.watched if node.output.startswith(f"{layer.name}/")]
    return own[-1] if own else None


def _flat(inputs: Any) -> Any:
    """Return a model's inputs as a functional model of the same tensors takes them."""
    arrays = keras.tree.flatten(inputs)
    return arrays if len(arrays) > 1 else arrays[0]


def _has_time(shape: tuple[int | None, ...], length: int) -> bool:
    return len(shape) > 1 and shape[1] in ({None} if len(shape) == 2 else {None, length})


def rounding(model: Any) -> float:
    """Return the rounding of the least precise layer; 0 where all compute in float32."""
    dtypes = {layer.compute_dtype for layer in model._flatten_layers()}
    return max((ROUNDING.get(dtype, 0.0) for dtype in dtypes), default=0.0)


def samplers(exported: ExportedStep) -> dict[str, Sampler]:
    """Return what to draw for verification: random data and, for a model with masks, data with masked timesteps."""
    facts = exported.facts
    ids = {name: fact.vocabulary for name, fact in facts.items() if fact.vocabulary is not None}
    draw = random_sampler(exported.manifest, ids, constant=[name for name, fact in facts.items() if not fact.time])
    masks = {name: fact.mask_value for name, fact in facts.items() if fact.mask_value is not None}
    may_begin_masked = all(fact.may_begin_masked for fact in facts.values())

    def random(rng: np.random.Generator, rows: int, steps: int) -> dict[str, Array]:
        drawn = draw(rng, rows, steps)
        for name, mask_value in masks.items() if not may_begin_masked else ():
            first = drawn[name][:, : 1 if facts[name].time else steps]
            first[first == mask_value] = 1
        return drawn

    def masked(rng: np.random.Generator, rows: int, steps: int) -> dict[str, Array]:
        drawn = random(rng, rows, steps)
        at = rng.random((rows, steps)) < 0.3
        at[:, 0] |= np.arange(rows) % 2 == 0  # some sequences begin masked
        at[:, 0] &= may_begin_masked
        for name, mask_value in masks.items():
            drawn[name][at] = mask_value
        return drawn

    return {"random": random, **({"masked": masked} if masks else {})}
