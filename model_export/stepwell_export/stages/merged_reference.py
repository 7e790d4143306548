"""The reference of the parts of a pipeline, and the data that they are verified on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from stepwell_export.converted import Activation, ConvertedModel
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import Array, InputSpec, Manifest
from stepwell_export.runtime.outside_weights import file_bytes
from stepwell_export.runtime.step_model import StepModel, random_rows, stacked
from stepwell_export.stages.binding import NamedValue, Node, is_truth
from stepwell_export.stages.learning import LearningStage
from stepwell_export.stages.missing_and_lags import MISSING
from stepwell_export.stages.renaming import Placed
from stepwell_export.verify.decisions.record import Observed
from stepwell_export.verify.reference import PrefixAnswers, ReferenceModel
from stepwell_export.verify.runners import TOGETHER, stepped
from stepwell_export.verify.samplers import Sampler

Answers = dict[str, Array | PrefixAnswers]

Known = dict[NamedValue, Array | PrefixAnswers]


@dataclass(frozen=True, slots=True)
class MergedReference:
    """The originals of parts, each on the values that it reads.

    Attributes:
        parts: The parts, in order.
        inputs: What is sent, by the name in the graph.
        answers: The answers by name.
        front: The graph whose answers are what learning stages read; None: they read inputs alone, or there are none.
        taps: The values that it answers, by name.
    """

    parts: Sequence[Placed]
    inputs: Mapping[str, NamedValue]
    answers: Mapping[str, NamedValue]
    front: ConvertedModel | None = None
    taps: Mapping[str, NamedValue] = field(default_factory=dict)

    def original(self, inputs: Mapping[str, Array]) -> Answers:
        """Return every answer, of all references.

        Raises:
            RefusedModelError: A part needs a value for every timestep, and its model has one for a whole sequence.
        """
        return self._answered(inputs, {})

    def on_front(self, inputs: Mapping[str, Array]) -> Answers:
        """Return every answer, learning stages on the values of the graph in front of them, as it is."""
        return dict(self.twin(_loaded(self.front))(inputs))

    def twin(self, front: StepModel | None) -> ReferenceModel:
        """Return what gives every answer, learning stages on the values that `front` gives."""

        def original(inputs: Mapping[str, Array]) -> Answers:
            own = {} if front is None else _own_values(front, inputs)
            return self._answered(inputs, {self.taps[name]: values for name, values in own.items()})

        return original

    def _answered(self, inputs: Mapping[str, Array], own: Known) -> Answers:
        known, needed = self._known(inputs), self._needed(own)
        for node in (part.node for part in self.parts):
            if node in needed:
                self._run(node, known, own if isinstance(node.stage, LearningStage) else {})
        return {name: known[value] for name, value in self.answers.items()}

    def probe(self, inputs: Mapping[str, Array]) -> list[Activation]:
        """Return what the layers of the originals give, as far as these give anything."""
        known, found = self._known(inputs), list[Activation]()
        for part in self.parts:
            given, names = _arrays(self._given(part.node, known)), part.names
            if part.node.step.probe and len(given) == len(part.node.reads):
                for one in part.node.step.probe(given):
                    found.append(replace(one, tensor=names.get(one.tensor, one.tensor)))
            self._run(part.node, known)
        return found

    def observe(self, inputs: Mapping[str, Array]) -> Observed:
        """Record the decisions of the originals, as far as these can be looked into."""
        known, seen = self._known(inputs), Observed()
        for number, node in enumerate(part.node for part in self.parts):
            given = _arrays(self._given(node, known))
            if node.step.observer and len(given) == len(node.reads):
                seen.add(node.step.observer(given), str(number))
            self._run(node, known)
        return seen

    def samplers(self) -> dict[str, Sampler]:
        """Return what draws data: what the models draw, mapped back through stages; the kinds are the first model's."""
        kinds = next((part.node.step.kinds for part in self.parts if part.node.stage is None), {"random": None})
        return {kind: self._sampler(kind) for kind in kinds}

    # ---------------------------------------------------------------- running

    def _needed(self, own: Known) -> set[Node]:
        """Return the parts that answers need, where learning stages have the graph's own values of what they read."""
        needed, values = set[Node](), [*self.answers.values()]
        while values:
            maker = values.pop().maker
            if maker is not None and maker not in needed:
                needed.add(maker)
                learns = isinstance(maker.stage, LearningStage)
                values += [value for value in maker.reads.values() if not (learns and value in own)]
        return needed

    def _known(self, inputs: Mapping[str, Array]) -> Known:
        return {value: inputs[name] for name, value in self.inputs.items()}

    @staticmethod
    def _given(node: Node, known: Known) -> Answers:
        """Return what a part reads, in the form that its own input has."""
        specs = {spec.name: spec for spec in node.step.manifest.inputs}
        given: Answers = {}
        for into, value in node.reads.items():
            answer, spec = known[value], specs[into]
            values = answer.values if isinstance(answer, PrefixAnswers) else answer
            values = values.reshape(*values.shape[:2], *spec.row_shape).astype(spec.dtype)
            given[into] = replace(answer, values=values) if isinstance(answer, PrefixAnswers) else values
        return given

    def _run(self, node: Node, known: Known, own: Known | None = None) -> None:
        """Run a part's reference; learning stages are given the graph's own values of what they read."""
        part, given = node.step, self._given(node, {**known, **(own or {})})
        prefixes = [answer for answer in given.values() if isinstance(answer, PrefixAnswers)]
        if not prefixes:
            found = dict(part.original(_arrays(given)))
        elif part.manifest.states:
            value = next(v.name for into, v in node.reads.items() if isinstance(given[into], PrefixAnswers))
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
        known.update({value: found[output] for output, value in node.gives.items()})

    # ---------------------------------------------------------------- drawing

    def _sampler(self, kind: str) -> Sampler:
        kinds = {
            id(node): node.step.kinds.get(kind) or next(iter(node.step.kinds.values()))
            for node in (part.node for part in self.parts)
            if node.stage is None
        }

        def sample(rng: np.random.Generator, rows: int, steps: int) -> dict[str, Array]:
            drawn: dict[int, dict[str, Array]] = {}

            def draw(value: NamedValue) -> Array | None:
                for node, into in value.readers:
                    if node.stage is None:
                        if id(node) not in kinds:
                            continue
                        if id(node) not in drawn:
                            drawn[id(node)] = kinds[id(node)](rng, rows, steps)
                        return drawn[id(node)][into]
                    if len(node.reads) == len(node.gives) == 1:
                        behind = draw(next(iter(node.gives.values())))
                        if behind is not None:
                            return node.stage.draw_before(rng, behind.astype(np.float64))
                return None

            found, truths = {}, {}
            for name, value in self.inputs.items():
                spec = value.spec
                assert isinstance(spec, InputSpec)
                values = draw(value)
                if values is None and all(is_truth(node, into) for node, into in value.readers):
                    truths[name] = value
                    found[name] = np.full((rows, steps, *spec.shape), np.nan, spec.dtype)
                    continue
                if values is None:
                    values = random_rows(rng, spec, (rows, steps))
                    values = _with_holes(rng, values) if spec.missing == "nan" else values
                found[name] = values.reshape(rows, steps, *spec.shape).astype(spec.dtype)
            for name, value in truths.items():
                found[name] = self._drawn_truth(rng, value, found)
            return found

        return sample

    def _drawn_truth(self, rng: np.random.Generator, truth: NamedValue, drawn: Mapping[str, Array]) -> Array:
        """Draw truths that fit what the first stage that reads them is given, with noise; some are missing."""
        node = next(part.node for part in self.parts if truth in part.node.reads.values())
        assert isinstance(node.stage, LearningStage)
        assert truth.spec is not None
        given = node.reads["in0"]
        if given.maker is None:
            values = drawn[next(name for name, value in self.inputs.items() if value is given)]
        else:
            front = _loaded(self.front)
            assert front is not None
            name = next(name for name, value in self.taps.items() if value is given)
            values = _own_values(front, drawn)[name]
        found = node.stage.draw_truth(rng, values.astype(np.float64), truth.spec.row_size)
        shape = (*found.shape[:2], *truth.spec.row_shape)
        return _with_holes(rng, found.reshape(shape).astype(truth.spec.dtype))


@lru_cache(maxsize=1)
def _opened(content: bytes, manifest: str) -> StepModel:
    return StepModel(content, Manifest.from_json(manifest, where="the graph in front"))


def _loaded(front: ConvertedModel | None) -> StepModel | None:
    return None if front is None else _opened(file_bytes(front.proto), front.manifest.to_json())


def _own_values(front: StepModel, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return what a graph gives for whole sequences, run step by step, with as many rows together as are compared."""
    given = {spec.name: inputs[spec.name] for spec in front.manifest.inputs}
    rows = len(next(iter(given.values())))
    is_lowered = any(field.store_dtype != field.dtype for field in front.fields)  # else storing changes no bit
    return stacked([
        stepped(front, {name: array[at : at + TOGETHER] for name, array in given.items()}, stored=is_lowered)[0]
        for at in range(0, rows, TOGETHER)
    ])  # fmt: skip


def _with_holes(rng: np.random.Generator, values: Array) -> Array:
    return np.where(rng.random(values.shape) < MISSING, np.nan, values)


def _arrays(answers: Mapping[str, Array | PrefixAnswers]) -> dict[str, Array]:
    return {name: value for name, value in answers.items() if not isinstance(value, PrefixAnswers)}
