"""Which part of a pipeline reads which value, and which values are the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

from stepwell_export.converted import ConvertedModel
from stepwell_export.runtime.errors import UnclearModelError
from stepwell_export.runtime.manifest import TensorSpec
from stepwell_export.stages.learning import JudgedStage, LearningStage
from stepwell_export.stages.pipeline import Names, Part
from stepwell_export.stages.stage import Stage, names_in

SENT = "inputs."
"""In front of the name of an input: the input as it was sent, whatever stage has written a value of its name."""

_ALIKE = 0.8
"""How alike two names are, from 0 to 1, of which one is taken for a slip of the other."""


@dataclass(eq=False, slots=True)
class NamedValue:
    """What a part gives, or an input of the pipeline.

    Attributes:
        name: The name that parts read it by.
        maker: The part that gives it; None: it is an input.
        output: Its name among the outputs of that part.
        spec: Its row; None: not known yet.
        readers: The parts that read it, each with the input that does.
    """

    name: str
    maker: Node | None = None
    output: str = ""
    spec: TensorSpec | None = None
    readers: list[tuple[Node, str]] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Node:
    """A part with the values that it reads and gives, by its own names for them.

    Attributes:
        stage: The stage; None: it is a model.
        model: The step graph; None: not made yet.
        reads: Values by input.
        gives: Values by output.
    """

    stage: Stage | None
    model: ConvertedModel | None
    reads: dict[str, NamedValue] = field(default_factory=dict)
    gives: dict[str, NamedValue] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """How messages name it."""
        return self.stage.title if self.stage else f"Model {self.step.manifest.name!r}"

    @property
    def step(self) -> ConvertedModel:
        """The step graph."""
        assert self.model is not None
        return self.model


def is_truth(node: Node, into: str) -> bool:
    """Whether an input of a part is the truth that a stage learns from."""
    return (
        isinstance(node.stage, LearningStage) and node.stage.reads_truth and into == f"in{len(node.stage.sources) - 1}"
    )


@dataclass(slots=True)
class NamedValues:
    """The graph of named values.

    Attributes:
        nodes: The parts, in order.
        inputs: What the caller sends, by name, in the order of first use.
        answers: What the caller gets, in order.
    """

    nodes: list[Node]
    inputs: dict[str, NamedValue]
    answers: list[NamedValue]


def bind(
    parts: Sequence[Stage | Part], models: Mapping[int, ConvertedModel], outputs: Sequence[str] | None
) -> NamedValues:
    """Return which part reads which value.

    Args:
        parts: The parts of a pipeline.
        models: The step graphs of the models among them, by place.
        outputs: The names of the answers; None: what no part has read.

    Raises:
        UnclearModelError: A name is unknown or has two values, or it is unclear what a part reads.
    """
    return _Binder(parts, models).bind(outputs)


class _Binder:
    def __init__(self, parts: Sequence[Stage | Part], models: Mapping[int, ConvertedModel]) -> None:
        self._parts = parts
        self._models = models
        self._inputs: dict[str, NamedValue] = {}
        self._there: dict[str, NamedValue] = {}
        self._made: list[NamedValue] = []

    def bind(self, outputs: Sequence[str] | None) -> NamedValues:
        nodes = []
        for place, part in enumerate(self._parts):
            nodes.append(self._stage(place, part) if isinstance(part, Stage) else self._model(place, part))
        self._check_truths()
        if outputs is None:
            return NamedValues(nodes, self._inputs, self._unread())
        picked = [self._read(name, "`outputs`", len(self._parts)) for name in outputs]
        if sent := [value.name for value in picked if value.maker is None]:
            raise UnclearModelError(
                f"`outputs` has {sent[0]!r}, which is an input as it was sent.", fix="Name values that a part gives."
            )
        return NamedValues(nodes, self._inputs, picked)

    def _check_truths(self) -> None:
        """Check that a truth which nothing else reads is an input of its own, and no slip.

        Raises:
            UnclearModelError: A part gives a value of its name, or an input that is read has almost the same.
        """
        others = [
            name
            for name, value in self._inputs.items()
            if not all(is_truth(node, into) for node, into in value.readers)
        ]
        folded = {name.casefold(): name for name in others}
        made = {value.name for value in self._made}
        for name in [name for name in self._inputs if name not in others]:
            stages = [node.stage for node, _ in self._inputs[name].readers]
            if all(isinstance(stage, JudgedStage) and stage.names_input for stage in stages):
                continue  # so it is declared as an input
            title, there = self._inputs[name].readers[0][0].title, ", ".join(others)
            if name in made:
                raise UnclearModelError(
                    f"{title} has the truth {name!r}, which is a value that a part gives; expected an input as it is "
                    f"sent, such as {there}.",
                    fix=f"Name an input, or write `truth='{SENT}{name}'` for one that nothing else reads.",
                )
            if near := get_close_matches(name.casefold(), folded, n=1, cutoff=_ALIKE):
                raise UnclearModelError(
                    f"{title} has the truth {name!r}, which is not there; the inputs are {there}.",
                    fix=f"Write {folded[near[0]]!r}, or `truth='{SENT}{name}'` for an input that nothing else reads.",
                )

    def _stage(self, place: int, stage: Stage) -> Node:
        node = Node(stage, None)
        for number, name in enumerate(stage.sources):
            value = self._only_unread(place, stage) if name is None else self._read(name, stage.title, place)
            self._join(value, node, f"in{number}")
        own = stage.gives or (node.reads["in0"].name,)
        to = stage.to if stage.to is not None else stage.on
        names = _named(to, list(own), stage.title, "values")
        for name in own:
            self._write(node, name, names.get(name, name), is_named=name in names)
        return node

    def _model(self, place: int, part: Part) -> Node:
        node = Node(None, self._models[place])
        manifest = node.step.manifest
        node.model = _by_tensors(node.step)
        own = [spec.name for spec in manifest.inputs]
        given = _named(part.of, own, node.title, "inputs")
        read = {into: self._read(name, node.title, place) for into, name in given.items()}
        read |= self._by_default(node, [name for name in own if name not in read], bool(read))
        for into in own:
            self._join(read[into], node, into)
        answered = [spec.name for spec in manifest.answered]
        names = _named(part.to, answered, node.title, "outputs")
        for spec in manifest.answered:
            name = names.get(spec.name, spec.name)
            self._write(node, spec.graph_name, name, is_named=spec.name in names, spec=spec)
        return node

    def _by_default(self, node: Node, own: Sequence[str], has_read: bool) -> dict[str, NamedValue]:
        """Return what inputs without `of` read: the values of their names, or the only unread one, or what is sent."""
        unread = self._unread()
        known = {name: self._there[name] for name in own if name in self._there}
        if len(own) == len(unread) == 1 and not has_read and known.get(own[0]) not in unread:
            return {own[0]: unread[0]}  # one model behind the other, whatever the second one calls its input
        missing = [name for name in own if name not in known]
        if missing and unread and not known and not has_read:
            raise UnclearModelError(
                f"{node.title} takes {list(own)}; the values that no part has read yet are "
                f"{[value.name for value in unread]}.",
                fix="Give a value the name of the input that reads it, or say it: `Part(model, of={input: name})`.",
            )
        return known | {name: self._input(name) for name in missing}

    def _only_unread(self, place: int, stage: Stage) -> NamedValue:
        unread = self._unread()
        if len(unread) == 1:
            return unread[0]
        names = [value.name for value in unread]
        if not unread and not self._made:
            names = self._open_inputs(place, only_next=True) or ["x"]
            if len(names) == 1:
                return self._input(names[0])
        raise UnclearModelError(
            f"{stage.title} stands next to the values {names or [*self._there]} and applies to one of them.",
            fix=f"Name it: `{stage.title}(..., of={(names or [*self._there])[0]!r})`.",
        )

    def _read(self, name: str, title: str, place: int) -> NamedValue:
        if name.startswith(SENT):
            return self._input(name.removeprefix(SENT))
        if name in self._there:
            return self._there[name]
        open_inputs = self._open_inputs(place)
        if name in open_inputs or not self._there:
            return self._input(name)
        there = list(dict.fromkeys([*self._there, *open_inputs, *(f"{SENT}{known}" for known in self._inputs)]))
        raise UnclearModelError(
            f"{title} reads {name!r}, which is not there; expected one of {', '.join(there)}.",
            fix=f"Correct the name, or write `{SENT}{name}` for an input of that name.",
        )

    def _open_inputs(self, place: int, *, only_next: bool = False) -> list[str]:
        """Return inputs of models from here on that read a value of their own name, which is not there yet."""
        names: list[str] = []
        for at in sorted(at for at in self._models if at >= place):
            part = self._parts[at]
            assert isinstance(part, Part)
            own = [spec.name for spec in self._models[at].manifest.inputs]
            given = _named(part.of, own, "", "inputs")
            names += [name for name in own if name not in given and name not in self._there]
            if only_next:
                break
        return list(dict.fromkeys(names))

    def _input(self, name: str) -> NamedValue:
        if name not in self._inputs:
            self._inputs[name] = NamedValue(name)
            self._there.setdefault(name, self._inputs[name])
        return self._inputs[name]

    @staticmethod
    def _join(value: NamedValue, node: Node, into: str) -> None:
        node.reads[into] = value
        value.readers.append((node, into))

    def _write(self, node: Node, output: str, name: str, *, is_named: bool, spec: TensorSpec | None = None) -> None:
        before = self._there.get(name)
        is_replaced = before is None or before.maker is None or before in node.reads.values()
        if before is not None and not is_replaced and (not is_named or not before.readers):
            raise UnclearModelError(
                f"{node.title} gives a second value {name!r}; the names that are there: {', '.join(self._there)}.",
                fix="Give it another name: `to=NAME`.",
            )
        if name.startswith(SENT):
            raise UnclearModelError(
                f"{node.title} gives {name!r}, and names that begin with {SENT!r} are inputs as they were sent.",
                fix="Give it another name: `to=NAME`.",
            )
        value = NamedValue(name, node, output, spec)
        node.gives[output] = value
        self._made.append(value)
        self._there[name] = value

    def _unread(self) -> list[NamedValue]:
        return [value for value in self._made if not value.readers]


def _by_tensors(model: ConvertedModel) -> ConvertedModel:
    """Return a step graph whose outputs have the names of their tensors."""
    outputs = [spec.model_copy(update={"name": spec.graph_name, "tensor": None}) for spec in model.manifest.outputs]
    return replace(model, manifest=model.manifest.model_copy(update={"outputs": outputs}))


def _named(names: Names, own: Sequence[str], title: str, what: str) -> dict[str, str]:
    """Return names by a part's own ones.

    Raises:
        ManifestError: They are no names.
        UnclearModelError: There are more names than inputs or outputs, or an unknown one among the keys.
    """
    if names is None:
        return {}
    argument = "of" if what == "inputs" else "to"
    if isinstance(names, Mapping):
        if names:
            names_in(argument, [*names.values()])
        found, is_wrong = dict(names), not names.keys() <= {*own}
    else:
        given = names_in(argument, names)
        found, is_wrong = dict(zip(own, given, strict=False)), len(given) != len(own)
    if is_wrong:
        raise UnclearModelError(
            f"{title} has the {what} {list(own)}; named are {names!r}.",
            fix=f"Name each of the {what} once, in order, or by its own name.",
        )
    return found
