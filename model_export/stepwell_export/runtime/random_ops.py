"""`check_random_operators`: nothing that a model file draws at random is declared to be a value.

Read from the file's bytes: serving needs no onnx package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from stepwell_export.graph.nodes import propagate_labels
from stepwell_export.runtime.errors import ManifestError, ModelLoadError
from stepwell_export.runtime.manifest import Manifest
from stepwell_export.runtime.operator_scan import Contents
from stepwell_export.runtime.protobuf import BrokenError, Message, opened

RANDOM: Final = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
"""Operators that draw random numbers; Dropout, in training mode, does too."""

_MOST_NODES: Final = 1_000_000  # with the functions put in place of their calls
_DEEPEST: Final = 32  # functions within functions


def check_random_operators(source: Path | bytes, contents: Contents, manifest: Manifest) -> None:
    """Check that random operators reach neither a state nor an output that is declared as a value.

    A retry gets the stored answer, but nothing else could: not a replay of the inputs, not another replica.

    Raises:
        ManifestError: One reaches an output that is a value.
        ModelLoadError: One reaches a state.
    """
    if not {operator for _, operator in contents.operators} & {*RANDOM, "Dropout"}:
        return
    states = {spec.output for spec in manifest.states}
    values = {spec.graph_name for spec in manifest.outputs if spec.kind == "value"}
    for name, operator in random_outputs(source).items():
        if name in states:
            raise ModelLoadError(
                f"Random operator {operator} reaches the state {name!r}; expected states that follow from the inputs "
                "alone.",
                fix="Draw the random numbers outside and send them as an input.",
            )
        if name in values:
            raise ManifestError(
                f"Random operator {operator} reaches output {name!r}, which the manifest declares as a value.",
                fix=f"Declare it as what it is: `stepwell adopt --output {name}=random`, or `{name}=ignore`.",
            )


def random_outputs(source: Path | bytes) -> dict[str, str]:
    """Return the outputs that a random operator reaches, each with that operator and its node's name.

    Dropout counts when it has a `training_mode` input that is not false once and for all.
    """
    with opened(source) as data:
        graph = _Reader(data).graph()
    reached = propagate_labels(graph, {}, own=lambda node: node.chance)
    return {output.name: min(reached[output.name]) for output in graph.output if output.name in reached}


# ------------------------------------------------------------------- a graph, as `propagate_labels` takes it


@dataclass(slots=True)
class _Named:
    name: str


@dataclass(slots=True)
class _Attribute:
    """The graphs in an attribute."""

    graphs: list[_Graph]

    def HasField(self, _name: str) -> bool:  # noqa: N802 - as protocol buffers have it
        """Return that there is no field `g`: its graph is among the others."""
        return False


@dataclass(slots=True)
class _Node:
    function: tuple[str, str, str] = ("", "", "")  # domain, type and overload: the name of a function, if there is one
    name: str = ""
    input: list[str] = field(default_factory=list)
    output: list[str] = field(default_factory=list)
    attribute: list[_Attribute] = field(default_factory=list)
    is_false: bool = False  # a constant

    @property
    def chance(self) -> str | None:
        """What is drawn here, if anything is."""
        operator = self.function[1]
        is_on = operator == "Dropout" and len(self.input) > 2 and self.input[2]
        return f"{operator} {self.name!r}" if operator in RANDOM or is_on else None


@dataclass(slots=True)
class _Graph:
    """A graph, or the body of a function; of the latter the names alone of what it takes and gives."""

    node: list[_Node] = field(default_factory=list)
    input: list[_Named] = field(default_factory=list)
    output: list[_Named] = field(default_factory=list)
    initializer: Sequence[_Named] = ()
    false: set[str] = field(default_factory=set)  # boolean constants


class _Reader:
    """Reads a model's graph and puts its functions in place of their calls."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._functions: dict[tuple[str, str, str], _Graph] = {}
        self._nodes = 0
        self._calls = 0

    def graph(self) -> _Graph:
        """Return the model's graph."""
        model = Message(self._data)
        for body in model.messages(25):
            self._functions[body.text(10), body.text(1), body.text(13)] = _Graph(
                [_node_of(node) for node in body.messages(7)],
                [*map(_Named, body.texts(4))],
                [*map(_Named, body.texts(5))],
            )
        graphs = [_graph_of(message) for message in model.messages(7)]
        graph = graphs[-1] if graphs else _Graph()
        graph.node = self._expanded(graph, lambda name: name, frozenset(), depth=0)
        return graph

    def _expanded(
        self, graph: _Graph, rename: Callable[[str], str], false: frozenset[str], *, depth: int
    ) -> list[_Node]:
        """Return a graph's nodes, the functions in place of their calls, every name renamed."""
        if depth > _DEEPEST:
            raise BrokenError(f"its functions are nested deeper than {_DEEPEST}")
        false |= {*map(rename, graph.false), *(rename(node.output[0]) for node in graph.node if node.is_false)}
        nodes: list[_Node] = []
        for node in graph.node:
            self._nodes += 1
            if self._nodes > _MOST_NODES:
                raise BrokenError(f"it has more than {_MOST_NODES} nodes, its functions in place of their calls")
            taken = [rename(name) if name else "" for name in node.input]
            given = [rename(name) if name else "" for name in node.output]
            if (function := self._functions.get(node.function)) is not None:
                nodes += self._expanded(function, self._renaming(function, taken, given), frozenset(), depth=depth + 1)
                continue
            if node.function[1] == "Dropout":
                taken = ["" if at == 2 and name in false else name for at, name in enumerate(taken)]
            inner = [
                _Graph(
                    self._expanded(one, rename, false, depth=depth + 1),
                    output=[_Named(rename(output.name)) for output in one.output],
                )
                for attribute in node.attribute
                for one in attribute.graphs
            ]
            nodes.append(_Node(node.function, node.name, taken, given, [_Attribute(inner)]))
        return nodes

    def _renaming(self, function: _Graph, taken: Iterable[str], given: Iterable[str]) -> Callable[[str], str]:
        """Return what the names inside a function are called outside it, for one of its calls."""
        self._calls += 1
        prefix = f"{self._calls}/"
        outside = dict(zip((given.name for given in function.input), taken, strict=False))
        outside |= zip((output.name for output in function.output), given, strict=False)
        return lambda name: outside.get(name) or prefix + name


# ------------------------------------------------------------------- messages; field numbers are those of onnx.proto


def _graph_of(message: Message) -> _Graph:
    taken = [value.text(1) for value in message.messages(11)]
    return _Graph(
        [_node_of(node) for node in message.messages(1)],
        [*map(_Named, taken)],
        [_Named(value.text(1)) for value in message.messages(12)],
        # A caller may give an input another value.
        false={tensor.text(8) for tensor in message.messages(5) if _is_false(tensor)} - {*taken},
    )


def _node_of(message: Message) -> _Node:
    node = _Node(
        (message.text(7), message.text(4), message.text(8)), message.text(3), message.texts(1), message.texts(2)
    )
    for attribute in message.messages(5):
        node.attribute.append(_Attribute([_graph_of(graph) for graph in attribute.messages(6, 11)]))
        is_false = any(_is_false(tensor) for tensor in attribute.messages(5))
        node.is_false = node.is_false or (is_false and node.function[1] == "Constant" and bool(node.output))
    return node


def _is_false(tensor: Message) -> bool:
    """Whether a tensor that is a flag is false; one that lies outside the file is not looked at."""
    return tensor.is_zero(5, 9)
