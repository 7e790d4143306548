"""`StepModel`: a step graph on onnxruntime, as a pure function from rows to rows.

`(inputs, states) -> (outputs, states)` on a batch of rows; it remembers no stream. Every array that goes in or
comes out has the batch on axis 0, wherever the graph has it. The class that verifies a model at export is the
class that serves it.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort

from stepwell_export.runtime.errors import ManifestError, ModelLoadError, ModelTimeoutError
from stepwell_export.runtime.manifest import METADATA_KEY, Array, Manifest, TensorSpec, sidecar_of
from stepwell_export.runtime.operator_scan import check_operators, weight_files
from stepwell_export.runtime.random_ops import check_random_operators
from stepwell_export.runtime.session import open_session
from stepwell_export.runtime.state_packing import (
    TensorLayout,
    chunk_from_graph,
    chunk_to_graph,
    from_graph,
    initial_states,
    pack,
    pack_layout,
    to_graph,
    unpack,
)

# ---------------------------------------------------------------- rows alone and together

# A declared symbolic batch axis proves nothing: published models exist that declare one and fail on two rows. Nor do
# equal samples prove that rows never meet; exporting and adopting read that from the operators
# (`stepwell_export.structure`), and this is the check of what was loaded, which needs no onnx package.

Run = Callable[[Mapping[str, Array], Mapping[str, Array]], tuple[dict[str, Array], dict[str, Array]]]
"""`(inputs, states)` to `(outputs, next states)`, the batch on axis 0."""

_STEPS = 3  # rows that mix in the state alone are equal at the first step, where all states are


def rows_are_independent(manifest: Manifest, initial_states: Callable[[int], dict[str, Array]], run: Run) -> bool:
    """Return whether two rows run together equal each run alone; run one alone in any case."""
    rng = np.random.default_rng(0)
    steps = [{spec.name: random_rows(rng, spec, (2,)) for spec in manifest.inputs} for _ in range(_STEPS)]
    first, second = (
        _follow(run, [{name: rows[r : r + 1] for name, rows in inputs.items()} for inputs in steps], initial_states(1))
        for r in range(2)
    )
    axes = [spec.batch_axis for spec in (*manifest.inputs, *manifest.answered)]
    axes += [state.batch_axis for state in manifest.states]
    if manifest.batch.mode == "single" or manifest.batch.max < 2 or None in axes:
        return False
    try:
        together = _follow(run, steps, initial_states(2))
    except ModelLoadError:
        return False
    random = {output.name for output in manifest.outputs if output.kind == "random"}
    return all(
        nearly_equal(
            np.stack([both[name] for both in together]),
            np.stack([np.concatenate([one[name], other[name]]) for one, other in zip(first, second, strict=True)]),
        )
        for name in together[0].keys() - random
    )


def nearly_equal(found: Array, expected: Array) -> bool:
    """Return whether two arrays differ by no more than rounding; integers and booleans must be equal.

    Running rows together takes other kernels than running one alone, with another order of additions. How much that
    makes follows the largest of the values.
    """
    if found.shape != expected.shape:
        return False
    if found.dtype.kind != "f":
        return np.array_equal(found, expected)
    eps = float(np.finfo(found.dtype).eps)
    wide, size = np.float64, magnitude(np.stack([found, expected]))
    return np.allclose(
        found.astype(wide), expected.astype(wide), rtol=max(1e-4, 8 * eps), atol=max(1e-5, 8 * eps) * size,
        equal_nan=True,
    )  # fmt: skip


def random_rows(rng: np.random.Generator, spec: TensorSpec, lead: tuple[int, ...]) -> Array:
    """Draw rows of a tensor, shape `(*lead, *shape)`; integers are 0 or 1, valid in every vocabulary and flag."""
    shape = (*lead, *spec.row_shape)
    if np.dtype(spec.dtype).kind == "f":
        return rng.standard_normal(shape).astype(spec.dtype)
    return rng.integers(0, 2, shape).astype(spec.dtype)


def _follow(run: Run, steps: Sequence[Mapping[str, Array]], states: dict[str, Array]) -> list[dict[str, Array]]:
    """Run steps with the states fed back; return each step's outputs and states by name."""
    seen = []
    for inputs in steps:
        outputs, states = run(inputs, states)
        seen.append({**outputs, **{f"state {name}": value for name, value in states.items()}})
    return seen


def magnitude(values: Array) -> float:
    """Return the largest magnitude of finite values; 1 where there is none but zero."""
    sizes = np.abs(values.astype(np.float64))
    return float(sizes.max(initial=0.0, where=np.isfinite(sizes))) or 1.0


MOST_STEPS = 512
"""Timesteps in one run; a longer chunk takes several, so that `terminate` is heard and memory stays bounded."""

MOST_ROWS = 16_384
"""Rows times timesteps in one run of several timesteps."""

_Outcome = tuple[dict[str, Array], dict[str, Array]]
_Run = Callable[[Mapping[str, Array], Mapping[str, Array], ort.RunOptions], _Outcome]


class StepModel:
    """One onnxruntime session that runs a step graph.

    Attributes:
        manifest: What the graph takes, gives and carries.
        fields: The states in packed order; windows come last.
        state_bytes: Bytes of one packed state row.
        fingerprint: 8 bytes that name the graph, its weights and its state schema.
        weight_files: Files that hold weights of the graph.
        batched: Whether rows are run together. Decided by the manifest and by a probe at load: two
            different rows run together must equal each run alone.
    """

    def __init__(
        self,
        source: Path | str | bytes,
        manifest: Manifest | None = None,
        *,
        threads: int = 1,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        """Load, check and probe a step graph.

        Args:
            source: The ONNX file, or its bytes.
            manifest: Overrides the one in the file and the sidecar.
            threads: Threads that onnxruntime may use inside one run.
            providers: onnxruntime execution providers, best first.

        Raises:
            ManifestError: No manifest, or one that contradicts the graph.
            ModelLoadError: The graph has operators or files that are not taken, a state that is random, onnxruntime
                refuses it, or it fails on zeros.
        """
        if not isinstance(source, str | Path | bytes):
            raise ModelLoadError(
                f"The model is of type {type(source).__name__}; expected a path or bytes.", fix="Give an .onnx file."
            )
        source = Path(source) if isinstance(source, str) else source
        self._where = str(source) if isinstance(source, Path) else "the given bytes"
        contents = check_operators(source)
        self.weight_files = weight_files(source, contents) if isinstance(source, Path) else []
        self._open = partial(
            open_session, source, where=self._where, contents=contents, threads=threads, providers=providers
        )
        self._session = self._open()
        self.manifest = manifest or self._read_manifest(source)
        check_random_operators(source, contents, self.manifest)
        self._calls: dict[int, tuple[ort.RunOptions, float]] = {}
        self._inputs = [TensorLayout(i.name, i.row_shape, i.graph_row_shape, i.batch_axis) for i in self.manifest.fed]
        self._states = [TensorLayout(s.input, s.row_shape, s.row_shape, s.batch_axis) for s in self.manifest.states]
        self._outputs = [
            TensorLayout(o.name, o.row_shape, o.graph_row_shape, o.batch_axis) for o in self.manifest.answered
        ]
        self._windows = {window.input: window for window in self.manifest.windows}
        self._constants = {name: spec.array() for name, spec in self.manifest.constants.items()}
        check_signature(self.manifest, self._session, self._where)
        self._chunks: ort.InferenceSession | None = None
        if self.manifest.time.chunk == "dynamic" and not self._windows:
            self._split_by_time()
        self.fields = pack_layout(self.manifest)
        self.state_bytes = sum(field.nbytes for field in self.fields)
        self.fingerprint = self._fingerprint(source)
        self._fetch = [o.graph_name for o in self.manifest.answered] + [s.output for s in self.manifest.states]
        self._initial: bytes = self.pack({f.name: f.initial[None] for f in self.fields}, rows=1)[0].tobytes()
        self.batched = rows_are_independent(
            self.manifest,
            self.initial_states,
            lambda inputs, states: self._run(self._with_learn(inputs, 1, True), states, ort.RunOptions()),
        )
        self._most_rows = self.manifest.batch.max if self.batched else 1
        self._has_learn = self.manifest.learn is not None
        if self.chunked:
            zeros = {i.name: np.zeros((1, 2, *i.row_shape), i.dtype) for i in self.manifest.inputs}
            self.chunk(zeros, self.initial_states(1))

    # ---------------------------------------------------------------- what people call

    @property
    def chunked(self) -> bool:
        """Whether a chunk is one run; else it is run timestep by timestep."""
        return self._chunks is not None

    @property
    def initial_state(self) -> bytes:
        """One packed state row that a new stream starts from."""
        return self._initial

    def step(
        self, inputs: Mapping[str, Array], states: Mapping[str, Array], *, learn: bool = True
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Consume one timestep of every row.

        Args:
            inputs: One array per manifest input, shape `(rows, *shape)`, its declared dtype.
            states: One array per state field, shape `(rows, *shape)`; see `initial_states`.
            learn: Whether stages that learn do so; `inputs` may have it for each row, by the manifest's name for it.

        Returns:
            The answered outputs, shape `(rows, *shape)`, and the next states, shaped as `states`.

        Raises:
            ModelTimeoutError: `terminate` was called during the run.
            ModelLoadError: onnxruntime failed on these values.
        """
        if self._has_learn:
            inputs = self._with_learn(inputs, 1, learn)
        fits = len(next(iter(inputs.values()))) <= self._most_rows
        return self._switched(self._run if fits else partial(self._run_rows, self._run), inputs, states)

    def chunk(
        self, inputs: Mapping[str, Array], states: Mapping[str, Array], *, learn: bool = True
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Consume T timesteps of every row, in order.

        Args:
            inputs: One array per manifest input, shape `(rows, T, *shape)`, T >= 1.
            states: As for `step`.
            learn: As for `step`.

        Returns:
            The answered outputs, shape `(rows, T, *shape)`, and the states after the last timestep.

        Raises:
            ModelTimeoutError: `terminate` was called during the chunk.
            ModelLoadError: onnxruntime failed on these values.
        """
        run = self._in_pieces if self.chunked else self._step_through
        return self._switched(run, self._with_learn(inputs, 2, learn), states)

    def initial_states(self, rows: int) -> dict[str, Array]:
        """Return the states that `rows` new streams start from, shape `(rows, *shape)` each."""
        return initial_states(self.fields, rows)

    def pack(self, states: Mapping[str, Array], *, rows: int) -> Array:
        """Pack states into rows of bytes as the store keeps them.

        A value too big for `store_dtype` becomes an infinity, so look for those in what `unpack` gives back.

        Returns:
            Shape `(rows, state_bytes)` uint8.
        """
        return pack(self.fields, states, rows)

    def unpack(self, packed: Array) -> dict[str, Array]:
        """Undo `pack`; `packed` has shape `(rows, state_bytes)` uint8."""
        return unpack(self.fields, packed)

    def terminate(self, *, longer_than: float = 0.0) -> None:
        """End the `step` and `chunk` calls that go on in other threads; they raise `ModelTimeoutError`.

        Each call has a switch of its own, so that a late one never ends the next call.

        Args:
            longer_than: Seconds; calls that began later are left alone.
        """
        now = time.monotonic()
        for switch, began in list(self._calls.values()):
            if now - began >= longer_than:
                switch.terminate = True

    # ---------------------------------------------------------------- running

    def _with_learn(self, inputs: Mapping[str, Array], axes: int, learn: bool) -> Mapping[str, Array]:
        """Return inputs with `learn`, which marks the timesteps that are learned from, where the graph has it."""
        name = self.manifest.learn
        if name is None or name in inputs:
            return inputs
        return {**inputs, name: np.full(next(iter(inputs.values())).shape[:axes], learn)}

    def _switched(self, run: _Run, inputs: Mapping[str, Array], states: Mapping[str, Array]) -> _Outcome:
        """Make a call, with a switch within reach of `terminate`."""
        thread, switch = threading.get_ident(), ort.RunOptions()
        self._calls[thread] = switch, time.monotonic()
        try:
            return run(inputs, states, switch)
        finally:
            del self._calls[thread]

    def _in_pieces(self, inputs: Mapping[str, Array], states: Mapping[str, Array], switch: ort.RunOptions) -> _Outcome:
        """Run a chunk, in as few runs as it may."""
        rows, length = next(iter(inputs.values())).shape[:2]
        piece = max(1, min(MOST_STEPS, MOST_ROWS // max(rows, 1)))
        if length <= piece:
            return self._run_rows(self._run_chunk, inputs, states, switch)
        outputs: list[dict[str, Array]] = []
        for t in range(0, length, piece):
            part = {name: array[:, t : t + piece] for name, array in inputs.items()}
            out, states = self._run_rows(self._run_chunk, part, states, switch)
            outputs.append(out)
        return {name: np.concatenate([out[name] for out in outputs], axis=1) for name in outputs[0]}, dict(states)

    def _step_through(
        self, inputs: Mapping[str, Array], states: Mapping[str, Array], switch: ort.RunOptions
    ) -> _Outcome:
        """Run a chunk timestep by timestep."""
        outputs: list[dict[str, Array]] = []
        for t in range(next(iter(inputs.values())).shape[1]):
            out, states = self._run_rows(self._run, {n: a[:, t] for n, a in inputs.items()}, states, switch)
            outputs.append(out)
        return {name: np.stack([out[name] for out in outputs], axis=1) for name in outputs[0]}, dict(states)

    def _run_rows(
        self, run: _Run, inputs: Mapping[str, Array], states: Mapping[str, Array], switch: ort.RunOptions
    ) -> _Outcome:
        """Run all rows, as many together as the model can take."""
        rows, most = len(next(iter(inputs.values()))), self._most_rows
        if rows <= most:
            return run(inputs, states, switch)
        parts = [run(_rows(inputs, r, r + most), _rows(states, r, r + most), switch) for r in range(0, rows, most)]
        return stacked([p[0] for p in parts]), stacked([p[1] for p in parts])

    def _run(self, inputs: Mapping[str, Array], states: Mapping[str, Array], switch: ort.RunOptions) -> _Outcome:
        rows = len(next(iter(inputs.values())))
        feeds = dict(self._constants)
        joined: dict[str, Array] = {}
        for place in self._inputs:
            row, graph_row = inputs[place.name], place.graph_row
            if (window := self._windows.get(place.name)) is not None:
                row = np.concatenate([states[window.state_name], row], axis=window.axis + 1)
                joined[place.name], graph_row = row, row.shape[1:]
            feeds[place.name] = to_graph(row, graph_row, place.batch_axis)
        for place in self._states:
            feeds[place.name] = to_graph(states[place.name], place.graph_row, place.batch_axis)
        values = self._call_session(self._session, feeds, switch)
        count = len(self._outputs)
        outputs = {p.name: from_graph(v, p, rows) for p, v in zip(self._outputs, values[:count], strict=True)}
        next_states = {p.name: from_graph(v, p, rows) for p, v in zip(self._states, values[count:], strict=True)}
        for name, row in joined.items():
            window = self._windows[name]
            length = row.shape[window.axis + 1]
            next_states[window.state_name] = np.take(row, range(length - window.context, length), axis=window.axis + 1)
        return outputs, next_states

    def _run_chunk(self, inputs: Mapping[str, Array], states: Mapping[str, Array], switch: ort.RunOptions) -> _Outcome:
        """Run `(rows, T, *shape)` inputs in one run of a graph with a time axis."""
        assert self._chunks is not None
        rows, length = next(iter(inputs.values())).shape[:2]
        feeds = dict(self._constants)
        for place in self._timed_inputs:
            feeds[place.name] = chunk_to_graph(inputs[place.name], place)
        for place in self._states:
            feeds[place.name] = to_graph(states[place.name], place.graph_row, place.batch_axis)
        values = self._call_session(self._chunks, feeds, switch)
        count = len(self._outputs)
        answers = zip(self._outputs, values[:count], strict=True)
        outputs = {p.name: chunk_from_graph(value, p, rows, length) for p, value in answers}
        return outputs, {p.name: from_graph(v, p, rows) for p, v in zip(self._states, values[count:], strict=True)}

    def _call_session(
        self, session: ort.InferenceSession, feeds: Mapping[str, Array], switch: ort.RunOptions
    ) -> list[Array]:
        try:
            values: list[Array] = session.run(self._fetch, feeds, switch)
        except Exception as exc:
            if switch.terminate:
                raise ModelTimeoutError(
                    "The model run took longer than allowed and was ended.",
                    fix="Try again; raise `run_timeout_s` if the model is this slow by nature.",
                ) from exc
            raise ModelLoadError(
                f"onnxruntime failed in {self._where}: {str(exc).strip()}.",
                fix="Check the manifest with `stepwell inspect`, or export the model again.",
            ) from exc
        return values

    # ---------------------------------------------------------------- loading

    def _split_by_time(self) -> None:
        """Keep the session for chunks, and have another one for single timesteps.

        Told that the time axis has length 1, onnxruntime takes away all that is there for chunks alone. Weights are
        in memory twice then.
        """
        self._chunks = self._session
        shapes = {given.name: given.shape for given in self._session.get_inputs()}
        times = {shapes[p.name][0 if p.batch_axis is None else p.batch_axis + 1] for p in self._inputs}
        names = [name for name in times if isinstance(name, str)]
        if names:
            self._session = self._open(lengths=dict.fromkeys(names, 1))
        self._timed_inputs = self._inputs
        self._inputs = [place.with_time() for place in self._inputs]

    def _read_manifest(self, source: Path | bytes) -> Manifest:
        if isinstance(source, Path) and (sidecar := sidecar_of(source)).is_file():
            return Manifest.from_json(sidecar.read_bytes(), where=str(sidecar))
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise ManifestError(
                f"{self._where} has no manifest: expected metadata {METADATA_KEY!r} in the file or a sidecar "
                "beside it.",
                fix="Run `stepwell adopt` on a graph that already is stepwise, else `stepwell export`.",
            )
        return Manifest.from_json(text, where=self._where)

    def _fingerprint(self, source: Path | bytes) -> bytes:
        """Hash the graph, the weights kept outside it, and what the manifest declares of states."""
        digest = hashlib.blake2b(source if isinstance(source, bytes) else b"", digest_size=8)
        for path in (source, *self.weight_files) if isinstance(source, Path) else ():
            with path.open("rb") as file:
                while piece := file.read(2**20):
                    digest.update(piece)
        schema = [
            [f.name, f.dtype.name, f.store_dtype.name, list(f.shape), f.initial.tobytes().hex()] for f in self.fields
        ]
        constants = {name: spec.model_dump(mode="json") for name, spec in self.manifest.constants.items()}
        digest.update(json.dumps([schema, constants], sort_keys=True).encode())
        return digest.digest()


def _rows(arrays: Mapping[str, Array], start: int, stop: int) -> dict[str, Array]:
    return {name: array[start:stop] for name, array in arrays.items()}


def stacked(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Return rows that were run one after another as one batch."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# ---------------------------------------------------------------- the manifest and the graph

ORT_TYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16",
    "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(int16)": "int16", "tensor(int8)": "int8",
    "tensor(uint64)": "uint64", "tensor(uint32)": "uint32", "tensor(uint16)": "uint16",
    "tensor(uint8)": "uint8", "tensor(bool)": "bool",
}  # fmt: skip


def check_signature(manifest: Manifest, session: ort.InferenceSession, where: str) -> None:
    """Compare names and dtypes of the manifest with the graph's own (declared shapes may lie).

    Args:
        manifest: What is declared.
        session: The graph.
        where: What it was loaded from, for the message.

    Raises:
        ManifestError: They differ.
    """
    takes = {i.name: ORT_TYPES.get(i.type, i.type) for i in session.get_inputs()}
    gives = {o.name: ORT_TYPES.get(o.type, o.type) for o in session.get_outputs()}
    told_in = {i.name: i.dtype for i in manifest.fed}
    told_in |= {s.input: s.dtype for s in manifest.states}
    told_in |= {name: spec.dtype for name, spec in manifest.constants.items()}
    told_out = {o.graph_name: o.dtype for o in manifest.outputs} | {s.output: s.dtype for s in manifest.states}
    problems = [f"input {n!r} of the graph is not in the manifest" for n in takes.keys() - told_in.keys()]
    for told, real, what in ((told_in, takes, "input"), (told_out, gives, "output")):
        for name, dtype in told.items():
            if name not in real:
                problems.append(f"{what} {name!r} is not in the graph, which has {sorted(real)}")
            elif real[name] != dtype:
                problems.append(f"{what} {name!r} is {dtype} in the manifest and {real[name]} in the graph")
    if problems:
        raise ManifestError(
            f"The manifest of {where} does not fit the graph: {'; '.join(sorted(problems))}.",
            fix="Write it again with `stepwell adopt`, or mend it by hand.",
        )
