"""`LocalModel`, `LocalStream`: streams of a model file, whose state is in this program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from stepwell.addons.packed_states import non_finite_rows, read_packed_state
from stepwell.codec.strict.tensors import check_finite
from stepwell.engine.packing import finite_rows
from stepwell.engine.stepping.model_runner import model_rejected_input, non_finite_state
from stepwell.errors import ServiceError
from stepwell_client import ClientError, ModelInfo, PackedState, Stream, TensorInfo
from stepwell_client.protocol.inputs import Inputs, cast_inputs
from stepwell_client.results import StepResult
from stepwell_client.wire.outcomes import ReturnMode
from stepwell_export.runtime.errors import ModelLoadError
from stepwell_export.runtime.manifest import Array, InputSpec, Manifest, OutputSpec
from stepwell_export.runtime.state_packing import encode_packed_state
from stepwell_export.runtime.step_model import StepModel

T_co = TypeVar("T_co", covariant=True)


class _TakesState(Protocol[T_co]):
    """A stream's handle of a client."""

    def put_state(self, state: PackedState, /) -> T_co: ...


class LocalModel:
    """A model file, loaded in this program. Threads may share it; each stream is for one at a time.

    Attributes:
        manifest: The file's manifest, with labels and units.
        fingerprint: 8 bytes that identify graph, weights and state schema; a packed state has it.
    """

    def __init__(self, model: StepModel) -> None:
        """Use `LocalModel.load`."""
        self.manifest: Manifest = model.manifest
        self.fingerprint = model.fingerprint
        self._model = model
        self._dtypes = {spec.name: np.dtype(spec.dtype) for spec in self.manifest.inputs}

    @classmethod
    def load(cls, source: str | Path | bytes, *, threads: int = 1) -> LocalModel:
        """Load a model file, or its bytes.

        Args:
            source: The ONNX file that is served, or its bytes.
            threads: Threads that onnxruntime may use for one timestep.

        Raises:
            StepwellError: The file has no manifest, or cannot be loaded.
        """
        return cls(StepModel(source, threads=threads))

    def describe(self) -> ModelInfo:
        """Return the model's inputs and outputs, as `Model.describe` of a client."""
        manifest = self.manifest
        return ModelInfo(_infos(manifest.inputs), _infos(manifest.answered), manifest.latency, manifest.every)

    def stream(self, initial: PackedState | str | None = None) -> LocalStream:
        """Return a new stream.

        Args:
            initial: The packed state from which it goes on, with or without its step; None: the model's initial state.

        Raises:
            ClientError: `bad_request`: it is no packed state; `model_changed`: another model wrote it;
                `non_finite_state`.
        """
        if initial is None:
            return LocalStream(self, self._model.initial_state, 0)
        packed = PackedState(initial) if isinstance(initial, str) else initial
        return LocalStream(self, self._state_in(packed.state), packed.step)

    # ---------------------------------------------------------------- for streams

    def _advance(self, state: bytes, x: Inputs, *, chunk: bool) -> tuple[dict[str, Array], bytes]:
        """Return the predictions of a timestep or a chunk, `(T, *row)` by output, and the state after it."""
        model = self._model
        states = model.unpack(np.frombuffer(state, np.uint8)[None])
        try:
            inputs = self._inputs(x, chunk=chunk)
            if chunk:
                outputs, states = model.chunk({name: array[None] for name, array in inputs.items()}, states)
            else:
                outputs, states = model.step({name: array[None] for name, array in inputs.items()}, states)
                outputs = {name: array[:, None] for name, array in outputs.items()}
            packed = model.pack(states, rows=1)
            named_outputs = {f"output {name}": array for name, array in outputs.items()}
            if bad := finite_rows(named_outputs | model.unpack(packed))[1]:
                raise non_finite_state(bad[0])
        except ModelLoadError as exc:
            raise _client_error(model_rejected_input(exc)) from exc
        except ServiceError as exc:
            raise _client_error(exc) from exc
        return {name: array[0] for name, array in outputs.items()}, packed.tobytes()

    def _inputs(self, x: Inputs, *, chunk: bool) -> dict[str, Array]:
        """Return the inputs as arrays of the declared dtypes, `(*row)` or `(T, *row)`; NaN for missing values."""
        given = cast_inputs(x, self._dtypes)
        specs = {spec.name: spec for spec in self.manifest.inputs}
        if unknown := sorted(given.keys() - specs.keys()):
            raise ClientError("bad_input", f"The model has no input {unknown[0]!r}; it has {', '.join(specs)}.")
        lengths = {len(array) for array in given.values() if array.ndim} if chunk else set()
        if chunk and (len(lengths) != 1 or 0 in lengths):
            raise ClientError(
                "bad_input",
                f"The inputs have {sorted(lengths)} timesteps; expected at least 1, and the same number in each input.",
                fix="Give one row for each timestep.",
            )
        shape_of = {name: (*lengths, *spec.row_shape) for name, spec in specs.items()}
        for name, spec in specs.items():
            if name not in given:
                if spec.missing != "nan":
                    raise ClientError(
                        "bad_input", f"Input {name!r} is missing.", fix="Give it; it may have no missing values."
                    )
                given[name] = np.full(shape_of[name], np.nan, spec.dtype)
            elif given[name].shape != shape_of[name]:
                found, expected = list(given[name].shape), list(shape_of[name])
                raise ClientError("bad_input", f"Input {name!r} has shape {found}; expected {expected}.")
        return {name: check_finite(given[name], spec, f"Input {name!r}") for name, spec in specs.items()}

    def _state_in(self, text: str) -> bytes:
        try:
            packed = read_packed_state(text)
        except ServiceError as exc:
            raise _client_error(exc) from exc
        if packed.fingerprint != self.fingerprint:
            raise ClientError(
                "model_changed",
                f"The state is of model {packed.fingerprint.hex()}; this is {self.fingerprint.hex()}.",
                fix="Load the file of the version that wrote the state.",
            )
        if len(packed.state) != self._model.state_bytes:
            found, expected = len(packed.state), self._model.state_bytes
            raise ClientError("bad_request", f"The state has {found} bytes of states; expected {expected}.")
        if errors := non_finite_rows(self._model.unpack(np.frombuffer(packed.state, np.uint8)[None])):
            raise _client_error(errors[0])
        return packed.state


class LocalStream:
    """A stream of a `LocalModel`. A call that fails leaves its state as it was.

    Attributes:
        model: Its model.
        step_count: Timesteps that it has consumed.
    """

    def __init__(self, model: LocalModel, state: bytes, step_count: int) -> None:
        """Use `LocalModel.stream`."""
        self.model = model
        self.step_count = step_count
        self._state = state

    @classmethod
    def from_stream(cls, model: LocalModel, stream: Stream) -> LocalStream:
        """Return a stream that goes on from the state of a service's stream, which stays as it is.

        With the client for asyncio: `model.stream(await stream.packed_state())`.

        Raises:
            ClientError: `model_changed`: the stream is of another model; or as for `Stream.packed_state`.
        """
        return model.stream(stream.packed_state())

    def step(self, x: Inputs) -> StepResult:
        """Consume one timestep and return the prediction.

        Args:
            x: Shape `(*row)` per input; converted to the model's dtypes if that loses no value.

        Raises:
            ClientError: `bad_input`, `non_finite`: the input is rejected; `non_finite_state`: the model computed NaN or
                infinity.
        """
        outputs, self._state = self.model._advance(self._state, x, chunk=False)
        self.step_count += 1
        return StepResult({name: array[-1] for name, array in outputs.items()}, self.step_count, "")

    def steps(self, xs: Inputs, returns: ReturnMode = "all") -> StepResult:
        """Consume a chunk of timesteps; all of them, or none.

        Args:
            xs: Shape `(T, *row)` per input.
            returns: Which predictions to return: `all`, the `last`, or `none`.

        Raises:
            ClientError: As for `step`.
        """
        outputs, self._state = self.model._advance(self._state, xs, chunk=True)
        self.step_count += len(next(iter(outputs.values())))
        if returns != "all":
            outputs = {name: array[-1] for name, array in outputs.items() if returns == "last"}
        return StepResult(outputs, self.step_count, "")

    def reset(self) -> StepResult:
        """Return to the model's initial state and to step 0."""
        self._state, self.step_count = self.model._model.initial_state, 0
        return StepResult({}, 0, "")

    def state(self) -> PackedState:
        """Return the state as one text, with the step."""
        return PackedState(encode_packed_state(self.model.fingerprint, self._state), self.step_count)

    def fork(self) -> LocalStream:
        """Return another stream with this one's state and step."""
        return LocalStream(self.model, self._state, self.step_count)

    def move_to(self, stream: _TakesState[T_co]) -> T_co:
        """Put the state into a service's stream, which goes on from it: what its `put_state` returns.

        Args:
            stream: A stream's handle, `client.model(M).stream(S)`; of the client for asyncio, await the result.

        Raises:
            ClientError: `model_changed`: the service does not have this model; or as for `Stream.put_state`.
        """
        return stream.put_state(self.state())


def _infos(specs: list[InputSpec] | list[OutputSpec]) -> list[TensorInfo]:
    def info(spec: InputSpec | OutputSpec) -> TensorInfo:
        extra: Mapping[str, Any] = spec.model_extra or {}
        missing = spec.missing if isinstance(spec, InputSpec) else "refuse"
        latency = spec.latency if isinstance(spec, OutputSpec) else None
        shape, labels, unit = list(spec.shape), extra.get("labels"), extra.get("unit")
        return TensorInfo(spec.name, spec.dtype, shape, labels, unit, missing, latency)

    return [info(spec) for spec in specs]


def _client_error(error: ServiceError) -> ClientError:
    return ClientError(error.code, error.problem, fix=error.fix)
