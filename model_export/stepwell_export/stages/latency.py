"""How many samples the outputs of a pipeline are behind its input."""

from __future__ import annotations

from collections.abc import Mapping

from stepwell_export.runtime.manifest import Manifest
from stepwell_export.stages.binding import NamedValue, NamedValues, Node


def with_latency(manifest: Manifest, values: NamedValues, answers: Mapping[str, NamedValue]) -> Manifest:
    """Return a manifest with the latency of each output that has samples, and the largest of them.

    Args:
        manifest: That of the whole.
        values: What its parts read and give.
        answers: The values of its outputs, by name.
    """
    delays: dict[NamedValue, int] = dict.fromkeys(values.inputs.values(), 0)
    hops = dict[NamedValue, int]()  # samples of a timestep, from the first part on that has samples
    samples: set[NamedValue] = set()
    for node in values.nodes:
        read = [*node.reads.values()]
        before = max((delays[value] for value in read), default=0)
        hop = max((hops[value] for value in read if value in hops), default=None)
        for output, value in node.gives.items():
            delays[value] = before + _delay(node, output, hop)
            if _has_samples(node, output, any(value in samples for value in read)):
                samples.add(value)
                hop = hop or min(map(_size, [value] if node.stage is None else [value, *read]))
            if hop is not None:
                hops[value] = hop
    late = {name: delays[value] for name, value in answers.items() if value in samples}
    if not late:
        return manifest
    outputs = [spec.model_copy(update={"latency": late.get(spec.name)}) for spec in manifest.outputs]
    return manifest.model_copy(update={"outputs": outputs, "latency": max(late.values())})


def _size(value: NamedValue) -> int:
    assert value.spec is not None
    return value.spec.row_size


def _delay(node: Node, output: str, hop: int | None) -> int:
    """Return how many samples later than what it reads a part gives an output; `hop`: samples of a timestep."""
    if node.stage is not None:
        return node.stage.delay + node.stage.lag * (hop or _size(node.reads["in0"]))
    return next(spec.latency for spec in node.step.manifest.outputs if spec.name == output) or 0


def _has_samples(node: Node, output: str, reads_samples: bool) -> bool:
    if node.stage is not None:
        return reads_samples if node.stage.samples is None else node.stage.samples
    return next(spec.latency for spec in node.step.manifest.outputs if spec.name == output) is not None
