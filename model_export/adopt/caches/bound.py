"""Bounds the caches of a graph, and compares the result with the graph itself, whose caches grow."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from model_export.adopt.autoconfigure import Adoption, adopt
from model_export.adopt.caches.bounded_graph import COUNT, GrowingGraph, read_caches, with_bounded_caches
from model_export.adopt.caches.growing_model import FAR, GrowingModel
from model_export.adopt.ort_graph import OrtGraph
from model_export.adopt.overrides import Overrides
from model_export.adopt.verify_adopted import largest_difference, report_comparison
from model_export.errors import ModelLoadError, ParityError, RefusedModelError, StepwellError
from model_export.graph.onnx_file import read_model
from model_export.manifest import Array, InputSpec, Parity
from model_export.runtime.batch_independence import nearly_equal
from model_export.step_model import StepModel, stacked
from model_export.verify.samplers import random_sampler

SHORTEST = 2
"""Timesteps of the shortest cache: the new one, and one before."""

_STEPS = 16
"""Timesteps over which rows alone and together are compared."""

_MOST = 64
"""Timesteps that are compared from the beginning; the end of a longer cache is compared from random contents."""

_BEYOND = 6
"""Timesteps that are compared after the caches are full."""

_LARGEST = 2**31 - 1
"""Bytes of the largest protobuf message."""


@dataclass(frozen=True, slots=True)
class Bounded:
    """A graph with bounded caches.

    Attributes:
        content: The ONNX file's bytes, without manifest.
        adoption: What was found in it, with the report of the comparison in its manifest.
    """

    content: bytes
    adoption: Adoption


def bound_caches(path: Path, length: int, *, name: str | None, hints: Overrides) -> Bounded:
    """Return a graph whose caches hold the last timesteps, verified against the file.

    Args:
        path: The ONNX file.
        length: Timesteps that the model attends to, the new one included.
        name: The model's name; the file's stem by default.
        hints: What the file does not declare.

    Raises:
        RefusedModelError: There are no caches, or the graph does not run with them.
        UnclearModelError: Something is open; the message names the flag that sets it.
        ParityError: The bounded graph gives other values.
    """
    if length < SHORTEST:
        raise RefusedModelError(
            f"The declared length is {length} timesteps; expected at least {SHORTEST}.",
            fix="Use the number of timesteps that the model was trained with.",
        )
    graph = OrtGraph(path)
    hints.check(graph.inputs, [tensor.name for tensor in graph.outputs])
    growing, model = read_caches(graph, hints), read_model(path, weights=True)
    if model.ByteSize() > _LARGEST:
        raise RefusedModelError(
            f"{path} has more than 2 GiB of weights, which one ONNX file cannot hold.",
            fix="Export it with weights of half the size.",
        )
    own = {state.past for state in growing.caches} | growing.states.keys()
    original = GrowingModel(graph, path, growing, hints, length, ids=_sizes_of_tables(model, own))
    growing = replace(growing, positions=original.count_positions())
    if growing.positions is not None and growing.positions < length:
        raise RefusedModelError(
            f"The declared length is {length} timesteps; {path} has {growing.positions} positions.",
            fix=f"Declare at most {growing.positions}.",
        )
    problem: StepwellError | None = None
    # without a mask, zeros in front would be attended to; some graphs count positions from the length of their caches
    for by_row in [False, True] if growing.mask is not None else [True]:
        content, states = with_bounded_caches(model, growing, length, by_row=by_row)
        try:
            return _verified(content.SerializeToString(), states, original, growing, name=name, hints=hints)
        except (ParityError, ModelLoadError) as exc:
            problem = problem if isinstance(problem, ParityError) else exc
    assert problem is not None
    raise problem


def _sizes_of_tables(model: Any, taken: set[str]) -> dict[str, int]:
    from model_export.streaming.axes.vocabulary import vocabularies

    return {name: size for name, size in vocabularies(model.graph).items() if name not in taken}


def _verified(
    content: bytes,
    states: Mapping[str, str],
    original: GrowingModel,
    growing: GrowingGraph,
    *,
    name: str | None,
    hints: Overrides,
) -> Bounded:
    held = {cache.past for cache in growing.caches}
    gone = held | {tensor.name for tensor in (growing.mask, growing.position) if tensor is not None}
    left = {
        what: {key: value for key, value in getattr(hints, what).items() if key not in gone}
        for what in ("shapes", "time_axes", "initial")
    }
    batches = {key: axis for key, axis in growing.batches.items() if key not in gone}
    batches |= {cache.state: cache.batch for cache in growing.caches} | {COUNT: 0}
    known = replace(hints, states=states, batch_axes=batches, **left)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / original.path.name
        path.write_bytes(content)
        adoption = adopt(path, name=name, hints=known, steps=min(_STEPS, original.limit or _STEPS), replace=True)
    if all(spec.name in states.values() for spec in adoption.manifest.answered):
        raise RefusedModelError(
            f"{original.path} has no output besides its caches; expected one that could be compared.",
            fix="Export the model with its logits as an output.",
        )
    model = StepModel(content, adoption.manifest)
    parity, weak = _compare(original, model)
    words = zip(adoption.flags[::2], adoption.flags[1::2], strict=True)
    flags = [word for pair in words if pair[0] not in {"--state", "--batch-axis"} for word in pair]
    said = [("--state", f"{before}={after}") for before, after in hints.states.items()]
    said += [("--batch-axis", f"{key}={'none' if axis is None else axis}") for key, axis in hints.batch_axes.items()]
    said += [("--time-axis", f"{key}={axis}") for key, axis in hints.time_axes.items() if key in held]
    flags = [*(word for pair in said for word in pair), *flags, "--length", str(original.length)]
    manifest = adoption.manifest.model_copy(update={"verified": parity})
    adoption = replace(adoption, manifest=manifest, flags=flags, notes=list(dict.fromkeys([*adoption.notes, *weak])))
    return Bounded(content, adoption)


@dataclass(slots=True)
class _Compared:
    """Outputs of both graphs, and the states in front of each timestep."""

    want: dict[str, list[Array]]
    got: dict[str, list[Array]]
    before: list[tuple[dict[str, Array], dict[str, Array]]]


def _compare(original: GrowingModel, model: StepModel) -> tuple[Parity, list[str]]:
    """Run both over the beginning of a stream and over the end of the caches.

    Raises:
        ParityError: They differ.
    """
    rng, length = np.random.default_rng(5), original.length
    defined = original.limit or FAR
    runs = [(original.begin(1), 0, min(length + _BEYOND, _MOST, defined))]
    if length + _BEYOND > min(_MOST, defined):
        first = max(length - _BEYOND, 1)
        runs.append((original.full(rng, first), first, min(length + _BEYOND, defined) - first))
    compared = _Compared({}, {}, [])
    for states, first, steps in runs:
        _run_both(original, model, rng, (states, range(first, first + steps)), compared)
    want = {f"Output {name!r}": np.stack(values, axis=1) for name, values in compared.want.items()}
    got = {f"Output {name!r}": np.stack(values, axis=1) for name, values in compared.got.items()}
    _check_equal(original, got, want)
    if model.batched:
        _check_rows(original, model, compared)
    steps = sum(steps for _, _, steps in runs)
    return report_comparison(f"{original.path.name} with caches that grow", steps, got, want, length=length)


def _run_both(
    original: GrowingModel,
    model: StepModel,
    rng: np.random.Generator,
    begin: tuple[dict[str, Array], range],
    compared: _Compared,
) -> None:
    states, counts = begin
    bounded = original.bounded(states, counts.start)
    draw = random_sampler(model.manifest, original.ids)
    for count in counts:
        row = {name: values[:, 0] for name, values in draw(rng, 1, 1).items()}
        compared.before.append((row, bounded))
        found, states = original.step({s.name: _in_graph(s, row[s.name]) for s in model.manifest.inputs}, states, count)
        answers, bounded = model.step(row, bounded)
        for spec in model.manifest.answered:
            if spec.kind == "value":
                want = found[spec.name]
                if want.size != spec.row_size:
                    raise ParityError(
                        f"Output {spec.name!r} has shape {list(want.shape)} at timestep {count + 1}, and "
                        f"{list(spec.row_shape)} a row with bounded caches; expected as many numbers.",
                        fix="Nothing was written. Leave the output out of the graph: its size follows the caches.",
                    )
                compared.want.setdefault(spec.name, []).append(want.reshape(1, *spec.row_shape))
                compared.got.setdefault(spec.name, []).append(answers[spec.name])


def _check_equal(original: GrowingModel, got: Mapping[str, Array], want: Mapping[str, Array]) -> None:
    for name, value in want.items():
        if not nearly_equal(got[name], value):
            raise ParityError(
                f"{name} with bounded caches differs from that of {original.path} by "
                f"{largest_difference(got[name], value):.3g}.",
                fix="Nothing was written. The caches may hold something else than one entry for each timestep, or the "
                "graph may count positions itself: export it with the inputs `attention_mask` and `position_ids`.",
            )


def _check_rows(original: GrowingModel, model: StepModel, compared: _Compared) -> None:
    """Run rows together that have had different numbers of timesteps."""
    places = range(0, len(compared.before), max(1, len(compared.before) // 4))
    inputs, states = (stacked([compared.before[at][part] for at in places]) for part in (0, 1))
    answers, _ = model.step(inputs, states)
    alone = {name: np.concatenate([values[at] for at in places]) for name, values in compared.want.items()}
    _check_equal(original, {name: answers[name] for name in alone}, alone)


def _in_graph(spec: InputSpec, row: Array) -> Array:
    inner = row.reshape(spec.graph_row_shape)
    return inner if spec.batch_axis is None else np.expand_dims(inner, spec.batch_axis)
