"""The objects that the Helm chart makes of values, rendered by Helm's own SDK (PyPI: helm-python-sdk)."""

from __future__ import annotations

from typing import Any, Final

import yaml  # type: ignore[import-untyped]  # comes with uvicorn[standard], without types

from scripts.kubernetes.facts import REPOSITORY

FOLDER: Final = REPOSITORY / "deploy/helm/stepwell"
RELEASE: Final = "stepwell"


def render(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the objects that the chart makes of its defaults and of these values, in the order of their files.

    Raises:
        ImportError: Helm's SDK is not installed.
        helm_python.HelmError: The values do not fit the schema, or a template is wrong.
    """
    from helm_python import Chart

    with Chart.load(FOLDER) as chart:
        chart.validate_schema(values)
        rendered = chart.render(values=values, name=RELEASE, namespace="default")
    texts = [text for path, text in sorted(rendered.items()) if path.endswith(".yaml")]
    return [one for text in texts for one in yaml.safe_load_all(text) if one]
