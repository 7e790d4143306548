"""`register_step_rule`: registers how a layer of one's own is stepped; imports no framework.

Other packages name modules of theirs that do so in the group `stepwell.step_rules`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from stepwell_export.runtime.registered import load, registered

if TYPE_CHECKING:
    from stepwell_export.keras.rule_registry import Call
    from stepwell_export.keras.value import Value

    Rule = Callable[[Call], Value | list[Value]]

Registered = TypeVar("Registered", bound="Rule")

STEP_RULES: dict[type, tuple[Rule, bool]] = {}
"""Rules of people's own layer classes; they win over those that come with the exporter."""


def register_step_rule(*layers: type, masks: bool = False) -> Callable[[Registered], Registered]:
    """Register the rule that steps these layer classes.

    A rule turns one call of the layer into nodes of the step graph, for one timestep:

        @register_step_rule(Decay)
        def decay(call: Call) -> Value: ...

    Most layers need none: one whose `call` is written with `keras.ops` or other layers is traced. A rule is for a
    layer that carries something from timestep to timestep, or that cannot be traced.

    Args:
        layers: Layer classes. A subclass has its parent's rule as long as it computes as the parent does.
        masks: The rule sets the masks of its results itself. Otherwise they follow Keras' default: a layer that
            supports masking hands the mask on, any other drops it.

    Raises:
        TypeError: Something else than classes was given.
    """
    if not layers or not all(isinstance(layer, type) for layer in layers):
        raise TypeError(f"register_step_rule takes layer classes, as in @register_step_rule(MyLayer); found {layers!r}")

    def register(rule: Registered) -> Registered:
        STEP_RULES.update(dict.fromkeys(layers, (rule, masks)))
        return rule

    return register


def load_step_rules() -> None:
    """Import the modules of other packages that register layers and their rules.

    Raises:
        AddonError: One of them cannot be imported.
    """
    for point in registered("stepwell.step_rules").values():
        load(point)
