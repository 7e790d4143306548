"""Which state input goes with which state output: read from names and shapes, and never decided where it is open.

Naming habits met in published models: `x` / `x_next`, `x_out`, `xN`, `x_n`, `new_x`, `next_x`; `x_in` / `x_out`,
`cache_in_3` / `cache_out_3`, `h0` / `hn`, `past_x` / `present_x`, `input_3` / `output_3`. A pair by name is believed
where dtype and shape fit; so is one that a recurrent operator makes. Without either, shapes are believed where only
one pair is possible, or only one pairing in which every state reaches its own next value: in a stack of layers the
last layer's state reaches one output, that of the layer before two, and so on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from model_export.adopt.axes import ShapedTensor
from model_export.errors import UnclearModelError
from model_export.graph.dataflow import Flow

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_BEFORE = {"in", "input", "past", "prev", "previous", "old", "last", "cur", "current", "init", "initial", "i"}
_AFTER = {"out", "output", "next", "new", "present", "cur", "current", "final", "updated", "n", "y", "o"}


@dataclass(frozen=True, slots=True)
class Pairing:
    """The pairs found.

    Attributes:
        states: State output by state input, in input order.
        how: By state input: `name`, `operator`, `shape` or `flow`.
        notes: What was assumed, for people to read.
    """

    states: dict[str, str]
    how: dict[str, str]
    notes: list[str] = field(default_factory=list)


def pair_states(
    inputs: Sequence[ShapedTensor],
    outputs: Sequence[ShapedTensor],
    *,
    flow: Flow | None = None,
    all_may_be_states: bool = False,
) -> Pairing:
    """Pair state inputs with state outputs.

    Args:
        inputs: All inputs that may be states, in graph order.
        outputs: All outputs that may be next states, in graph order.
        flow: What the graph's nodes show about them.
        all_may_be_states: Whether some other input is known to be sent by the caller.

    Raises:
        UnclearModelError: Several pairings are possible.
    """
    flow = flow or Flow()
    pairs, how, notes = {}, {}, []

    def add(found: dict[str, str], evidence: str) -> None:
        pairs.update(found)
        how.update(dict.fromkeys(found, evidence))

    add(_by_name(inputs, outputs, flow), "name")
    named = bool(pairs)
    add(_by_operator(*_open(inputs, outputs, pairs), flow), "operator")
    if named:
        notes += _lookalikes(*_open(inputs, outputs, pairs))
    else:
        by_flow, by_shape = _by_shape(*_open(inputs, outputs, pairs), flow)
        _check_names(by_shape, inputs, outputs)
        add(by_flow, "flow")
        add(by_shape, "shape")
    if pairs and len(pairs) == len(inputs) and not all_may_be_states:
        first_in, first_out = inputs[0].name, outputs[0].name
        if len(inputs) > 1 and pairs[first_in] != first_out:
            raise UnclearModelError(
                f"Every input could be a state ({_listed(pairs)}); expected at least one that a caller sends.",
                fix=f"Name the states alone: {_flags(pairs)}.",
            )
        del pairs[first_in], how[first_in]
        notes.append(
            f"{first_in} and {first_out} come first and look alike: taken as what is sent and answered, not as a state"
        )
    in_order = [i.name for i in inputs if i.name in pairs]
    return Pairing({name: pairs[name] for name in in_order}, {name: how[name] for name in in_order}, notes)


def related(before: str, after: str) -> bool:
    """Return whether naming habits make `after` the next value of `before`."""
    return bool(_shared(before, after))


def _shared(before: str, after: str) -> set[tuple[str, ...]]:
    """Return what two names have in common when the words for before and after are left out."""
    # `hn` is one word, but the next value of `h0`.
    return stems_of_state(before) & (_stems(after, _AFTER) | _stems(re.sub(r"(?<=[a-z])n$", "", after), _AFTER))


def split_words(name: str) -> tuple[str, ...]:
    """Return the words of a name, in lower case."""
    return tuple(word.lower() for word in _WORD.findall(name))


def stems_of_state(name: str) -> set[tuple[str, ...]]:
    """Return the words of a state input's name, with and without those that mark it as an input."""
    return _stems(name, _BEFORE) | _stems(re.sub(r"(?<=[A-Za-z_])0$", "", name), _BEFORE)


def _stems(name: str, habit: set[str]) -> set[tuple[str, ...]]:
    """Return the words of a name, and what is left of them without those for before and after.

    Without one of them, too: the next value of `n` is `n_next`, where each of the words may be meant so.
    Hugging Face's `past_key_values.0.key` is followed by `present.0.key`.
    """
    words = split_words(re.sub(r"(?<=_)key_values(?=\.\d)", "", name))
    without_one = {words[:at] + words[at + 1 :] for at, word in enumerate(words) if word in habit}
    return {words, *without_one, tuple(word for word in words if word not in habit)} - {()}


def _open(
    inputs: Sequence[ShapedTensor], outputs: Sequence[ShapedTensor], pairs: dict[str, str]
) -> tuple[list[ShapedTensor], list[ShapedTensor]]:
    return [i for i in inputs if i.name not in pairs], [o for o in outputs if o.name not in pairs.values()]


def _by_name(inputs: Sequence[ShapedTensor], outputs: Sequence[ShapedTensor], flow: Flow) -> dict[str, str]:
    options = {i.name: [o.name for o in outputs if i.fits(o) and related(i.name, o.name)] for i in inputs}
    options = {name: _carried_alone(flow, name, names) for name, names in options.items() if names}
    for name, names in options.items():
        rivals = [other for other, others in options.items() if other != name and set(others) & set(names)]
        if len(names) > 1 or rivals:
            raise UnclearModelError(
                f"By their names, {_and([name, *rivals])} could be followed by {_and(names)}; expected one for each.",
                fix="Say which: `--state IN=OUT` for every state.",
            )
    return {name: names[0] for name, names in options.items()}


def _carried_alone(flow: Flow, name: str, options: list[str]) -> list[str]:
    """Return the option that an operator shows to be the next value, if there is one; else all."""
    carried = [option for option in options if option in flow.carried.get(name, [])]
    return carried if len(carried) == 1 else options


def _by_operator(inputs: Sequence[ShapedTensor], outputs: Sequence[ShapedTensor], flow: Flow) -> dict[str, str]:
    fitting = {
        i.name: [o.name for o in outputs if i.fits(o) and o.name in flow.carried.get(i.name, [])] for i in inputs
    }
    return {name: options[0] for name, options in fitting.items() if len(options) == 1}


def _by_shape(
    inputs: Sequence[ShapedTensor], outputs: Sequence[ShapedTensor], flow: Flow
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the pairs of which a dtype and shape leave several, found by what reaches what, and the only ones."""
    by_flow: dict[str, str] = {}
    by_shape: dict[str, str] = {}
    for tensor in inputs:
        rivals = [i.name for i in inputs if i.fits(tensor)]
        options = [o.name for o in outputs if o.fits(tensor)]
        if len(rivals) == len(options) == 1:
            by_shape[tensor.name] = options[0]
        elif options and tensor.name not in by_flow:
            found = _only_pairing({r: [o for o in options if r in flow.reached.get(o, ())] for r in rivals}, options)
            if found is None:
                likely = _likely(rivals, options, others=len(inputs) > len(rivals))
                raise UnclearModelError(
                    f"By dtype and shape ({tensor.dtype} {list(tensor.shape)}), {_and(rivals)} could be followed by "
                    f"{_and(options)}; expected one choice.",
                    fix=f"Say which: {_flags(likely)} if their order is right.",
                )
            by_flow |= found
    return by_flow, by_shape


def _likely(rivals: Sequence[str], options: Sequence[str], *, others: bool) -> dict[str, str]:
    """Return pairs in order, for an example: what is sent and answered comes before the states."""
    count = min(len(rivals), len(options))
    if count == len(rivals) > 1 and not others:
        count -= 1  # not every input is a state
    return dict(zip(rivals[-count:], options[-count:], strict=True))


def _check_names(by_shape: dict[str, str], inputs: Sequence[ShapedTensor], outputs: Sequence[ShapedTensor]) -> None:
    """Check pairs of which only the shapes fit by their names.

    Raises:
        UnclearModelError: By its name, the output follows another input, whose shape does not fit.
    """
    for before, after in by_shape.items():
        follower = next(o for o in outputs if o.name == after)
        for other in inputs:
            words = {word for stem in _shared(other.name, after) for word in stem if not word.isdigit()}
            if other.name != before and words and not related(before, after):
                raise UnclearModelError(
                    f"By its shape, {after!r} ({follower.dtype} {list(follower.shape)}) follows {before!r}; by its "
                    f"name, {other.name!r}, which is {other.dtype} {list(other.shape)}.",
                    fix=f"Say `--state {before}={after}` if that is meant; else export the graph with one shape for "
                    f"{other.name} and {after}.",
                )


def _only_pairing(options: dict[str, list[str]], outputs: Sequence[str]) -> dict[str, str] | None:
    """Return the only way to give every input an output of its own that it reaches; None: there is none, or several.

    Where there is only one, some input always has a single choice left.
    """
    if len(options) != len(outputs):
        return None
    pairs: dict[str, str] = {}
    while len(pairs) < len(options):
        left = {
            name: [option for option in reached if option not in pairs.values()]
            for name, reached in options.items()
            if name not in pairs
        }
        name = min(left, key=lambda name: len(left[name]))
        if len(left[name]) != 1:
            return None
        pairs[name] = left[name][0]
    return pairs


def _lookalikes(inputs: Sequence[ShapedTensor], outputs: Sequence[ShapedTensor]) -> list[str]:
    return [
        f"{i.name} and {o.name} have one shape: taken as what is sent and answered; "
        f"if it is a state, name every state: `--state {i.name}={o.name}` ..."
        for i in inputs[1:]
        for o in outputs[1:]
        if i.fits(o)
    ]


def _and(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _listed(pairs: dict[str, str]) -> str:
    return ", ".join(f"{before} -> {after}" for before, after in pairs.items())


def _flags(pairs: dict[str, str]) -> str:
    return " ".join(f"--state {before}={after}" for before, after in pairs.items())
