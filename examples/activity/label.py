"""Write the names of channels and classes into the exported model's manifest, for people who look at the dashboard.

    python examples/activity/label.py service/demo/models/activity.onnx

Keras models do not know what their numbers are called. `labels` is a key of this example's own: the service keeps
keys that it does not know and gives them out with the model; the dashboard uses these where they are there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx

from model_export.manifest import METADATA_KEY


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
