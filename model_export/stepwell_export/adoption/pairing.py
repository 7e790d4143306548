"""Which state input goes with which state output: read from names, operators and shapes, never from data flow alone.

Naming habits met in published models: `x` / `x_next`, `x_out`, `xN`, `x_n`, `new_x`, `next_x`; `x_in` / `x_out`,
`cache_in_3` / `cache_out_3`, `h0` / `hn`, `past_x` / `present_x`, `input_3` / `output_3`. A pair by name is believed
where dtype and shape fit and no operator contradicts it; so is one that a recurrent operator makes. Without either, a
shape is believed where only one input and one output have it.

Several of one shape are a question, and nothing is proposed: which inputs reach which outputs cannot decide it. In a
stack of layers only one pairing may let every state reach its own next value, but in a shift register (the past outputs
of a filter) the older tap reaches only the next value of the newer one, and the same reasoning pairs them crosswise.
The message has which outputs are copies of an input: each is the next value of the tap behind it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from stepwell_export.adoption.axes import ShapedTensor
from stepwell_export.graph.nodes import Flow
from stepwell_export.runtime.errors import UnclearModelError

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_BEFORE = {"in", "input", "past", "prev", "previous", "old", "last", "cur", "current", "init", "initial", "i"}
_AFTER = {"out", "output", "next", "new", "present", "cur", "current", "final", "updated", "n", "y", "o"}


@dataclass(frozen=True, slots=True)
class Pairing:
    """The pairs found.

    Attributes:
        states: State output by state input, in input order.
        how: By state input: `name`, `operator` or `shape`.
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
    left = _open(inputs, outputs, pairs)
    if named:
        _check_numbers(pairs, *left)
        notes += _lookalikes(*left)
    else:
        by_shape = _by_shape(*left)
        _check_names(by_shape, inputs, outputs)
        _check_rivals(pairs, *left, flow)
        add(by_shape, "shape")
    _check_moving(pairs, flow)
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
                fix="Set each state's next value: `--state IN=OUT` for every state.",
            )
        if flow.carried.get(name) and names[0] not in flow.carried[name]:
            raise UnclearModelError(
                f"By its name, {name!r} is followed by {names[0]!r}; by the operator whose state it is, by "
                f"{_and(flow.carried[name])}.",
                fix=f"Set each state's next value: `--state {name}={flow.carried[name][0]}` or `--state "
                f"{name}={names[0]}`, and the other states likewise.",
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


def _by_shape(inputs: Sequence[ShapedTensor], outputs: Sequence[ShapedTensor]) -> dict[str, str]:
    """Return the pairs of which a dtype and shape leave no other."""
    pairs = {}
    for tensor in inputs:
        options = [o.name for o in outputs if o.fits(tensor)]
        if len(options) == sum(i.fits(tensor) for i in inputs) == 1:
            pairs[tensor.name] = options[0]
    return pairs


def _check_rivals(
    pairs: dict[str, str], inputs: Sequence[ShapedTensor], outputs: Sequence[ShapedTensor], flow: Flow
) -> None:
    """Check that no dtype and shape leaves more than one pair.

    Args:
        pairs: What names and operators pair.
        inputs: What they do not.
        outputs: The same.
        flow: What the graph's nodes show about them.

    Raises:
        UnclearModelError: One does; names the rivals.
    """
    questions: list[str] = []
    for tensor in inputs:
        rivals = [i.name for i in inputs if i.fits(tensor)]
        options = [o.name for o in outputs if o.fits(tensor)]
        if not options or tensor.name != rivals[0] or len(rivals) == len(options) == 1:
            continue
        copies = {o: flow.copied[o] for o in options if o in flow.copied}
        questions.append(
            f"{_and(rivals)} could be followed by {_and(options)} ({tensor.dtype} {list(tensor.shape)})"
            + "".join(f"; {o!r} is a copy of {i!r}, as in a shift register" for o, i in copies.items())
        )
    if questions:
        raise UnclearModelError(
            f"By dtype and shape, {'; '.join(questions)}. Neither names nor operators decide; expected one choice.",
            fix=f"Set every state as the model has it: {_flags(pairs | {'IN': 'OUT'})} for each of these.",
        )


def _check_numbers(pairs: dict[str, str], inputs: Sequence[ShapedTensor], outputs: Sequence[ShapedTensor]) -> None:
    """Check that no input is left that has the name of an output that is left, but for their numbers.

    Raises:
        UnclearModelError: One is, as where `state_0` to `state_2` are followed by `state_out_1` to `state_out_3`.
    """
    for before, after in itertools.product(inputs, outputs):
        words = _without_numbers(before.name, after.name)
        if not words or not before.fits(after):
            continue
        found = {i: o for i, o in pairs.items() if words & _without_numbers(i, o)}
        series = [*found, *(i.name for i in inputs if words & _without_numbers(i.name, after.name))]
        follow = [*found.values(), *(o.name for o in outputs if words & _without_numbers(before.name, o.name))]
        moved = dict(zip(sorted(series, key=_number), sorted(follow, key=_number), strict=False))
        raise UnclearModelError(
            f"The names of {before.name!r} and {after.name!r} differ in their numbers alone, and each of them is left "
            f"without a pair; expected states and their next values counted from the same number.",
            fix=f"Set every state: {_flags(moved | {i: o for i, o in pairs.items() if i not in moved})} if their order "
            "is right.",
        )


def _without_numbers(before: str, after: str) -> set[tuple[str, ...]]:
    """Return what two names have in common when numbers and the words for before and after are left out."""
    bare = [re.sub(r"\d+", "", name) for name in (before, after)]
    return _stems(bare[0], _BEFORE) & _stems(bare[1], _AFTER)


def _number(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _check_moving(pairs: dict[str, str], flow: Flow) -> None:
    """Check that no state is its own next value.

    Raises:
        UnclearModelError: One is, and would keep what it starts from.
    """
    for before, after in pairs.items():
        if flow.copied.get(after) == before:
            raise UnclearModelError(
                f"Output {after!r} is a copy of the input {before!r}; as its next value, the state would never change.",
                fix=f"Set every state, `--state IN=OUT`, or `--constant {before}=VALUE` if it never changes.",
            )


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
