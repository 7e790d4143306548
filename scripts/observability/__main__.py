"""Writes the generated files of `docker/observability/`: `python -m scripts.observability`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import yaml  # type: ignore[import-untyped]  # comes with uvicorn[standard], without types

from scripts.observability.alerts import rules
from scripts.observability.dashboard import dashboard

FOLDER: Final = Path(__file__).parents[2] / "docker/observability"
_HEADER: Final = "# Written by `python -m scripts.observability`; change scripts/observability/alerts.py.\n"


def files() -> dict[Path, str]:
    """Return the text of each generated file."""
    return {
        FOLDER / "rules.yml": _HEADER + yaml.safe_dump(rules(), sort_keys=False, width=1000),
        FOLDER / "grafana/dashboards/stepwell.json": json.dumps(dashboard(), indent=1) + "\n",
    }


def main() -> None:
    """Write the files."""
    for path, text in files().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
