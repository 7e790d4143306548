"""How many samples the outputs of a pipeline are behind its input."""

from __future__ import annotations

from stepwell_export.runtime.manifest import Manifest
from stepwell_export.stages.values import NamedValue, NamedValues, Node


def with_latency(manifest: Manifest, values: NamedValues) -> Manifest:
    """Return a manifest with the latency of each output that has samples, and the largest of them."""
    delays: dict[NamedValue, int] = dict.fromkeys(values.inputs.values(), 0)
    samples: set[NamedValue] = set()
    for node in values.nodes:
        before = max((delays[value] for value in node.reads.values()), default=0)
        for output, value in node.gives.items():
            delays[value] = before + _delay(node, output)
            if _has_samples(node, output, any(value in samples for value in node.reads.values())):
                samples.add(value)
    late = {value.name: delays[value] for value in values.answers if value in samples}
    if not late:
        return manifest
    outputs = [spec.model_copy(update={"latency": late.get(spec.name)}) for spec in manifest.outputs]
    return manifest.model_copy(update={"outputs": outputs, "latency": max(late.values())})


def _delay(node: Node, output: str) -> int:
    """Return how many samples later than what it reads a part gives an output."""
    if node.stage is not None:
        return node.stage.delay
    return next(spec.latency for spec in node.step.manifest.outputs if spec.name == output) or 0


def _has_samples(node: Node, output: str, reads_samples: bool) -> bool:
    if node.stage is not None:
        return reads_samples if node.stage.samples is None else node.stage.samples
    return next(spec.latency for spec in node.step.manifest.outputs if spec.name == output) is not None
