"""The reference of two joined step graphs, and the data that they are verified on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

import numpy as np

from model_export.converted import ConvertedModel
from model_export.errors import RefusedModelError
from model_export.manifest import Array, InputSpec, TensorSpec
from model_export.verify.localize import Activation, LayerOutputs
from model_export.verify.reference import PrefixAnswers
from model_export.verify.samplers import Sampler

Links = Mapping[str, str]
"""Outputs of the first graph to inputs of the second."""

DrawBefore = Callable[[np.random.Generator, Array], Array]
"""Sequences for the second graph to sequences for the first one that it maps to about those."""


@dataclass(frozen=True, slots=True)
class Middle:
    """What passes from the first reference to the second.

    Attributes:
        first: The first model.
        links: The input of the second one, by output of the first one.
    """

    first: ConvertedModel
    links: Mapping[str, InputSpec]

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array | PrefixAnswers]:
        """Return all outputs of the first reference, the linked ones in the form of the inputs behind them."""
        found = dict(self.first.original({spec.name: inputs[spec.name] for spec in self.first.manifest.inputs}))
        for out, into in self.links.items():
            answer = found[out]
            values = answer.values if isinstance(answer, PrefixAnswers) else answer
            values = values.reshape(*values.shape[:2], *into.row_shape).astype(into.dtype)
            found[out] = replace(answer, values=values) if isinstance(answer, PrefixAnswers) else values
        return found


@dataclass(frozen=True, slots=True)
class JoinedReference:
    """Both references, one behind the other; `output` is the first linked one, for messages."""

    middle: Middle
    second: ConvertedModel
    output: str

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array | PrefixAnswers]:
        """Return every output that remains.

        Raises:
            RefusedModelError: The second one needs an output for every timestep, and the first one has none.
        """
        found = self.middle(inputs)
        linked = {into.name: found.pop(out) for out, into in self.middle.links.items()}
        others = {spec.name: inputs[spec.name] for spec in self.second.manifest.inputs if spec.name not in linked}
        prefixes = [answer for answer in linked.values() if isinstance(answer, PrefixAnswers)]
        if not prefixes:
            return {**found, **self.second.original({**others, **linked})}  # type: ignore[dict-item]  # no prefixes
        if self.second.manifest.states or self.second.manifest.windows or len(linked) > 1:
            raise RefusedModelError(
                f"What stands behind output {self.output!r} uses earlier timesteps, and the model in front has one "
                "output for a whole sequence.",
                fix="Give the model an output for every timestep (return_sequences=True), or leave that stage out.",
            )
        (name,) = linked
        after = self.second.original({name: prefixes[0].values})
        kept = {key: PrefixAnswers(prefixes[0].steps, value) for key, value in after.items() if _is_array(value)}
        return {**found, **kept}


def _is_array(value: Array | PrefixAnswers) -> TypeGuard[Array]:
    return isinstance(value, np.ndarray)


def join_samplers(
    first: ConvertedModel, second: ConvertedModel, tied: Links, draw_before: DrawBefore | None
) -> dict[str, Sampler]:
    """Return what draws data for both: the samplers of the first graph, or those of the second one, mapped."""
    if draw_before is not None:
        (spec,), (into,) = first.manifest.inputs, tied.values()
        return {kind: _drawn_before(draw, draw_before, spec, into) for kind, draw in second.kinds.items()}
    rest = [spec.name for spec in second.manifest.inputs if spec.name not in tied.values()]
    if not rest:
        return dict(first.kinds)
    other = next(iter(second.kinds.values()))
    return {kind: _with_rest(draw, other, rest) for kind, draw in first.kinds.items()}


def _drawn_before(draw: Sampler, before: DrawBefore, spec: TensorSpec, into: str) -> Sampler:
    def sample(rng: np.random.Generator, rows: int, steps: int) -> dict[str, Array]:
        drawn = draw(rng, rows, steps)
        values = before(rng, drawn.pop(into).astype(np.float64))
        return {spec.name: values.reshape(rows, steps, *spec.shape).astype(spec.dtype), **drawn}

    return sample


def _with_rest(draw: Sampler, other: Sampler, names: Sequence[str]) -> Sampler:
    def sample(rng: np.random.Generator, rows: int, steps: int) -> dict[str, Array]:
        drawn = draw(rng, rows, steps)
        return {**drawn, **{name: value for name, value in other(rng, rows, steps).items() if name in names}}

    return sample


def join_probes(one: LayerOutputs | None, two: LayerOutputs | None, middle: Middle) -> LayerOutputs | None:
    """Return what the layers of both originals give; None: neither gives any."""
    if one is None and two is None:
        return None

    def probe(inputs: Mapping[str, Array]) -> list[Activation]:
        own = {spec.name: inputs[spec.name] for spec in middle.first.manifest.inputs}
        found = list(one(own)) if one else []
        passed = middle(inputs)
        linked = {into.name: passed[out] for out, into in middle.links.items()}
        if two and all(_is_array(value) for value in linked.values()):
            others = {name: value for name, value in inputs.items() if name not in own}
            found += two({**others, **linked})  # type: ignore[dict-item]  # arrays, as was just checked
        return found

    return probe
