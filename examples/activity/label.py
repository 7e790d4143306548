"""Write the names of channels and classes into the exported model's manifest, for the dashboard.

    python examples/activity/label.py service/stepwell/addons/demo/models/activity.onnx

Keras models have no names for their channels and classes. `labels` is an extra key of this example: the service keeps
unknown keys and returns them with the model; the dashboard shows these names if they exist.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx

from stepwell_export.runtime.manifest import METADATA_KEY


def main(file: Path) -> None:
    data = np.load(Path(__file__).parent / "basic_motions.npz")
    model = onnx.load(file)
    entry = next(entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    manifest = json.loads(entry.value)
    manifest["inputs"][0]["labels"] = data["channels"].tolist()
    manifest["outputs"][0]["labels"] = data["classes"].tolist()
    entry.value = json.dumps(manifest)
    onnx.save(model, file)
    print(f"{file}: {manifest['inputs'][0]['labels']} -> {manifest['outputs'][0]['labels']}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
