"""Every PyTorch module that the tests step: small, of every kind, with weights that leave nothing at its default."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import onnx

from stepwell_export import StepSpec
from stepwell_export.converted import ConvertedModel
from stepwell_export.torch import convert
from tests.model_export.merging import merged
from tests.model_export.torch import (
    zoo_attention,
    zoo_auto,
    zoo_loops,
    zoo_pooling,
    zoo_published,
    zoo_sequences,
    zoo_states,
)
from tests.model_export.torch.zoo_parts import ZooModule, randomise, torch

ZOO: dict[str, ZooModule] = merged(
    zoo_auto.ZOO,
    zoo_sequences.ZOO,
    zoo_attention.ZOO,
    zoo_pooling.ZOO,
    zoo_loops.ZOO,
    zoo_published.ZOO,
    zoo_states.ZOO,
)


def build(name: str) -> StepSpec:
    """Return a module of the zoo with its examples; the same numbers each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        spec = ZOO[name].build()
        randomise(spec.module)
    return spec


def made(name: str) -> ConvertedModel:
    """Return the step graph of a module of the zoo; each is traced once in a run of the tests."""
    traced = _traced(name)
    graph = onnx.ModelProto()
    graph.CopyFrom(traced.proto)
    return replace(traced, proto=graph, manifest=traced.manifest.model_copy(deep=True))


@cache
def _traced(name: str) -> ConvertedModel:
    return convert(build(name), name=name)
