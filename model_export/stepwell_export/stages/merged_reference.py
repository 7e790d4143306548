"""The reference of the parts of a pipeline, and the data that they are verified on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stepwell_export.converted import ConvertedModel
from stepwell_export.localize import Activation
from stepwell_export.runtime.batch_independence import random_rows
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.stages.values import NamedValue, Node
from stepwell_export.verify.decisions.record import Observed
from stepwell_export.verify.reference import PrefixAnswers
from stepwell_export.verify.samplers import Sampler

Answers = dict[str, Array | PrefixAnswers]

Known = dict[NamedValue, Array | PrefixAnswers]

Placed = tuple[Node, ConvertedModel, dict[str, str]]
"""A part, its step graph as it is in the whole, and the names there by the part's own."""


@dataclass(frozen=True, slots=True)
class MergedReference:
    """The originals of parts, each on the values that it reads.

    Attributes:
        parts: The parts, in order.
        inputs: What is sent, by the name in the graph.
        answers: The answers by name.
    """

    parts: Sequence[Placed]
    inputs: Mapping[str, NamedValue]
    answers: Mapping[str, NamedValue]

    def original(self, inputs: Mapping[str, Array]) -> Answers:
        """Return every answer, of all references.

        Raises:
            RefusedModelError: A part needs a value for every timestep, and its model has one for a whole sequence.
        """
        known = self._known(inputs)
        for placed in self.parts:
            self._run(placed, known)
        return {name: known[value] for name, value in self.answers.items()}

    def probe(self, inputs: Mapping[str, Array]) -> list[Activation]:
        """Return what the layers of the originals give, as far as these give anything."""
        known, found = self._known(inputs), list[Activation]()
        for placed in self.parts:
            given = _arrays(self._given(placed, known))
            if placed[1].probe and len(given) == len(placed[0].reads):
                found += placed[1].probe(given)
            self._run(placed, known)
        return found

    def observe(self, inputs: Mapping[str, Array]) -> Observed:
        """Record the decisions of the originals, as far as these can be looked into."""
        known, seen = self._known(inputs), Observed()
        for number, placed in enumerate(self.parts):
            given = _arrays(self._given(placed, known))
            if placed[1].observer and len(given) == len(placed[0].reads):
                seen.add(placed[1].observer(given), str(number))
            self._run(placed, known)
        return seen

    def samplers(self) -> dict[str, Sampler]:
        """Return what draws data: what the models that read the inputs draw, mapped back through stages."""
        drawers = [part for node, part, _ in self.parts if node.stage is None and self._feeds(node)]
        kinds = drawers[0].kinds if drawers else {"random": None}
        return {kind: self._sampler(kind) for kind in kinds}

    # ---------------------------------------------------------------- running

    def _known(self, inputs: Mapping[str, Array]) -> Known:
        return {value: inputs[name] for name, value in self.inputs.items()}

    @staticmethod
    def _given(placed: Placed, known: Known) -> Answers:
        """Return what a part reads, in the form that its own input has."""
        node, part, names = placed
        specs = {spec.name: spec for spec in part.manifest.inputs}
        given: Answers = {}
        for into, value in node.reads.items():
            answer, spec = known[value], specs[names[into]]
            values = answer.values if isinstance(answer, PrefixAnswers) else answer
            values = values.reshape(*values.shape[:2], *spec.row_shape).astype(spec.dtype)
            given[names[into]] = replace(answer, values=values) if isinstance(answer, PrefixAnswers) else values
        return given

    def _run(self, placed: Placed, known: Known) -> None:
        node, part, names = placed
        given = self._given(placed, known)
        prefixes = [answer for answer in given.values() if isinstance(answer, PrefixAnswers)]
        if not prefixes:
            found = dict(part.original(_arrays(given)))
        elif part.manifest.states:
            value = next(v.name for into, v in node.reads.items() if isinstance(given[names[into]], PrefixAnswers))
            raise RefusedModelError(
                f"What stands behind value {value!r} uses earlier timesteps, and the model in front has one output "
                "for a whole sequence.",
                fix="Give the model an output for every timestep (return_sequences=True), or leave that stage out.",
            )
        else:
            ends = [steps - 1 for steps in prefixes[0].steps]
            at_ends = {
                name: answer.values if isinstance(answer, PrefixAnswers) else answer[:, ends]
                for name, answer in given.items()
            }
            after = _arrays(part.original(at_ends))
            found = {name: replace(prefixes[0], values=value) for name, value in after.items()}
        known.update({value: found[names[output]] for output, value in node.gives.items()})

    # ---------------------------------------------------------------- drawing

    def _feeds(self, node: Node) -> bool:
        """Whether an input reaches a model, through stages of one value at most."""
        return any(self._end_of(value) is not None and self._end_of(value)[0] is node for value in self.inputs.values())  # type: ignore[index]

    def _end_of(self, value: NamedValue) -> tuple[Node, str] | None:
        """Return the model and its input that a value reaches first, through stages of one value."""
        for node, into in value.readers:
            if node.stage is None:
                return node, into
            if len(node.reads) == len(node.gives) == 1 and (end := self._end_of(next(iter(node.gives.values())))):
                return end
        return None

    def _sampler(self, kind: str) -> Sampler:
        kinds = {
            id(node): (part.kinds.get(kind) or next(iter(part.kinds.values())), names)
            for node, part, names in self.parts
            if node.stage is None
        }

        def sample(rng: np.random.Generator, rows: int, steps: int) -> dict[str, Array]:
            drawn: dict[int, dict[str, Array]] = {}

            def draw(value: NamedValue) -> Array | None:
                for node, into in value.readers:
                    if node.stage is None:
                        if id(node) not in kinds:
                            continue
                        sampler, names = kinds[id(node)]
                        if id(node) not in drawn:
                            drawn[id(node)] = sampler(rng, rows, steps)
                        return drawn[id(node)][names[into]]
                    if len(node.reads) == len(node.gives) == 1:
                        behind = draw(next(iter(node.gives.values())))
                        if behind is not None:
                            return node.stage.draw_before(rng, behind.astype(np.float64))
                return None

            found = {}
            for name, value in self.inputs.items():
                assert value.spec is not None
                values = draw(value)
                if values is None:
                    values = random_rows(rng, value.spec, (rows, steps))
                found[name] = values.reshape(rows, steps, *value.spec.shape).astype(value.spec.dtype)
            return found

        return sample


def _arrays(answers: Mapping[str, Array | PrefixAnswers]) -> dict[str, Array]:
    return {name: value for name, value in answers.items() if not isinstance(value, PrefixAnswers)}
