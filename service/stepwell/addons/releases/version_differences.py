"""In what two versions of a model differ: inputs and outputs."""

from __future__ import annotations

from stepwell_export.runtime.manifest import Manifest


def tensors_differ(old: Manifest, new: Manifest) -> str | None:
    """Return in which input or output two versions differ; None: a stream can go from one to the other."""
    for what, ours, theirs in (("input", old.inputs, new.inputs), ("output", old.answered, new.answered)):
        mine = {spec.name: f"{spec.dtype}{list(spec.row_shape)}" for spec in ours}
        other = {spec.name: f"{spec.dtype}{list(spec.row_shape)}" for spec in theirs}
        for name in sorted(mine.keys() | other.keys()):
            if mine.get(name) != other.get(name):
                return f"{what} {name!r} is {other.get(name, 'missing')} and was {mine.get(name, 'missing')}"
    names = [[spec.name for spec in manifest.answered] for manifest in (old, new)]
    return None if names[0] == names[1] else f"the order of the outputs is {names[1]} and was {names[0]}"
