"""`ConvertedModel`: a step graph on its way to being written, and its comparison with the original.

Where they differ, the first layer that does is named.
"""

from __future__ import annotations

import contextlib
import copy
import math
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stepwell_export.arguments import check_tolerance, check_type
from stepwell_export.graph.nodes import all_graphs, mentioned
from stepwell_export.runtime.errors import ParityError, StepwellError
from stepwell_export.runtime.manifest import METADATA_KEY, Array, Manifest, OutputSpec
from stepwell_export.runtime.outside_weights import file_bytes, to_array, weights_of
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.verify import error_growth
from stepwell_export.verify.decisions.record import Observer
from stepwell_export.verify.parity import (
    FEW_LENGTHS,
    MOST_LENGTHS,
    ROWS,
    SEEDS,
    STEPS,
    DifferentAnswerError,
    verify_parity,
)
from stepwell_export.verify.reference import Progress, ReferenceModel
from stepwell_export.verify.report import ParityReport
from stepwell_export.verify.runners import stepped
from stepwell_export.verify.samplers import Sampler, random_sampler
from stepwell_export.verify.tolerance import DEFAULT, Tolerance, difference, largest

if TYPE_CHECKING:
    import onnx

    from stepwell_export.structure.rows import RowAnalysis
    from stepwell_export.verify.parity import DifferentAnswerError
    from stepwell_export.verify.report import ChunkChoice

# ---------------------------------------------------------------- which layer is to blame


@dataclass(frozen=True, slots=True)
class Activation:
    """What one layer of the original gives, and where the step graph has it.

    Attributes:
        layer: The layer, for people: its name and class.
        tensor: The step graph's tensor.
        values: The original's, shape `(batch, T, *row)`.
    """

    layer: str
    tensor: str
    values: Array


_BY_ZERO = (
    "Let the divisor be a positive number where it is 0, as by torch.clamp(n, min=1) or ops.maximum(n, 1) of a number "
    "of timesteps."
)

LayerOutputs = Callable[[Mapping[str, Array]], Sequence[Activation]]
"""Whole sequences to what the original's layers give for them, in the order in which they are computed."""


def localize_layer(
    probe: LayerOutputs | None,
    proto: onnx.ModelProto,
    manifest: Manifest,
    failure: DifferentAnswerError,
    tolerance: Tolerance,
) -> str:
    """Return a sentence that names the first layer whose output differs at or before the failing timestep."""
    if probe is None:
        return "The layer that differs first is unknown: the original's layers cannot be looked into here."
    try:
        activations = [a for a in probe(failure.sequence) if a.values.ndim > 1]
        got = _run(proto, manifest, failure.sequence, activations)
    except Exception as exc:  # noqa: BLE001  # the probe is the framework's code; what failed first is what matters
        reason = exc.problem if isinstance(exc, StepwellError) else f"{type(exc).__name__}: {exc}"
        return f"The layer that differs first is unknown: looking into the original's layers failed ({reason[:200]})."
    if not got:
        return "The layer that differs first is unknown: no layer's output stands in the step graph under its name."
    agreed: list[str] = []
    for activation in activations:
        if activation.tensor not in got:
            continue
        want = activation.values[:, : failure.step]
        off = difference(got[activation.tensor][:, : failure.step].reshape(want.shape), want)
        bad = tolerance.on(want).beyond(off, want)
        if bad.any():
            step = int(np.argmax(bad.any(axis=tuple(i for i in range(bad.ndim) if i != 1)))) + 1
            before = f"the {len(agreed)} looked at before it agree" if agreed else "it is the first looked at"
            return (
                f"The likeliest layer is {activation.layer}: its output differs first, by "
                f"{largest(off[:, step - 1]):.3g} at timestep {step}; {before}."
            )
        agreed.append(activation.layer)
    return f"The {len(agreed)} layers that can be looked at agree, so the difference comes in behind {agreed[-1]}."


def locate_not_finite(proto: onnx.ModelProto, manifest: Manifest, failure: DifferentAnswerError) -> str:
    """Return a sentence that names the first node of the step graph whose values add up to what was found.

    Args:
        proto: The step graph.
        manifest: Its manifest.
        failure: What was found, NaN or infinity, and where.

    Returns:
        Empty where there is no such node, or the graph has tensors that are no numbers.
    """
    import onnx

    graph, nodes = copy.deepcopy(proto), {next(filter(None, node.output)): node for node in proto.graph.node}
    probes = {name: f"probe/{i}" for i, name in enumerate(nodes)}
    for name, probe in probes.items():
        cast = onnx.helper.make_node("Cast", [name], [f"{probe}.float"], to=onnx.TensorProto.FLOAT)
        total = onnx.helper.make_node("ReduceSum", [f"{probe}.float"], [probe], keepdims=0)
        graph.graph.node.extend([cast, total])
        graph.graph.output.append(onnx.helper.make_tensor_value_info(probe, onnx.TensorProto.FLOAT, None))
    outputs = [OutputSpec(name=probe, dtype="float32", shape=[]) for probe in probes.values()]
    looked_at = manifest.model_copy(update={"outputs": [*manifest.outputs, *outputs]})
    sequence = {name: values[:, : failure.step] for name, values in failure.sequence.items()}
    try:
        answers, _ = stepped(StepModel(file_bytes(graph), looked_at), sequence)
    except StepwellError:
        return ""
    sums = {name: answers[probe][0, -1] for name, probe in probes.items()}
    first = next((name for name, total in sums.items() if np.array_equal(total, failure.got, equal_nan=True)), None)
    if first is None:
        return ""
    inverse = next(
        (name for name in nodes[first].input if name in nodes and nodes[name].op_type == "Reciprocal"), first
    )
    node = nodes[first if np.isfinite(sums[inverse]) else inverse]
    if node.op_type not in {"Div", "Reciprocal"}:
        return f"It comes from {mentioned(node)}."
    return f"It comes from {mentioned(node)}, which divides by 0. {_BY_ZERO}"


def _run(
    proto: onnx.ModelProto, manifest: Manifest, sequence: Mapping[str, Array], activations: Sequence[Activation]
) -> dict[str, Array]:
    """Return the step graph's own values by tensor, shape `(1, T, ...)`; those that it does not have are left out."""
    import onnx

    graph = copy.deepcopy(proto)
    made = {name for node in graph.graph.node for name in node.output}
    kept = [a for a in activations if a.tensor in made]
    if not kept:
        return {}
    outputs = []
    for i, activation in enumerate(kept):
        dtype = "float32" if activation.values.dtype.kind == "f" else activation.values.dtype.name
        row = list(activation.values.shape[2:])
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        graph.graph.node.append(onnx.helper.make_node("Cast", [activation.tensor], [f"probe/{i}"], to=kind))
        graph.graph.output.append(onnx.helper.make_tensor_value_info(f"probe/{i}", kind, None))
        outputs.append(OutputSpec(name=f"probe/{i}", dtype=dtype, shape=row))
    looked_at = manifest.model_copy(update={"outputs": [*manifest.outputs, *outputs]})
    values, _ = stepped(StepModel(file_bytes(graph), looked_at), sequence)
    return {activation.tensor: values[f"probe/{i}"] for i, activation in enumerate(kept)}


_OF_NONE = (
    "Nothing was written. Let the original give a number there, as by torch.nan_to_num(x[:, 7:].mean(1)) or "
    "ops.nan_to_num(ops.mean(x[:, 7:], axis=1)). A mean may take the last timesteps instead, x[:, -7:].mean(1): there "
    "is one of them from the first timestep on. PyTorch's std and var need two: write x.var(1, correction=0)."
)
_SHORT_WINDOW = (
    "The model takes the last {n} timesteps, x[:, -{n}:], and a stream has fewer before timestep {n}: there the "
    "original computes with these alone, and the step graph with zeros in front of them."
)
_PAD_WINDOW = (
    "Nothing was written. Pad zeros in front: F.pad(x, (0, 0, {past}, 0))[:, -{n}:] in PyTorch, "
    "ZeroPadding1D(({past}, 0))(x)[:, -{n}:] in Keras. Each timestep then has the answer for the window that ends with "
    "it."
)

_NO_LONGER = "the original was asked for no more"

LEARNED_STEPS = 2000
"""Timesteps over which a graph that learns is compared with the twins of its stages."""

UserData = Mapping[str, Array] | Callable[[Manifest], Mapping[str, Array]]


@dataclass(frozen=True, slots=True)
class Learned:
    """How a step graph that learns is compared: the twin of a stage is given the graph's own values.

    Attributes:
        front: The graph in front of what learns, whose answers are the values that it reads; None: those are inputs.
        twin: Makes the original, given what runs `front`.
        long_steps: Timesteps of the long run.
        is_covered: Whether what learns in `front` is compared with the whole, too.
    """

    front: ConvertedModel | None
    twin: Callable[[StepModel | None], ReferenceModel]
    long_steps: int
    is_covered: bool = False

    def front_steps(self, long_steps: int | None) -> int | None:
        """Return the timesteps of the long run of `front`."""
        return error_growth.STEPS if self.is_covered and long_steps is None else long_steps


@dataclass(frozen=True, slots=True)
class ConvertedModel:
    """What a front end makes of a trained model.

    Attributes:
        proto: The step graph, without manifest; recurrences may be LSTM, GRU and RNN operators, for chunks run them so.
            Large weights may lie outside it; see `stepwell_export.runtime.outside_weights`.
        manifest: What it takes, carries and gives.
        original: The model as it was trained.
        against: The original and its version, for example `keras 3.15.1 jax`.
        samplers: What to draw for the comparison, by the name of its kind; None: random data.
        only_length: The one number of timesteps that the original takes; None: any.
        longest: The most timesteps that the original runs within reason; None: any.
        probe: What the layers of the original give, to find the one to blame where the answers differ.
        rounding: How far the original itself is from exact, where it computes in less than float32; no tolerance
            is taken to be tighter.
        windows: How many of the last timesteps are taken, without padding in front of the first one.
        observer: Records the decisions of the original; None: it cannot be looked into.
        vocabularies: By input, how many ids it may have; other inputs take any number that their dtype has.
        compiles: Whether the original is compiled for each length, so that few of them are compared.
        finish: Takes out of a verified file and its manifest what is there for the verification; None: nothing is.
        learned: How it is compared if it learns; None: it learns nothing.
        constants: Names of constants that belong to stages; they are stored as they are.
        held: The weights that lie outside `proto`, which end with what holds them.
    """

    proto: onnx.ModelProto
    manifest: Manifest
    original: ReferenceModel
    against: str
    samplers: Mapping[str, Sampler] | None = None
    only_length: int | None = None
    longest: int | None = None
    probe: LayerOutputs | None = None
    rounding: float = 0.0
    windows: Collection[int] = ()
    observer: Observer | None = None
    vocabularies: Mapping[str, int] = field(default_factory=dict)
    compiles: bool = False
    finish: Callable[[bytes, Manifest], tuple[bytes, Manifest]] | None = None
    learned: Learned | None = None
    constants: Collection[str] = ()
    held: Collection[Array] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "held", weights_of(self.proto))

    @property
    def kinds(self) -> Mapping[str, Sampler]:
        """What is drawn for the comparison, by the name of its kind: the samplers, or random data."""
        return self.samplers or {"random": random_sampler(self.manifest)}


def verify_model(
    candidate: ConvertedModel,
    *,
    atol: float | None = None,
    rtol: float | None = None,
    default: Tolerance = DEFAULT,
    user_data: UserData | None = None,
    long_steps: int | None = None,
    lowered: str = "",
    kept: str = "",
    progress: Progress | None = None,
) -> tuple[bytes, ParityReport]:
    """Compare a step graph with its original over whole sequences; writes nothing.

    Args:
        candidate: The step graph and its original.
        atol: Absolute tolerance of every output, taken as it is.
        rtol: Relative tolerance; with `atol` at most ten times that, and that of the default.
        default: The tolerance without them, in parts of the largest value of each output; never tighter than what
            the original's own rounding is.
        user_data: Sequences of the user's own, `{input: (N, T, *shape)}`, or a function of the manifest that
            reads them.
        long_steps: Timesteps of the long run, fewer where the model is large; None: 2,000, or as what learns needs.
        lowered: What is stored in fewer bits than the original has, in words; without sequences of the user's own, the
            verification is weak then.
        kept: What is stored as it is nevertheless, in words.
        progress: Called as parts are done.

    Returns:
        The bytes of the ONNX file with its manifest inside, and the parity report.

    Raises:
        RefusedModelError: The rows of a batch depend on each other; names the node.
        ParityError: Step by step and whole sequence differ; names the first timestep and output.
        UnclearModelError: A tolerance is no number of at least 0.
    """
    from stepwell_export.structure.rows import rows_of_step, with_rows_judged

    check_type("candidate", candidate, ConvertedModel, "what `convert_onnx` returns")
    check_tolerance(atol)
    check_tolerance(rtol)
    rows = rows_of_step(candidate.proto, candidate.manifest)
    candidate = replace(candidate, manifest=with_rows_judged(candidate.manifest, rows.verdict))
    tolerance = _tolerance(atol, rtol, default, candidate.rounding)
    given = user_data(candidate.manifest) if callable(user_data) else user_data
    lengths = _long_lengths(candidate)
    learned, front, original = candidate.learned, None, candidate.original
    if learned is not None:
        verify = partial(verify_model, atol=atol, rtol=rtol, default=default, progress=progress)
        front, original = _verified_front(learned, given, partial(verify, long_steps=learned.front_steps(long_steps)))
        lengths = {} if candidate.longest is None else {_NO_LONGER: candidate.longest}
    most = long_steps or (error_growth.STEPS if learned is None else learned.long_steps)

    with tempfile.TemporaryDirectory(prefix="stepwell-") as folder, _blaming(candidate, tolerance):
        # what is compared is the file as it will be written, and lies on disk, where it takes no memory
        made = cache(partial(_with_chunks, candidate, rows, tolerance, Path(folder), progress))
        report = verify_parity(
            original,
            lambda: made()[1],
            candidate.manifest,
            against=candidate.against,
            tolerance=tolerance,
            samplers=candidate.kinds,
            user_data=given,
            steps=candidate.only_length or (STEPS if learned is None else LEARNED_STEPS),
            size=sum(_sizes(candidate)),
            long_steps=0 if candidate.only_length else min([most, *lengths.values()]),
            shortened=next((why for why, length in lengths.items() if length == min(lengths.values())), ""),
            observer=candidate.observer,
            vocabularies=candidate.vocabularies,
            longest=candidate.longest,
            most_lengths=FEW_LENGTHS if candidate.compiles else MOST_LENGTHS,
            learns=learned is not None,
            progress=progress,
        )
        file, model, chunk = made()
        manifest = model.manifest
        made.cache_clear()
        del model  # its weights are in memory until here
        report = replace(report, chunk=chunk, lowered=lowered, kept=kept)
        report = report if front is None else report.with_front(front)
        verified = report.parity.model_copy(update={"weak": report.weak})
        manifest.verified, manifest.reference = verified, report.reference
        if candidate.finish is not None:
            content, manifest = candidate.finish(file.read_bytes(), manifest)
            file.write_bytes(content)
        with file.open("ab") as end:
            end.write(with_manifest(b"", manifest))
        return file.read_bytes(), replace(report, parity=verified)


def with_manifest(content: bytes, manifest: Manifest) -> bytes:
    """Return an ONNX file with a manifest inside: the fields of a message may come in parts, so no weight is read."""
    from onnx import ModelProto, StringStringEntryProto

    entry = StringStringEntryProto(key=METADATA_KEY, value=manifest.to_json())
    return content + bytes(ModelProto(metadata_props=[entry]).SerializeToString())


def check_model(candidate: ConvertedModel, *, atol: float | None = None) -> None:
    """Compare a step graph with its original on few sequences, before its bits are fewer and more is allowed.

    Args:
        candidate: The step graph and its original.
        atol: As `verify_model` takes it.

    Raises:
        ParityError: Step by step and whole sequence differ; names the first timestep and output.
    """
    tolerance = _tolerance(atol, None, DEFAULT, candidate.rounding)
    if candidate.learned is not None:
        if candidate.learned.front is not None:
            check_model(candidate.learned.front, atol=atol)
        return  # the twins of what learns are on the values of the graph itself, whatever its bits are
    with _blaming(candidate, tolerance):
        verify_parity(
            candidate.original,
            StepModel(file_bytes(candidate.proto), candidate.manifest),
            against=candidate.against,
            tolerance=tolerance,
            samplers=candidate.kinds,
            seeds=SEEDS[:1],
            steps=candidate.only_length or STEPS,
            size=sum(_sizes(candidate)),
            long_steps=0,
        )


@contextlib.contextmanager
def _blaming(candidate: ConvertedModel, tolerance: Tolerance) -> Iterator[None]:
    """Name the layer or the weights where the answers differ."""
    try:
        yield
    except DifferentAnswerError as exc:
        proto, manifest, problem, suspect, fix = candidate.proto, candidate.manifest, exc.problem, "", exc.fix
        window = min((size for size in candidate.windows if size > exc.step), default=0)
        if not np.isfinite(exc.got):
            suspect = _not_finite(proto) or locate_not_finite(proto, manifest, exc)
        elif not np.isfinite(exc.want):
            suspect = "The original has no number there, as a mean of no timesteps or PyTorch's variance of one."
            fix = _OF_NONE
        elif window:
            problem = f"{problem} {_SHORT_WINDOW.format(n=window)}"
            fix = _PAD_WINDOW.format(n=window, past=window - 1)
        suspect = suspect or localize_layer(candidate.probe, proto, manifest, exc, tolerance)
        raise ParityError(f"{problem} {suspect}", fix=fix) from exc


def _verified_front(
    learned: Learned, given: Mapping[str, Array] | None, verify: Callable[..., tuple[bytes, ParityReport]]
) -> tuple[ParityReport | None, ReferenceModel]:
    """Verify the graph in front of what learns; return its report, and the original on its values."""
    if learned.front is None:
        return None, learned.twin(None)
    names = [spec.name for spec in learned.front.manifest.inputs]
    own = None if given is None else {name: given[name] for name in names}
    content, report = verify(learned.front, user_data=own)
    return report, learned.twin(StepModel(content))


def _tolerance(atol: float | None, rtol: float | None, default: Tolerance, rounding: float) -> Tolerance:
    if atol is None:
        relative = default.rtol if rtol is None else rtol
        return Tolerance(max(default.atol, rounding), max(relative, rounding), scaled=True)
    return Tolerance(atol, min(10 * atol, default.rtol) if rtol is None else rtol)


def _long_lengths(candidate: ConvertedModel) -> dict[str, int]:
    """Return the most timesteps of a long run by what limits them."""
    weights, carried = _sizes(candidate)
    limits = {f"the model has {weights:,} weights": error_growth.steps_for(weights + carried)}
    if candidate.longest is not None:
        limits[_NO_LONGER] = candidate.longest
    return limits


def _sizes(candidate: ConvertedModel) -> tuple[int, int]:
    """Return how many numbers the weights and the states have."""
    graphs = all_graphs(candidate.proto.graph)
    weights = sum(math.prod(tensor.dims) for graph in graphs for tensor in graph.initializer)
    return weights, sum(math.prod(state.shape) for state in candidate.manifest.states)


def _not_finite(proto: onnx.ModelProto) -> str:
    """Return a sentence that names the weights which hold NaN or infinity; empty: none. A mask may hold -infinity."""
    names = [
        tensor.name
        for graph in all_graphs(proto.graph)
        for tensor in graph.initializer
        if (values := to_array(tensor)).dtype.kind == "f" and not (values < np.inf).all()
    ]
    return f"Weights that are not finite: {', '.join(names)}." if names else ""


def _with_chunks(
    candidate: ConvertedModel, rows: RowAnalysis, tolerance: Tolerance, folder: Path, progress: Progress | None
) -> tuple[Path, StepModel, ChunkChoice]:
    """Return the file to be written, in a folder, and what runs it: with a time axis, where that is worth having."""
    from stepwell_export.chunk.selection import choose_chunk

    if progress:
        progress("measuring chunks", 0, 1)
    samplers = candidate.kinds
    # beyond the one length of the original, the answers are not numbers
    steps = min(candidate.only_length or STEPS, STEPS)
    samples = [draw(np.random.default_rng(0), ROWS, steps) for draw in samplers.values()]
    return choose_chunk(candidate.proto, candidate.manifest, samples, tolerance, folder=folder, rows=rows)
