"""Sites of several versions are listed newest first."""

from __future__ import annotations

import json
from pathlib import Path

from scripts.site.versions import add_version


def test_the_menu_lists_versions_newest_first_and_the_start_page_leads_to_the_newest(tmp_path: Path) -> None:
    for version in ("0.9.0", "0.10.0rc1", "0.10.0", "0.2.1", "0.9.0"):
        add_version(tmp_path, version)

    listed = [one["version"] for one in json.loads((tmp_path / "versions.json").read_text())]
    assert listed == ["0.10.0", "0.10.0rc1", "0.9.0", "0.2.1"]
    assert "0.10.0/index.html" in (tmp_path / "index.html").read_text()
