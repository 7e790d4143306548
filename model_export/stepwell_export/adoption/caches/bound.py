"""Bounds the caches of a graph, and compares the result with the graph itself, whose caches grow."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stepwell_export.adoption.autoconfigure import Adoption, adopt
from stepwell_export.adoption.caches.bounded_graph import COUNT, read_caches, with_bounded_caches
from stepwell_export.adoption.caches.growing_model import FAR, GrowingModel
from stepwell_export.adoption.ort_graph import OrtGraph
from stepwell_export.adoption.overrides import Overrides, write_flags
from stepwell_export.adoption.verify_adopted import check_equal, report_comparison
from stepwell_export.graph.onnx_file import read_model
from stepwell_export.runtime.errors import ModelLoadError, ParityError, RefusedModelError, StepwellError
from stepwell_export.runtime.manifest import Array, Parity
from stepwell_export.runtime.step_model import StepModel, stacked
from stepwell_export.verify.samplers import Sampler, random_sampler

if TYPE_CHECKING:
    import onnx

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


def bound_caches(path: Path, length: int, *, name: str | None, hints: Overrides) -> tuple[bytes, Adoption]:
    """Return a graph whose caches hold the last timesteps, verified against the file; writes nothing.

    Args:
        path: The ONNX file.
        length: Timesteps that the model attends to, the new one included.
        name: The model's name; the file's stem by default.
        hints: What the file does not declare.

    Returns:
        The ONNX file's bytes without manifest, and what was found in it, with the report of the comparison.

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
    constants = {name: graph.constant(name, value) for name, value in hints.constants.items()}
    original = GrowingModel(graph, growing, length, constants)
    positions = original.count_positions()
    if positions is not None and positions < length:
        raise RefusedModelError(
            f"The declared length is {length} timesteps; {path} has {positions} positions.",
            fix=f"Declare at most {positions}.",
        )
    problem: StepwellError | None = None
    # without a mask, zeros in front would be attended to; some graphs count positions from the length of their caches
    for by_row in [False, True] if growing.mask is not None else [True]:
        content, states = with_bounded_caches(model, original.growing, length, by_row=by_row)
        try:
            return _verified(content, states, original, name=name, hints=hints)
        except (ParityError, ModelLoadError) as exc:
            problem = problem if isinstance(problem, ParityError) else exc
    assert problem is not None
    raise problem


def _verified(
    graph: onnx.ModelProto,
    states: Mapping[str, str],
    original: GrowingModel,
    *,
    name: str | None,
    hints: Overrides,
) -> tuple[bytes, Adoption]:
    from stepwell_export.streaming.axes.inputs import vocabularies

    content, growing = graph.SerializeToString(), original.growing
    gone = {cache.past for cache in growing.caches}
    gone |= {tensor.name for tensor in (growing.mask, growing.position) if tensor is not None}
    left = {
        what: {key: value for key, value in getattr(hints, what).items() if key not in gone}
        for what in ("shapes", "time_axes", "initial")
    }
    batches = {key: axis for key, axis in growing.batches.items() if key not in gone}
    batches |= {cache.state: cache.batch for cache in growing.caches} | {COUNT: 0}
    known = replace(hints, states=states, batch_axes=batches, **left)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / original.graph.path.name
        path.write_bytes(content)
        adoption = adopt(path, name=name, hints=known, steps=min(_STEPS, original.limit or _STEPS), replace=True)
    manifest = adoption.manifest
    if all(spec.name in states.values() for spec in manifest.answered):
        raise RefusedModelError(
            f"{original.graph.path} has no output besides its caches; expected one that could be compared.",
            fix="Export the model with its logits as an output.",
        )
    draw = random_sampler(manifest, vocabularies(graph.graph))
    parity, weak = _compare(original, StepModel(content, manifest), draw)
    flags = [word for before, after in hints.states.items() for word in ("--state", f"{before}={after}")]
    flags += write_flags(manifest.model_copy(update={"states": []}), original.graph.inputs, hints)
    return content, replace(
        adoption,
        manifest=manifest.model_copy(update={"verified": parity}),
        flags=[*flags, "--length", str(original.length)],
        notes=list(dict.fromkeys([*adoption.notes, *weak])),
        unknown="",
    )


def _compare(original: GrowingModel, model: StepModel, draw: Sampler) -> tuple[Parity, list[str]]:
    """Run both over the beginning of a stream and over the end of the caches, then rows of different ages together.

    Raises:
        ParityError: They differ.
    """
    rng, length = np.random.default_rng(5), original.length
    defined = original.limit or FAR
    runs = [(original.begin(), 0, min(length + _BEYOND, _MOST, defined))]
    if length + _BEYOND > min(_MOST, defined):
        first = max(length - _BEYOND, 1)
        runs.append((original.full(rng, first), first, min(length + _BEYOND, defined) - first))
    sent, want, got, before = [], [], [], []
    for states, first, steps in runs:
        sent.append(draw(rng, 1, steps))
        answers, states_before = original.run(model.manifest, sent[-1], states, first)
        want.append(_named(answers))
        got.append(_named(model.chunk(sent[-1], original.bounded(states, first))[0]))
        before += states_before
    inputs, expected, found = (_behind_each_other(parts) for parts in (sent, want, got))
    pairs = [(found, expected)]
    if model.batched:
        places = range(0, len(before), max(1, len(before) // 4))
        rows = {name: values[0, places] for name, values in inputs.items()}
        together, _ = model.step(rows, stacked([original.bounded(*before[at]) for at in places]))
        pairs.append((_named(together), {name: values[0, places] for name, values in expected.items()}))
    for answers, originals in pairs:
        check_equal(
            answers,
            originals,
            f"with bounded caches differs from that of {original.graph.path}",
            fix="Nothing was written. The caches may hold something else than one entry for each timestep, or the "
            "graph may count positions itself: export it with the inputs `attention_mask` and `position_ids`.",
        )
    against = f"{original.graph.path.name} with caches that grow"
    return report_comparison(against, len(before), found, expected, length=length)


def _named(outputs: Mapping[str, Array]) -> dict[str, Array]:
    return {f"Output {name!r}": value for name, value in outputs.items()}


def _behind_each_other(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
