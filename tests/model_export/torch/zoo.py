"""Every PyTorch module that the tests step: small, of every kind, with weights that leave nothing at its default."""

from __future__ import annotations

from model_export import StepSpec
from tests.model_export.torch import zoo_auto, zoo_sequences, zoo_states
from tests.model_export.torch.zoo_parts import ZooModule, randomise, torch

ZOO: dict[str, ZooModule] = {**zoo_auto.ZOO, **zoo_sequences.ZOO, **zoo_states.ZOO}


def build(name: str) -> StepSpec:
    """Return a module of the zoo with its examples; the same numbers each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        spec = ZOO[name].build()
        randomise(spec.module)
    return spec
