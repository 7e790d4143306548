"""Writes the generated files of `deploy/`: `python -m scripts.kubernetes`, with the extra `deploy`."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import yaml  # type: ignore[import-untyped]  # comes with uvicorn[standard], without types

from scripts.kubernetes.chart import FOLDER as CHART
from scripts.kubernetes.chart import render
from scripts.kubernetes.facts import REPOSITORY, version
from scripts.kubernetes.kustomize import base_files, component_files, overlay_files
from scripts.kubernetes.values import BASE, DEV, schema_file, values_file

KUSTOMIZE: Final = REPOSITORY / "deploy/kubernetes"
OVERLAYS: Final = {"dev": DEV, "prod": {}}
"""The values of the chart that give the objects of each overlay."""
COMPONENTS: Final = ("connect", "alert")
"""Clients of the service that an overlay may add."""
_HEADER: Final = "# Written by `python -m scripts.kubernetes`; change scripts/kubernetes/values.py.\n"


def chart_files() -> dict[Path, str]:
    """Return the text of the chart's files that are written; its templates are not."""
    chart = {
        "apiVersion": "v2",
        "name": "stepwell",
        "description": "Recurrent models on live streams: every timestep applied exactly once.",
        "type": "application",
        "version": version(),
        "appVersion": version(),
        "kubeVersion": ">=1.30.0-0",  # the hook `sleep`
    }
    return {
        CHART / "Chart.yaml": _HEADER + yaml.safe_dump(chart, sort_keys=False),
        CHART / "values.yaml": _HEADER + values_file(),
        CHART / "values-dev.yaml": _HEADER + yaml.safe_dump(DEV, sort_keys=False),
        CHART / "values.schema.json": schema_file(),
    }


def kustomize_files() -> dict[Path, str]:
    """Return the text of each file of kustomize: what the chart, as it is on disk, renders."""
    base = render(BASE)
    files = {KUSTOMIZE / "base" / name: text for name, text in base_files(base).items()}
    for overlay, values in OVERLAYS.items():
        folder = KUSTOMIZE / "overlays" / overlay
        files |= {folder / name: text for name, text in overlay_files(render(values), base).items()}
    for component in COMPONENTS:
        folder, values = KUSTOMIZE / "components" / component, BASE | {component: {"enabled": True}}
        files |= {folder / name: text for name, text in component_files(render(values), base).items()}
    return files


def main() -> None:
    """Write the files, and remove those of objects that are no more."""
    for path, text in chart_files().items():
        path.write_text(text)
    if find_spec("helm_python") is None:
        sys.exit(
            "The chart's files are written; those of kustomize need Helm: STEPWELL_EXTRAS=deploy ./stepwell --help"
        )
    files = kustomize_files()
    for path in KUSTOMIZE.rglob("*.yaml"):
        if path not in files:
            path.unlink()
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
