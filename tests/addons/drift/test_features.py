"""The observed features of a model: their names, and their references."""

from __future__ import annotations

from stepwell.addons.drift.features import ModelFeatures
from stepwell_export.runtime.manifest import DataReference, FeatureReference
from tests.forecasters import forecaster


def test_features_have_the_names_of_their_labels_and_the_references_of_their_places() -> None:
    references = [FeatureReference(count=n, missing=0.0, min=0.0, max=1.0) for n in (1, 2, 3, 4)]
    inputs, outputs = ({f"{name}[{i}]": references[start + i] for i in (0, 1)} for name, start in
                       (("sensors", 0), ("next", 2)))  # fmt: skip
    reference = DataReference(sequences=1, timesteps=1, inputs=inputs, outputs=outputs)
    features = ModelFeatures(forecaster()[1].model_copy(update={"reference": reference}), limit=10)

    assert [name for tensor in (*features.inputs, *features.outputs) for name in tensor.names] == [
        "sensors[vibration]", "sensors[rpm]", "next[vibration]", "next[rpm]",
    ]  # fmt: skip
    assert features.references == references
