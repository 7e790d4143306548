"""The reference of two joined step graphs, and the data that they are verified on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from stepwell_export.converted import ConvertedModel
from stepwell_export.localize import Activation
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.verify.decisions.record import Observed
from stepwell_export.verify.reference import PrefixAnswers
from stepwell_export.verify.samplers import Sampler

Links = Mapping[str, str]
"""Outputs of the first graph to inputs of the second."""

Answers = dict[str, Array | PrefixAnswers]

DrawBefore = Callable[[np.random.Generator, Array], Array]
"""Sequences for the second graph to sequences for the first one that it maps to about those."""


@dataclass(frozen=True, slots=True)
class Joint:
    """Two models, one behind the other.

    Attributes:
        first: Takes the timestep.
        second: Takes outputs of the first one.
        links: Which output becomes which input.
        output: The first of these outputs, as its model names it.
    """

    first: ConvertedModel
    second: ConvertedModel
    links: Links
    output: str

    def original(self, inputs: Mapping[str, Array]) -> Answers:
        """Return every output that remains, of both references one behind the other.

        Raises:
            RefusedModelError: The second one needs an output for every timestep, and the first one has none.
        """
        found, given = self._passed(inputs)
        prefixes = [answer for answer in given.values() if isinstance(answer, PrefixAnswers)]
        if not prefixes:
            return {**found, **self.second.original(_arrays(given))}
        if self.second.manifest.states:
            raise RefusedModelError(
                f"What stands behind output {self.output!r} uses earlier timesteps, and the model in front has one "
                "output for a whole sequence.",
                fix="Give the model an output for every timestep (return_sequences=True), or leave that stage out.",
            )
        ends = [steps - 1 for steps in prefixes[0].steps]
        after = self.second.original({
            name: answer.values if isinstance(answer, PrefixAnswers) else answer[:, ends]
            for name, answer in given.items()
        })  # fmt: skip
        return {**found, **{name: replace(prefixes[0], values=value) for name, value in _arrays(after).items()}}

    def probe(self, inputs: Mapping[str, Array]) -> list[Activation]:
        """Return what the layers of both originals give, as far as these give anything."""
        found = list(self.first.probe(self._own(inputs))) if self.first.probe else []
        if self.second.probe:
            _, given = self._passed(inputs)
            arrays = _arrays(given)
            found += self.second.probe(arrays) if len(arrays) == len(given) else []
        return found

    def observe(self, inputs: Mapping[str, Array]) -> Observed:
        """Record the decisions of both originals, as far as these can be looked into."""
        seen = Observed()
        if self.first.observer:
            seen.add(self.first.observer(self._own(inputs)), "first")
        if self.second.observer:
            _, given = self._passed(inputs)
            arrays = _arrays(given)
            if len(arrays) == len(given):
                seen.add(self.second.observer(arrays), "second")
        return seen

    def samplers(self, draw_before: DrawBefore | None) -> dict[str, Sampler]:
        """Return what draws data for both: the samplers of the first graph, or those of the second one, mapped."""
        if draw_before is not None:
            return {kind: self._drawn_before(draw, draw_before) for kind, draw in self.second.kinds.items()}
        other = next(iter(self.second.kinds.values()))
        return {kind: self._with_free_inputs(draw, other) for kind, draw in self.first.kinds.items()}

    def _own(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {spec.name: inputs[spec.name] for spec in self.first.manifest.inputs}

    def _passed(self, inputs: Mapping[str, Array]) -> tuple[Answers, Answers]:
        """Run the first reference; return its outputs that are not linked, and all inputs of the second one."""
        found = dict(self.first.original(self._own(inputs)))
        specs = {spec.name: spec for spec in self.second.manifest.inputs}
        given: Answers = {name: inputs[name] for name in specs.keys() - self.links.values()}
        for out, into in self.links.items():
            answer, spec = found.pop(out), specs[into]
            values = answer.values if isinstance(answer, PrefixAnswers) else answer
            values = values.reshape(*values.shape[:2], *spec.row_shape).astype(spec.dtype)
            given[into] = replace(answer, values=values) if isinstance(answer, PrefixAnswers) else values
        return found, given

    def _drawn_before(self, draw: Sampler, before: DrawBefore) -> Sampler:
        (spec,), (into,) = self.first.manifest.inputs, self.links.values()

        def sample(rng: np.random.Generator, rows: int, steps: int) -> dict[str, Array]:
            drawn = draw(rng, rows, steps)
            values = before(rng, drawn.pop(into).astype(np.float64))
            return {spec.name: values.reshape(rows, steps, *spec.shape).astype(spec.dtype), **drawn}

        return sample

    def _with_free_inputs(self, draw: Sampler, other: Sampler) -> Sampler:
        free = {spec.name for spec in self.second.manifest.inputs} - set(self.links.values())

        def sample(rng: np.random.Generator, rows: int, steps: int) -> dict[str, Array]:
            drawn = draw(rng, rows, steps)
            more = other(rng, rows, steps) if free else {}
            return {**drawn, **{name: value for name, value in more.items() if name in free}}

        return sample


def _arrays(answers: Mapping[str, Array | PrefixAnswers]) -> dict[str, Array]:
    return {name: value for name, value in answers.items() if not isinstance(value, PrefixAnswers)}
