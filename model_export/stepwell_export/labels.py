"""Names of the numbers of a row, and units: what a manifest has of inputs and outputs for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stepwell_export.runtime.errors import UnclearModelError
from stepwell_export.runtime.feedback import rules_of
from stepwell_export.runtime.labels import labels_of_outputs
from stepwell_export.runtime.manifest import InputSpec, Manifest, OutputSpec

_OF_INPUTS = ("feature_names_in_", "feature_names")
_OF_OUTPUTS = ("classes_", "class_names")
"""Attributes of models that hold names, as scikit-learn and many training scripts have them."""


def with_labels(
    manifest: Manifest,
    labels: Mapping[str, Sequence[str]] | None = None,
    units: Mapping[str, str | Sequence[str]] | None = None,
) -> Manifest:
    """Return the manifest with labels and units of inputs and outputs.

    Args:
        manifest: What the model takes and gives.
        labels: By input or output: a name for each number of a row, in C order.
        units: By input or output: the unit of all of its numbers, say `mm`, or one for each number, in C order.

    Raises:
        UnclearModelError: There is no such input or output, or it has another number of numbers than labels, or a label
            is empty or given twice, or a unit is empty.
    """
    labels, units = labels or {}, units or {}
    known = {spec.name: spec for spec in (*manifest.inputs, *manifest.outputs)}
    for flag, names in (("--labels", labels), ("--units", units)):
        for name in names:
            if name not in known:
                raise UnclearModelError(
                    f"`{flag}` names {name!r}; the model has {', '.join(sorted(known))}.",
                    fix="Use the name of an input or output.",
                )
    for name, given in labels.items():
        if len(given) != known[name].row_size:
            raise UnclearModelError(
                f"`--labels` gives {name!r} {len(given)} labels; a row of it has {known[name].row_size} numbers.",
                fix="Give one label for each number.",
            )
        if len({*given, ""}) != len(given) + 1:
            raise UnclearModelError(
                f"The labels of {name!r} are {list(given)}; expected texts that differ.", fix="Name each number once."
            )

    for name, unit in units.items():
        if not isinstance(unit, str) and len(unit) not in (1, known[name].row_size):
            raise UnclearModelError(
                f"`--units` gives {name!r} {len(unit)} units; a row of it has {known[name].row_size} numbers.",
                fix="Give one unit for each number, or one for all.",
            )
        if not all(isinstance(one, str) and one.strip() for one in ([unit] if isinstance(unit, str) else unit)):
            raise UnclearModelError(f"A unit of {name!r} is empty, or no text.", fix="Name it, or leave the flag out.")

    def named(spec: Any) -> Any:
        said: dict[str, Any] = {"labels": list(labels[spec.name])} if spec.name in labels else {}
        if (unit := units.get(spec.name)) is not None:
            several = [unit] if isinstance(unit, str) else list(unit)
            said["unit"] = several[0] if len(several) == 1 else several
        return spec.model_copy(update=said) if said else spec

    inputs: list[InputSpec] = [named(spec) for spec in manifest.inputs]
    outputs: list[OutputSpec] = [named(spec) for spec in manifest.outputs]
    return manifest.model_copy(update={"inputs": inputs, "outputs": outputs})


def read_labels(model: Any, manifest: Manifest) -> dict[str, list[str]]:
    """Return the labels that a model itself has for its only input or output of as many numbers, else none."""
    labels = {}
    for specs, attributes in ((manifest.inputs, _OF_INPUTS), (manifest.outputs, _OF_OUTPUTS)):
        names = next((names for name in attributes if (names := _texts(getattr(model, name, None)))), [])
        fitting = [spec.name for spec in specs if names and spec.row_size == len(names)]
        if len(fitting) == 1:
            labels[fitting[0]] = names
    return labels


def labels_fed_back(manifest: Manifest) -> dict[str, list[str]]:
    """Return the labels of outputs that have none and are fed back to an input that has."""
    found = {}
    labels = labels_of_outputs(manifest)
    for rule in rules_of(manifest.feedback, manifest):
        own = (rule.output.model_extra or {}).get("labels")
        if not own and (fed := labels[rule.output.name]):
            found[rule.output.name] = list(fed)
    return found


def read_columns(example: Any) -> list[str]:
    """Return the names of the columns of a data frame; none where it is none."""
    return _texts(getattr(example, "columns", None))


def _texts(given: Any) -> list[str]:
    """Return names as texts where they are a list of texts or numbers that differ."""
    if given is None or isinstance(given, str) or callable(given):
        return []
    try:
        names = [str(name) for name in given]
    except TypeError:
        return []
    return names if len({*names, ""}) == len(names) + 1 else []
