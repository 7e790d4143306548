"""`convert_sequence_module`: a module over whole sequences, as a step graph with its manifest."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from stepwell_export.converted import ConvertedModel
from stepwell_export.runtime.errors import (
    ModelLoadError,
    RefusedModelError,
    StepwellError,
    UnclearModelError,
)
from stepwell_export.runtime.manifest import Array
from stepwell_export.spec import StepSpec
from stepwell_export.structure.rows import ROWS_DEPEND, ROWS_FIX
from stepwell_export.torch.axis_inference import DOUBLED, LENGTHS, ROWS, Sequences
from stepwell_export.torch.cells import has_no_operator
from stepwell_export.torch.checks import HOW_TO_WRITE_IT, in_float64, prepared
from stepwell_export.torch.decompositions import Decomposed
from stepwell_export.torch.graph import trace
from stepwell_export.torch.layers import StepLayer
from stepwell_export.torch.lengths import check_lengths, lines_of
from stepwell_export.torch.naming import named
from stepwell_export.torch.own_scans import OwnScan, own_scans, own_scans_replaced
from stepwell_export.torch.python_numbers import PythonNumbers
from stepwell_export.torch.step import AGAINST, ids_of
from stepwell_export.verify.decisions.torch import TorchObserver
from stepwell_export.verify.reference import PrefixAnswers, prefix_answers

_TRACED_ROWS = 17
"""Rows of the example that is traced: no width is a multiple of it, so an axis of rows is found by its length."""


_OTHER_OPERATIONS = (
    "The module does other operations for other numbers of timesteps, and none of them once for each timestep"
)
_SAME_OPERATIONS = (
    "Let it do the same for any number: no rounds, blocks or windows that the number decides. Write a scan in log2(T) "
    "rounds as a loop over the timesteps, or as a function of what it combines, scan(combine, (a, b)). Some models "
    "have a recurrent form, which can be given as one timestep with its states: StepSpec(.., states=..)."
)


def convert_sequence_module(spec: StepSpec, *, name: str) -> ConvertedModel:
    """Make a step graph of a module over whole sequences; not yet proven.

    Raises:
        RefusedModelError: The module cannot be stepped; the message has the reason.
    """
    assert spec.time_axis is not None
    whole = Sequences(prepared(spec.module), spec.inputs, spec.time_axis)
    _check_rows(whole, spec, name)
    is_free = whole.loops and whole.lengths == LENGTHS and not whole.is_complex
    scans = own_scans(whole) if is_free else []
    with own_scans_replaced(scans):
        try:
            numbers = check_lengths(whole, spec.length)
        except RefusedModelError as exc:  # a module whose loop has complex numbers is refused in any case
            raise (_complex() if whole.loops and whole.is_complex else exc) from exc.__cause__
    try:
        return _by_its_graph(whole, spec, name, numbers, scans)
    except RefusedModelError as exc:
        has_no_graph = isinstance(exc.__cause__, ModelLoadError) or not isinstance(exc.__cause__, StepwellError | None)
        if whole.is_complex and (whole.loops or has_no_graph):
            raise _complex() from exc.__cause__
        raise


def _check_rows(whole: Sequences, spec: StepSpec, name: str) -> None:
    """Refuse a module whose answers for one sequence depend on the others of its batch.

    Raises:
        RefusedModelError: They do; it names the node, where the graph shows it.
    """
    mixed = whole.mixed_output()
    if mixed is None:
        return
    try:
        _by_its_graph(whole, spec, name)
    except RefusedModelError as exc:
        if exc.problem.startswith(ROWS_DEPEND):
            raise
    raise RefusedModelError(
        f"{ROWS_DEPEND}: {mixed.called} for a sequence changes with the other sequences of its batch.", fix=ROWS_FIX
    )


class SequenceModuleReference:
    """The module itself on whole sequences, as the original of a parity check."""

    def __init__(self, whole: Sequences, names: Sequence[str], *, is_exact: bool = False) -> None:
        """Keep the module.

        Args:
            whole: The module.
            names: Of its outputs.
            is_exact: Compute in float64, where float32 loses digits with every timestep of the original.
        """
        self._whole = whole
        self._names = names
        self._exact = copy.deepcopy(whole.module).double() if is_exact else None

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array | PrefixAnswers]:
        """Return each output's answers for `{input: (batch, T, *row)}`."""
        whole = self._whole
        values = [torch.from_numpy(np.ascontiguousarray(inputs[one.name])) for one in whole.inputs]
        length = values[0].shape[1]
        with _threads_for(whole.module):
            return self._answers(values, length)

    def _answers(self, values: Sequence[Tensor], length: int) -> dict[str, Array | PrefixAnswers]:
        whole, found = self._whole, self._run(values)
        answers: dict[str, Array | PrefixAnswers] = dict(found)
        if last := [name for name, one in zip(self._names, whole.outputs, strict=True) if one.time is None]:
            answers |= prefix_answers(
                lambda steps: self._run([value[:, :steps] for value in values]), found, last, length
            )
        return answers

    def _run(self, values: Sequence[Tensor]) -> dict[str, Array]:
        """Return the answers by output; `(batch, *row)` for one that has no time."""
        if self._exact is None:
            found = self._whole(values)
        else:
            with in_float64():
                found = self._whole([v.double() if v.is_floating_point() else v for v in values], module=self._exact)
            found = [value.float() if value.is_floating_point() else value for value in found]
        return {name: np.asarray(value) for name, value in zip(self._names, found, strict=True)}

    @property
    def observer(self) -> TorchObserver:
        """Records the decisions of the module."""
        whole = self._whole

        def run(values: Sequence[Tensor]) -> None:
            with _threads_for(whole.module):
                whole(values)

        return TorchObserver(whole.module, run, [one.name for one in whole.inputs])


def _by_its_graph(
    whole: Sequences, spec: StepSpec, name: str, numbers: PythonNumbers | None = None, scans: Sequence[OwnScan] = ()
) -> ConvertedModel:
    """Step the module node by node of its graph over whole sequences.

    Raises:
        RefusedModelError: It cannot be traced, onnxruntime does not load the graph, or a node cannot be stepped.
    """
    from stepwell_export import streaming
    from stepwell_export.streaming.normal_form.unrolled_loops import lengths_written_out, with_loops_rolled

    takes = [one.name for one in whole.inputs]
    gives = named([one.path for one in whole.outputs], spec.output_names, takes)
    timed = [one.name for one in whole.inputs if one.time is not None]
    drawn = whole.draw.tensors(0, _TRACED_ROWS, whole.lengths[0])
    example = [value if one.time is not None else value[:, 0] for one, value in zip(whole.inputs, drawn, strict=True)]
    with own_scans_replaced(scans, _TRACED_ROWS):
        proto = trace(_BatchTimeFirst(whole), example, timed, (takes, gives), numbers, name=name)
    written_out = any(map(has_no_operator, whole.module.modules()))
    if whole.loops or written_out:
        written, proto = proto, with_loops_rolled(proto)
        if proto is written and whole.loops:  # the graph of exactly so many timesteps may be one that can be stepped
            if not lengths_written_out(proto):
                raise _other_operations(_line_of_other_operations(whole))
            raise _hidden(whole)
    in_logs = _sums_in_log_space(whole)
    original = SequenceModuleReference(whole, gives, is_exact=in_logs)
    try:
        made = streaming.convert_graph(
            proto,
            name=name,
            time_axes=dict.fromkeys(timed, 1),
            length=spec.length,
            original=original,
            against=f"{AGAINST} in float64" if in_logs else AGAINST,
            samplers={whole.draw.kind: whole.draw},
            starts_are_sent=True,
        )
    except StepwellError as exc:
        if whole.loops and isinstance(exc, UnclearModelError):  # what is left of a loop runs for one length alone
            raise _hidden(whole) from exc
        raise RefusedModelError(exc.problem, fix=exc.fix) from exc
    return replace(made, observer=original.observer, vocabularies=ids_of(whole.inputs))


def _sums_in_log_space(whole: Sequences) -> bool:
    """Whether a recurrence of the module is computed by running sums of logarithms."""
    values = whole.draw.tensors(0, ROWS, whole.lengths[0])
    with torch.no_grad(), Decomposed() as mode:
        whole(values)
    return bool(mode.scans.found)


def _other_operations(where: str) -> RefusedModelError:
    return RefusedModelError(f"{_OTHER_OPERATIONS}{where}.", fix=_SAME_OPERATIONS)


def _complex() -> RefusedModelError:
    """Return the error for a module with complex numbers that has no graph."""
    return RefusedModelError(
        "The module computes with complex numbers over time, which the graph of a step cannot have.",
        fix="Write them as pairs of real numbers, or give one timestep with its states: StepSpec(.., states=..).",
    )


def _hidden(whole: Sequences) -> RefusedModelError:
    """Return the error for a module whose loop over time is not found in its graph."""
    kinds = (StepLayer, nn.RNNCellBase)
    loops = [f"{p!r} ({type(part).__name__})" for p, part in whole.module.named_modules() if isinstance(part, kinds)]
    with_what = f" with {', '.join(loops)}" if loops else ""
    return RefusedModelError(
        f"The module has a loop over the timesteps in its own code{with_what}, and "
        "what is carried in it cannot be seen.",
        fix=HOW_TO_WRITE_IT,
    )


def _line_of_other_operations(whole: Sequences) -> str:
    """Return the line that is run neither as often for all lengths nor once more for each timestep; empty: none is."""
    (short, long), longest = whole.lengths, DOUBLED
    try:
        runs = [lines_of(whole, steps) for steps in (short, long, longest)]
    except RefusedModelError:
        return ""
    for key in [*runs[2], *runs[0]]:
        one, other, most = (len(run.get(key, ())) for run in runs)
        if (most - other) * (long - short) != (other - one) * (longest - long):
            return f" ({key[0]}, line {key[1]})"
    return ""


class _BatchTimeFirst(nn.Module):
    """A module with batch and time in front of all it takes and gives."""

    def __init__(self, whole: Sequences) -> None:
        super().__init__()
        self.module = whole.module
        self._whole = whole

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Run whole sequences; an input without time axis comes without."""
        sequences = [
            value if one.time is not None else value.unsqueeze(1)
            for one, value in zip(self._whole.inputs, values, strict=True)
        ]
        return tuple(self._whole(sequences))


_ON_ONE_THREAD = 1_000_000
"""Weights up to which several threads wait longer for each other than they work."""


@contextlib.contextmanager
def _threads_for(module: nn.Module) -> Iterator[None]:
    """Run a small module on one thread."""
    before = torch.get_num_threads()
    if sum(weight.numel() for weight in module.parameters()) <= _ON_ONE_THREAD:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
