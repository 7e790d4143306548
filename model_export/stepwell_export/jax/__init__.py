"""The JAX front end: from a function over whole sequences to one verified ONNX step graph.

The function is traced to its jaxpr, in which values do not exist, and each primitive becomes operators of a sequence
graph, which the streaming pass makes a step graph of. So Flax, Equinox and plain JAX are one: a function of arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stepwell_export.required import require
from stepwell_export.runtime.errors import RefusedModelError, TensorError
from stepwell_export.runtime.manifest import Array

if TYPE_CHECKING:
    from stepwell_export.converted import ConvertedModel
    from stepwell_export.spec import StepSpec
    from stepwell_export.verify.decisions.record import Observer
    from stepwell_export.verify.parity import Progress

__all__ = ["convert"]


def convert(spec: StepSpec, *, name: str, progress: Progress | None = None) -> ConvertedModel:
    """Make a step graph of a function over whole sequences, not yet verified.

    Args:
        spec: The function, as `module`, with examples of its inputs and a `time_axis`.
        name: The model's name in its manifest.
        progress: Called as parts are done.

    Raises:
        MissingExtraError: JAX or onnx is not installed.
        RefusedModelError: The function cannot be traced, or not be stepped; names the line.
    """
    require(("jax", "onnx"), "JAX functions", extra="keras")
    import jax

    from stepwell_export.arguments import check_length, check_name
    from stepwell_export.converted import ConvertedModel
    from stepwell_export.jax import rules
    from stepwell_export.jax.capture import capture
    from stepwell_export.jax.graph import JaxGraph
    from stepwell_export.streaming.axes.inputs import vocabularies
    from stepwell_export.streaming.step import make_traced_step, traced
    from stepwell_export.verify.samplers import random_sampler

    assert rules
    check_name(name)
    check_length(spec.length)
    if progress:
        progress("tracing the function", 0, 1)
    sequences = _Sequences(spec)
    closed = capture(sequences.flat, sequences.specs, spec.length)
    graph = JaxGraph()
    avals = [var.aval for var in closed.jaxpr.invars]
    takes = [graph.take(one, aval.shape, str(aval.dtype)) for one, aval in zip(spec.inputs, avals, strict=True)]
    outputs = graph.run(closed.jaxpr, closed.consts, takes)
    names = list(spec.output_names or sequences.names(len(outputs)))
    if len(names) != len(outputs):
        raise RefusedModelError(
            f"The function returns {len(outputs)} arrays, and output_names has {len(names)}.", fix="Name each output."
        )
    sequences.timed = {one: _has_time(value.shape, spec) for one, value in zip(names, outputs, strict=True)}
    for one, value in zip(names, outputs, strict=True):
        graph.give(one, value)
    time, batch = sequences.time_axis, sequences.batch_axis
    axes = {one: (batch, time) if has else (0, None) for one, has in sequences.has_time.items()}
    step = make_traced_step(traced(graph.proto(name), axes), name=name, length=spec.length)
    ids = vocabularies(step.graph.graph)
    constant = [one for one, has in sequences.has_time.items() if not has]
    return ConvertedModel(
        step.proto,
        step.manifest,
        sequences,
        against=f"jax {jax.__version__}",
        samplers={"random": random_sampler(step.manifest, ids, constant=constant)},
        only_length=spec.length,
        rounding=step.rounding,
        windows=step.windows,
        observer=sequences.observer,
        vocabularies=ids,
        compiles=True,
    )


def _has_time(shape: tuple[Any, ...], spec: StepSpec) -> bool:
    """Whether an output has one answer for each timestep, where the inputs have them.

    Raises:
        RefusedModelError: It has neither rows and timesteps in front, nor rows alone.
    """
    time = spec.time_axis
    assert time is not None
    kinds = [str(n) for n in shape]
    if len(kinds) > 1 and kinds[time] == "t" and kinds[1 - time] == "b":
        return True
    if kinds[:1] == ["b"] and "t" not in kinds:
        return False
    raise RefusedModelError(
        f"An output has the shape ({', '.join(kinds)}); b is the number of rows, t that of timesteps. Expected "
        f"{'(b, t, ..)' if time else '(t, b, ..)'}, or (b, ..) for an answer for the whole sequence.",
        fix="Return one answer for each timestep, or the one for the sequence.",
    )


class _Sequences:
    """The function itself as the original of the comparison, on `(batch, T, ..)` by input.

    Attributes:
        time_axis: Where inputs have their timesteps; `batch_axis`: and their rows.
        has_time: Whether each input has a time axis.
        specs: Shape and dtype of each input, for `capture`.
        timed: Whether each output has an answer for each timestep.
    """

    def __init__(self, spec: StepSpec) -> None:
        import jax

        time = spec.time_axis
        if time not in {0, 1}:
            raise RefusedModelError(
                f"The time_axis of a JAX function is {time}; expected 1, (batch, time, ..), or 0, (time, batch, ..).",
                fix="Give StepSpec(function, inputs={..}, time_axis=1); states are what lax.scan carries.",
            )
        self.time_axis, self.batch_axis = time, 1 - time
        self.timed: dict[str, bool] = {}
        self._spec, self._jax = spec, jax
        examples = {name: _example(name, given) for name, given in spec.inputs.items()}
        first = next(iter(examples.values()))
        if first.ndim < 2:
            raise TensorError(
                f"The example of the first input has shape {first.shape}; expected rows and timesteps.",
                fix="Give an example (B, T, ..).",
            )
        steps = first.shape[time]
        self.has_time = {name: each.ndim > 1 and each.shape[time] == steps for name, each in examples.items()}
        self.specs: list[tuple[tuple[int | str, ...], str]] = []
        for name, each in examples.items():
            shape: list[int | str] = list(each.shape)
            if self.has_time[name]:
                shape[time], shape[1 - time] = "t", "b"
            else:
                shape[0] = "b"
            self.specs.append((tuple(shape), str(jax.dtypes.canonicalize_dtype(each.dtype))))

    def flat(self, *arrays: Any) -> list[Any]:
        """Call the function and return its arrays in order."""
        return list(self._jax.tree.leaves(self._spec.module(*arrays)))

    def names(self, count: int) -> list[str]:
        """Return the names of outputs that have none of their own."""
        return ["y"] if count == 1 else [f"y{n}" for n in range(count)]

    @property
    def observer(self) -> Observer:
        """Records the decisions of the function."""
        from stepwell_export.verify.decisions.jax import JaxObserver

        recorder = JaxObserver(self.flat, framework=str(Path(self._jax.__file__).parent))
        return lambda inputs: recorder.observe(self._given(inputs, next(iter(inputs.values())).shape[1]))

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Any]:
        """Return each output's answers."""
        from stepwell_export.verify.reference import prefix_answers

        length = next(iter(inputs.values())).shape[1]
        whole = self._run(inputs, length)
        answers: dict[str, Any] = {name: whole[name] for name, timed in self.timed.items() if timed}
        if last := [name for name, timed in self.timed.items() if not timed]:
            answers |= prefix_answers(lambda steps: self._run(inputs, steps), whole, last, length)
        return answers

    def _given(self, inputs: Mapping[str, Array], length: int) -> list[Any]:
        """Return the first timesteps of sequences as the function takes its inputs."""
        time = self.time_axis
        return [
            self._jax.numpy.asarray(np.moveaxis(inputs[name][:, :length], 1, time) if has else inputs[name][:, 0])
            for name, has in self.has_time.items()
        ]

    def _run(self, inputs: Mapping[str, Array], length: int) -> dict[str, Array]:
        found = [np.asarray(one) for one in self.flat(*self._given(inputs, length))]
        return {
            name: np.moveaxis(one, self.time_axis, 1) if timed else one
            for (name, timed), one in zip(self.timed.items(), found, strict=True)
        }


def _example(name: str, given: Any) -> Array:
    try:
        found: Array = np.asarray(given)
    except Exception as exc:
        raise TensorError(
            f"The example of input {name!r} is no array: {exc}.", fix="Give an array (B, T, ..)."
        ) from exc
    if found.dtype.kind not in "biuf" or 0 in found.shape:
        raise TensorError(
            f"The example of input {name!r} has dtype {found.dtype} and shape {found.shape}; expected numbers, and at "
            "least one row and one timestep.",
            fix="Give an array (B, T, ..).",
        )
    return found
