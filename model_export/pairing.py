"""Which state input goes with which state output: read from names and shapes, and never decided where it is open.

Naming habits met in published models: `x` / `x_next`, `x_out`, `xN`, `x_n`, `new_x`, `next_x`; `x_in` / `x_out`,
`cache_in_3` / `cache_out_3`, `h0` / `hn`, `past_x` / `present_x`, `input_3` / `output_3`. A pair by name alone is
believed where dtype and shape fit; shapes alone are believed where only one pair is possible.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from model_export.errors import UnclearModelError

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_BEFORE = {"in", "input", "past", "prev", "previous", "old", "last", "cur", "current", "init", "initial"}
_AFTER = {"out", "output", "next", "new", "present", "cur", "current", "final", "updated", "n", "y"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of a graph, as it is when one row is run.

    Attributes:
        name: Its name in the graph.
        dtype: NumPy name.
        shape: All axes, the batch axis with length 1.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def fits(self, other: Tensor) -> bool:
        """Say whether one could be fed back as the other."""
        return (self.dtype, self.shape) == (other.dtype, other.shape)


@dataclass(frozen=True, slots=True)
class Pairing:
    """The pairs found.

    Attributes:
        states: State output by state input, in input order.
        how: By state input: `name` or `shape`.
        notes: What was assumed, for people to read.
    """

    states: dict[str, str]
    how: dict[str, str]
    notes: list[str] = field(default_factory=list)


def pair_states(inputs: Sequence[Tensor], outputs: Sequence[Tensor], *, all_may_be_states: bool = False) -> Pairing:
    """Pair state inputs with state outputs.

    Args:
        inputs: All inputs that may be states, in graph order.
        outputs: All outputs that may be next states, in graph order.
        all_may_be_states: Whether some other input is known to be sent by the caller.

    Raises:
        UnclearModelError: Several pairings are possible.
    """
    pairs, how = _by_name(inputs, outputs), "name"
    if not pairs:
        pairs, how = _by_shape(inputs, outputs), "shape"
    notes = []
    if pairs and len(pairs) == len(inputs) and not all_may_be_states:
        first_in, first_out = inputs[0].name, outputs[0].name
        if len(inputs) > 1 and pairs[first_in] != first_out:
            raise UnclearModelError(
                f"Every input could be a state ({_listed(pairs)}); expected at least one that a caller sends.",
                fix=f"Name the states alone: {_flags(pairs)}.",
            )
        del pairs[first_in]
        notes.append(
            f"{first_in} and {first_out} come first and look alike: taken as what is sent and answered, not as a state"
        )
    return Pairing(pairs, dict.fromkeys(pairs, how), notes)


def related(before: str, after: str) -> bool:
    """Say whether naming habits make `after` the next value of `before`."""
    # `hn` is one word, but the next value of `h0`.
    stems = _stems(after, _AFTER) | _stems(re.sub(r"(?<=[a-z])n$", "", after), _AFTER)
    starts = _stems(before, _BEFORE) | _stems(re.sub(r"(?<=[A-Za-z_])0$", "", before), _BEFORE)
    return bool(starts & stems)


def _stems(name: str, habit: set[str]) -> set[tuple[str, ...]]:
    """Return the words of a name, and what is left of them without those that say before or after.

    Without one of them, too: the next value of `n` is `n_next`, where each of the words may be meant so.
    """
    words = tuple(word.lower() for word in _WORD.findall(name))
    without_one = {words[:at] + words[at + 1 :] for at, word in enumerate(words) if word in habit}
    return {words, *without_one, tuple(word for word in words if word not in habit)} - {()}


def _by_name(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> dict[str, str]:
    options = {i.name: [o.name for o in outputs if i.fits(o) and related(i.name, o.name)] for i in inputs}
    options = {name: names for name, names in options.items() if names}
    for name, names in options.items():
        rivals = [other for other, others in options.items() if other != name and set(others) & set(names)]
        if len(names) > 1 or rivals:
            raise UnclearModelError(
                f"By their names, {_and([name, *rivals])} could be followed by {_and(names)}; expected one for each.",
                fix="Say which: `--state IN=OUT` for every state.",
            )
    return {name: names[0] for name, names in options.items()}


def _by_shape(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for tensor in inputs:
        rivals = [i.name for i in inputs if i.fits(tensor)]
        options = [o.name for o in outputs if o.fits(tensor)]
        if len(rivals) == len(options) == 1:
            pairs[tensor.name] = options[0]
        elif options:
            likely = dict(zip(rivals, options, strict=False))
            raise UnclearModelError(
                f"By dtype and shape ({tensor.dtype} {list(tensor.shape)}), {_and(rivals)} could be followed by "
                f"{_and(options)}; expected one choice.",
                fix=f"Say which: {_flags(likely)} if their order is right.",
            )
    return pairs


def _and(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _listed(pairs: dict[str, str]) -> str:
    return ", ".join(f"{before} -> {after}" for before, after in pairs.items())


def _flags(pairs: dict[str, str]) -> str:
    return " ".join(f"--state {before}={after}" for before, after in pairs.items())
