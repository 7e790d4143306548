"""`register_step_rule`: registers what a layer of one's own does with one timestep; imports no framework.

Other packages name modules of theirs that do so in the group `stepwell.step_rules`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from stepwell_export.patched import patched
from stepwell_export.runtime.registered import load, registered

Registered = TypeVar("Registered", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class LayerRule:
    """What a layer does with one timestep.

    Attributes:
        step: `(layer, state, x)` to the state after this timestep and the answer.
        start: `(layer, x)` to the state before the first timestep, for rows of the shape of `x`; None: there is no
            state.
    """

    step: Callable[..., Any]
    start: Callable[..., Any] | None


STEP_RULES: dict[type, LayerRule] = {}
"""Rules of layer classes; they win over what the class itself computes."""


def register_step_rule(*layers: type, start: Callable[..., Any] | None = None) -> Callable[[Registered], Registered]:
    """Register what layer classes do with one timestep.

    A rule is the body of a loop over the timesteps, written with `keras.ops`:

        @register_step_rule(Leaky, start=lambda layer, x: ops.zeros_like(x))
        def leaky(layer, level, x):
            level = layer.rate * level + x
            return level, level

    Most layers need none: the code of a layer is traced. A rule is for one that computes a whole sequence at once in
    a way that no stream can follow, as by a Fourier transform.

    Args:
        layers: Layer classes. A subclass has its parent's rule as long as it has its parent's `call`.
        start: From the layer and one timestep of zeros, `(batch, ..)`, to the state before the first timestep: an
            array, or arrays nested in tuples, lists and dicts. None: the rule carries nothing, and gets None.

    Raises:
        TypeError: Something else than classes was given.
    """
    if not layers or not all(isinstance(layer, type) for layer in layers):
        raise TypeError(f"register_step_rule takes layer classes, as in @register_step_rule(MyLayer); found {layers!r}")

    def register(rule: Registered) -> Registered:
        STEP_RULES.update(dict.fromkeys(layers, LayerRule(rule, start)))
        return rule

    return register


def load_step_rules() -> None:
    """Import the modules of other packages that register layers and their rules.

    Raises:
        AddonError: One of them cannot be imported.
    """
    for point in registered("stepwell.step_rules").values():
        load(point)


def rule_of(layer: Any) -> LayerRule | None:
    """Return a layer's rule: that of its class, or of a parent whose `call` it has."""
    found = ((cls, STEP_RULES[cls]) for cls in type(layer).__mro__ if cls in STEP_RULES)
    cls, rule = next(found, (None, None))
    return rule if cls is not None and type(layer).call is cls.call else None  # type: ignore[attr-defined]


@contextmanager
def rules_in_place(layers: Sequence[Any]) -> Iterator[None]:
    """Let layers with rules run those over the timesteps, in place of their own code."""
    ruled = [(layer, rule) for layer in layers if (rule := rule_of(layer)) is not None and "call" not in vars(layer)]
    with patched(*((layer, "call", partial(_looped, layer, rule)) for layer, rule in ruled)):
        yield


def _looped(layer: Any, rule: LayerRule, x: Any, *_: Any, **__: Any) -> Any:
    """Run a rule over axis 1."""
    keras = sys.modules["keras"]
    ops, tree = keras.ops, keras.tree
    xs = tree.map_structure(lambda one: ops.swapaxes(one, 0, 1), x)
    first = tree.map_structure(lambda one: ops.zeros_like(one[:, 0]), x)
    start = None if rule.start is None else rule.start(layer, first)
    _, answers = ops.scan(partial(rule.step, layer), start, xs)
    return tree.map_structure(lambda one: ops.swapaxes(one, 0, 1), answers)
