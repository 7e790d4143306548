"""Sites of several versions beside each other, with a menu: `versions.json`, and a page that leads to the newest."""

from __future__ import annotations

import json
import re
from pathlib import Path

_INDEX = """\
<!doctype html><html lang=en><meta charset=utf-8><title>Stepwell</title>
<meta http-equiv="refresh" content="0; url={version}/index.html">
<a href="{version}/index.html">Stepwell {version}</a></html>
"""


def add_version(target: Path, version: str) -> None:
    """List a version in the menu of all sites in a folder; the folder's own page leads to the newest one.

    Args:
        target: The folder with one folder for each version.
        version: The version whose site was built.
    """
    listed = target / "versions.json"
    known = {one["version"] for one in json.loads(listed.read_text())} if listed.is_file() else set()
    versions = sorted(known | {version}, key=_order, reverse=True)
    listed.write_text(json.dumps([{"version": one, "title": one, "aliases": []} for one in versions], indent=1) + "\n")
    (target / "index.html").write_text(_INDEX.format(version=versions[0]))


def _order(version: str) -> list[tuple[bool, int, str]]:
    """Return the order of versions: by their numbers, a candidate such as 1.0rc1 before 1.0."""
    parts = re.findall(r"\d+|[a-z]+", version)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in [*parts, "0"]]
