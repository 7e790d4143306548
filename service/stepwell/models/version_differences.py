"""In what the inputs of two versions of a model differ."""

from __future__ import annotations

from stepwell_export.runtime.manifest import Manifest


def needed_inputs(old: Manifest, new: Manifest) -> list[str]:
    """Return the inputs that must have values in a new version, and may be missing in the old one."""
    optional = {spec.name for spec in old.inputs if spec.missing == "nan"}
    return [spec.name for spec in new.inputs if spec.missing == "refuse" and spec.name in optional]
